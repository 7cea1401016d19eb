#!/bin/sh
# Starts each process of docs/deploy-step-by-step.md that does not run.
set -eu
project=/srv/trajectory-pipeline
start="sh $project/deploy/celery/start.sh"
. /srv/trajectory/env
$start redis redis-server --port 6390 --bind 127.0.0.1 --appendonly yes --dir /srv/trajectory/redis
$start code-server dagster code-server start -m trajectory_pipeline.definitions -h 127.0.0.1 -p 4000
until dagster api grpc-health-check -p 4000 >/dev/null 2>&1; do sleep 2; done
$start webserver dagster-webserver -h 127.0.0.1 -p 3000 -w $project/deploy/workspace.yaml
$start daemon dagster-daemon run -w $project/deploy/workspace.yaml
for number in 1 2; do
    $start worker-$number dagster-celery worker start -A dagster_celery.app -n worker-$number \
        -y $project/deploy/celery/worker.yaml -i trajectory_pipeline.definitions -- --concurrency 1
done
$start serve trajectory-pipeline serve --port 8321
until curl -fs http://127.0.0.1:3000/server_info >/dev/null; do sleep 2; done
until curl -fs http://127.0.0.1:8321/health >/dev/null; do sleep 2; done
echo "All processes run."
