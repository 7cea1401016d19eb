#!/bin/sh
# Makes the environment of the image: Python packages exactly as locked, with the package itself as a wheel.
# The Dockerfile runs this file, and `make deploy-check` runs it without a container.
#
#   sh deploy/install.sh /opt/pipeline      (from the project's folder; the folder must not exist)
set -eu
target=$1
"${PYTHON:-python3}" -m venv "$target"
"$target/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r installer.lock
# Bytecode now: the image's file system may be read-only later.
install() { "$target/bin/uv" pip install --system-certs --quiet --compile-bytecode --python "$target/bin/python" --no-deps "$@"; }
install --require-hashes -r deploy/requirements.lock
install --no-build-isolation .
"$target/bin/trajectory-pipeline" --version
