#!/bin/sh
# Writes the secrets of deploy/compose.yaml into deploy/secrets, with new passwords. Existing files stay as they are.
#
#   LETTA_PG_URI=postgresql://reader:...@host:5432/letta OPENAI_API_KEY=sk-... sh deploy/make_secrets.sh
#
# Containers read the files under another user, so each file is readable; the folder is closed to other users.
set -eu
: "${LETTA_PG_URI:?is needed: the Postgres of the Letta server, as seen from a container}"
folder=$(dirname "$0")/secrets
mkdir -p "$folder"
chmod 0700 "$folder"
put() {
    [ -e "$folder/$1" ] || printf '%s' "$2" > "$folder/$1"
    chmod 0444 "$folder/$1"
}
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
put trajectory_db_password "$(random)"
put dagster_db_password "$(random)"
put trajectory_database_url "postgresql://trajectory:$(cat "$folder/trajectory_db_password")@trajectory-db:5432/trajectory"
put dagster_pg_url "postgresql+psycopg2://dagster:$(cat "$folder/dagster_db_password")@dagster-db:5432/dagster"
put letta_pg_uri "$LETTA_PG_URI"
# Empty where there is no judge.
put openai_api_key "${OPENAI_API_KEY:-}"
put s3_access_key "${AWS_ACCESS_KEY_ID:-trajectory}"
put s3_secret_key "${AWS_SECRET_ACCESS_KEY:-$(random)}"
echo "The secrets are in $folder."
