#!/bin/sh
# Reads secrets from files: NAME_FILE=/run/secrets/name becomes NAME=<the file's content>, for the variables below.
# Where both are set, or a file cannot be read, nothing starts.
set -eu
for name in LETTA_PG_URI TRAJECTORY_DATABASE_URL DAGSTER_PG_URL OPENAI_API_KEY TRAJECTORY_EMBEDDING_API_KEY \
    TRAJECTORY_REDACTION_KEY TRAJECTORY_WEBHOOK_URL AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY \
    DAGSTER_CELERY_BROKER_URL DAGSTER_CELERY_BACKEND_URL; do
    eval "file=\${${name}_FILE:-}"
    [ -n "$file" ] || continue
    if eval "[ -n \"\${$name:-}\" ]"; then
        echo "Both $name and ${name}_FILE are set: unset one of them." >&2
        exit 1
    fi
    [ -r "$file" ] || { echo "${name}_FILE names $file, which this user cannot read: check the secret's mode." >&2; exit 1; }
    value=$(cat "$file")
    export "$name=$value"
    unset "${name}_FILE"
done
exec "$@"
