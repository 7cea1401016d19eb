#!/bin/sh
# Starts one process of docs/deploy-step-by-step.md, by the settings in /srv/trajectory/env, unless it runs already.
#
#   sh start.sh NAME COMMAND …
set -eu
. /srv/trajectory/env
export DAGSTER_HOME=/srv/trajectory/$1
mkdir -p "$DAGSTER_HOME"
cd "$DAGSTER_HOME"
if [ -f pid ] && kill -0 "-$(cat pid)" 2>/dev/null; then echo "$1 runs already."; exit; fi
shift
setsid --fork sh -c 'echo $$ > pid; exec "$@"' sh "$@" >>log 2>&1 </dev/null
