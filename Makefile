# Two commands do everything: `make demo` and `make test`. `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Compiled once and kept: a hundred packages are imported by every process.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-once dev test test-fast test-heavy browser screenshots simulate fault-scenarios bench bench-full deploy-check storage-check celery lint types imports site docs architecture lock clean

help:  ## This list.
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | awk -F '\t' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY)  ## Make the environment in .venv, with exactly the locked packages.

$(READY): installer.lock requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11, 3.12 or 3.13 is needed; {sys.executable} is {v[0]}.{v[1]}. Say which one: make PYTHON=python3.12 …")'
	@echo "Making the environment in $(VENV) (first time only: about 130 packages) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed; on Debian: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r installer.lock
	@# pip knows mirrors and proxies that uv does not: slower, and there if uv cannot reach the index.
	@$(BIN)/uv pip install --system-certs --python $(BIN)/python --no-deps --require-hashes -r requirements.lock \
		|| $(BIN)/python -m pip install --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --system-certs --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable . \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

demo: setup  ## Show all of it with real rows: Dagster UI, embedded Postgres, simulated judge. Stays until Ctrl-C.
	@exec $(BIN)/trajectory-pipeline demo

demo-once: setup  ## The same without staying; exit code 0 only if it is complete.
	@exec $(BIN)/trajectory-pipeline demo --once

dev: setup  ## The Dagster UI on your own databases (see the README).
	@exec $(BIN)/trajectory-pipeline dev

test: setup  ## All tests but the heavy ones, on two cores (ten to twenty minutes).
	@exec $(BIN)/python -m pytest -n 2 --dist loadfile

test-heavy: setup  ## The heavy tests: crashes of processes, other tools that read what this one writes (CI runs them too).
	@exec $(BIN)/python -m pytest --heavy -n 2 --dist loadfile

test-fast: setup  ## The tests that start no server and no process (half a minute): run it between two edits.
	@exec $(BIN)/python -m pytest --fast -q -n 2 --dist worksteal

browser: setup  ## The tests that drive pages in a real Chromium (which must be installed); screenshots in data/screenshots.
	@exec $(BIN)/python -m pytest --browser trajectory_pipeline_tests/browser

screenshots: browser  ## Renew the pictures of the documentation (docs/images) from what those tests saw.
	@for image in docs/images/*.png; do cp data/screenshots/$$(basename $$image) $$image; done

SEEDS ?= 200
FIRST_SEED ?= 1
JOBS ?= 1
simulate: setup  ## Random histories of a source and a crashing pipeline: make simulate SEEDS=1000 JOBS=2
	@SIMULATION_SEEDS=$(SEEDS) SIMULATION_FIRST_SEED=$(FIRST_SEED) \
		$(BIN)/python -m pytest -n $(JOBS) --dist load trajectory_pipeline_tests/simulation

fault-scenarios: setup  ## Judge the whole sample under every fault of a judge, and heal (20 to 40 minutes; docs/fault-scenarios.md).
	@$(BIN)/python -m trajectory_pipeline_tests.fault_scenarios

bench: setup  ## Measure speed, memory and reading back, each beside a reference (about ten minutes; see benchmarks/README.md).
	@$(BIN)/python -m benchmarks --json data/benchmarks.json

bench-full: setup  ## The same at full size: an hour or two, and 40 GB of disk in TMPDIR.
	@$(BIN)/python -m benchmarks --size full --json data/benchmarks.json

# What the deployment is checked with: more packages, in the same versions where both have them.
DEPLOY_READY := $(VENV)/.deploy-ready
$(DEPLOY_READY): $(READY) deploy/checks.lock
	@$(BIN)/uv pip install --system-certs --quiet --python $(BIN)/python --no-deps --require-hashes -r deploy/checks.lock \
		|| $(BIN)/python -m pip install --disable-pip-version-check --no-deps --require-hashes -r deploy/checks.lock
	@touch $(DEPLOY_READY)

deploy-check: $(DEPLOY_READY)  ## The files in deploy/, by the validators of their formats, and the image's steps as plain commands.
	@exec $(BIN)/python -m pytest -q trajectory_pipeline_tests/deploy/check_validators.py

AZURITE := $(VENV)/azurite/node_modules/.bin/azurite-blob
$(AZURITE):
	@npm install --silent --no-audit --no-fund --prefix $(VENV)/azurite azurite@3.37.0

storage-check: $(DEPLOY_READY) $(AZURITE)  ## The storage layer on four servers of S3, Google Cloud Storage and Azure (needs npm).
	@exec $(BIN)/python -m pytest -q trajectory_pipeline_tests/object_storage/check_storages.py

PARTITIONS ?= 48
KILLS ?= 6
WORKERS ?= 2
celery: $(DEPLOY_READY)  ## Celery workers without a shared disk, killed at random (needs redis-server): make celery PARTITIONS=2000
	@DISTRIBUTED_PARTITIONS=$(PARTITIONS) DISTRIBUTED_KILLS=$(KILLS) DISTRIBUTED_WORKERS=$(WORKERS) \
		$(BIN)/python -m pytest -s trajectory_pipeline_tests/distributed/check_kills.py

lint: setup  ## Linter and formatter, as CI runs them.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup  ## Type checker, as CI runs it.
	@$(BIN)/mypy

imports: setup  ## Import contracts (layers of the packages), as CI runs them.
	@$(BIN)/lint-imports --no-cache

architecture: setup  ## Remake the picture in docs/architecture.md from the imports, and docs/modules.md from the docstrings.
	@$(BIN)/python docs/draw_architecture.py docs/architecture.md

site: setup  ## Build the documentation as a site in site/; a broken link is an error.
	@$(BIN)/zensical build --clean --strict

docs: setup  ## Write the generated pages in docs/ anew from the declarations.
	@$(BIN)/python docs/reference_pages.py docs

lock: setup  ## Write requirements.lock and installer.lock anew, with the newest packages that fit together.
	@echo uv | $(BIN)/uv pip compile --system-certs --quiet --universal --generate-hashes --python-version 3.11 \
		--custom-compile-command 'make lock' - -o installer.lock
	@$(BIN)/uv pip compile --system-certs --quiet --universal --generate-hashes --python-version 3.11 --group dev \
		--custom-compile-command 'make lock' pyproject.toml -o requirements.lock
	@# The same versions again: what the image holds, and what the deployment is checked with.
	@$(BIN)/uv pip compile --system-certs --quiet --universal --generate-hashes --python-version 3.11 --all-extras \
		--group image -c requirements.lock --custom-compile-command 'make lock' pyproject.toml -o deploy/requirements.lock
	@$(BIN)/uv pip compile --system-certs --quiet --universal --generate-hashes --python-version 3.11 \
		--group deploy -c requirements.lock --custom-compile-command 'make lock' -o deploy/checks.lock

clean: setup  ## Remove the demonstration's data and the environment.
	@$(BIN)/trajectory-pipeline clean --yes --demo
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
