"""The contract of the source tree that import-linter does not hold: cheap loading, quiet loading, plain names.

The layers themselves are contracts of import-linter in ``pyproject.toml`` (`make imports`).
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trajectory_pipeline
from trajectory_pipeline.settings import setting_fields

pytestmark = pytest.mark.process

PACKAGE = "trajectory_pipeline"
ROOT = Path(trajectory_pipeline.__path__[0])
VAGUE_NAMES = {
    "utils",
    "util",
    "helpers",
    "helper",
    "manager",
    "managers",
    "processor",
    "processors",
    "common",
    "misc",
}
HEAVY = {
    "adbc_driver_manager",
    "adbc_driver_postgresql",
    "aiohttp",
    "alembic",
    "duckdb",
    "fsspec",
    "genai_prices",
    "numpy",
    "openai",
    "orjson",
    "pandas",
    "psycopg",
    "psycopg2",
    "pyarrow",
    "rich",
    "starlette",
    "uvicorn",
}


def modules() -> Iterator[str]:
    """Yield the dotted name, within the package, of each module but the migrations, which have Alembic's own form."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name and "migrations" not in parts:
            yield name


def test_modules_have_no_vague_names() -> None:
    assert [name for name in modules() if VAGUE_NAMES & set(name.split("."))] == []


@pytest.mark.parametrize(
    ("module", "line", "problem"),
    [
        (
            "letta/connection.py",
            "from trajectory_pipeline.storage.parquet import store",
            "trajectory_pipeline.letta is not allowed to import trajectory_pipeline.storage",
        ),
        (
            "schema/types.py",
            "def late():\n    from trajectory_pipeline.letta import catalog",
            "trajectory_pipeline.schema is not allowed to import trajectory_pipeline.letta",
        ),
        (
            "pipeline/capture.py",
            "import dagster",
            "trajectory_pipeline.pipeline is not allowed to import dagster",
        ),
        (
            "cli/doctor.py",
            "from trajectory_pipeline.demo import embedded_postgres",
            "trajectory_pipeline.cli is not allowed to import trajectory_pipeline.demo",
        ),
        ("new_package.py", "", "not listed as layers: - trajectory_pipeline.new_package"),
    ],
)
def test_import_contract_broken_is_reported(tmp_path: Path, module: str, line: str, problem: str) -> None:
    """A contract that cannot fail shows nothing: a copy of the tree with one forbidden import is refused."""
    copy = tmp_path / PACKAGE
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("__pycache__", "*.gz"))
    path = copy / module
    path.write_text((path.read_text(encoding="utf-8") if path.exists() else "") + f"\n\n{line}\n", encoding="utf-8")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert problem in " ".join(done.stdout.split())


def test_import_contracts_hold(tmp_path: Path) -> None:
    done = lint_imports(ROOT.parent)
    assert done.returncode == 0, done.stdout


def lint_imports(folder: Path) -> "subprocess.CompletedProcess[str]":
    config = ROOT.parent / "pyproject.toml"
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", config],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_definitions_import_nothing_heavy() -> None:
    """Every process of Dagster loads them: code server, daemon's probes, each run."""
    loaded = run_python(
        "import json, sys\n"
        "from trajectory_pipeline.definitions import build_defs\n"
        "from trajectory_pipeline.settings import Settings\n"
        "build_defs(Settings()).resolve_all_job_defs()\n"
        "print(json.dumps(sorted(name.partition('.')[0] for name in sys.modules)))"
    )
    assert sorted(HEAVY & set(json.loads(loaded))) == []


def test_service_loads_no_dagster() -> None:
    """Not even where queries are embedded by a provider's model."""
    loaded = run_python(
        "import sys\n"
        "from trajectory_pipeline.cli import serve\n"
        "from trajectory_pipeline.pipeline.configured_models import build_embedder\n"
        "from trajectory_pipeline.serve.app import create_app\n"
        "from trajectory_pipeline.settings import load_settings\n"
        "settings = load_settings()\n"
        "build_embedder(settings.embedding, settings.judge, settings.privacy, settings.budget)[0].model\n"
        "print('dagster' in sys.modules)",
        TRAJECTORY_EMBEDDING_MODEL="any",
        OPENAI_API_KEY="sk-any",
    )
    assert loaded.strip() == "False"


def test_definitions_loading_prints_nothing() -> None:
    program = "from trajectory_pipeline.definitions import defs\ndefs().resolve_all_job_defs()"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_modules_read_no_setting_at_import() -> None:
    poisoned = {name: "nonsense" for name in aliases() if "KEY" not in name and "MODEL" not in name}
    names = [f"{PACKAGE}.{module}" for module in modules() if not module.endswith("__main__")]
    printed = run_python(
        "import importlib\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "from trajectory_pipeline.errors import SettingsError\n"
        "from trajectory_pipeline.settings import load_settings\n"
        "try: load_settings()\n"
        "except SettingsError: print('poisoned')",
        **poisoned,
    )
    assert printed.strip() == "poisoned"


def run_python(program: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(**variables), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment(**variables: str) -> dict[str, str]:
    ours = {*aliases(), "DAGSTER_HOME"}
    return {**{name: value for name, value in os.environ.items() if name not in ours}, **variables}


def aliases() -> list[str]:
    return list(setting_fields())
