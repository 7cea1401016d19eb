"""The contract of the house: three floors, imports downwards only, Dagster on the top floor alone.

Read from the source text, so that an import inside a function or under ``TYPE_CHECKING`` counts as any other. The same
reader is shown small houses with one fault each: a test that cannot fail shows nothing.
"""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trajectory_pipeline
from trajectory_pipeline.settings import setting_fields

PACKAGE = "trajectory_pipeline"
FLOORS = {
    "ground": ("collecting", "errors", "hours", "overlap", "schema", "settings", "sparing"),
    "middle": (
        "embedded_postgres",
        "endpoints",
        "letta",
        "refinement",
        "sample",
        "simulated_judge",
        "sinks",
        "stages",
        "trajectories",
    ),
    "top": ("orchestration", "definitions", "cli"),
}
STOREYS = {
    part: (number, number * 10 + (position if floor == "top" else 0))
    for number, (floor, parts) in enumerate(FLOORS.items())
    for position, part in enumerate(parts)
}
"""Floor and height of each part: on the top floor the later ones stand on the earlier ones, elsewhere they stand beside
each other."""
FORBIDDEN_NAMES = {
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


# ---- reading a house ------------------------------------------------------------------------------------------------


def faults(folder: Path) -> list[str]:
    """Return what is wrong with a package, a sentence each."""
    return [f"{module}: {fault}" for module, path in modules(folder) for fault in _faults_of(module, path)]


def modules(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name, within the package, and the path of each module; ``""`` is the package itself."""
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(module: str, path: Path) -> Iterator[tuple[str, str]]:
    """Yield what a module imports, wherever in its text: module, and name taken from it (empty for all of it)."""
    is_package = path.name == "__init__.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                here = [PACKAGE, *filter(None, module.split("."))]
                base = here[: len(here) - node.level + is_package]
                source = ".".join([*base, *filter(None, [node.module])])
            yield from ((source, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from ((argument.value, "") for argument in node.args[:1] if isinstance(argument, ast.Constant))


def _faults_of(module: str, path: Path) -> Iterator[str]:
    part = module.partition(".")[0]
    if part and part not in STOREYS:
        yield "stands on no floor: name it in FLOORS"
        return
    for name in FORBIDDEN_NAMES & set(module.split(".")):
        yield f"the name {name!r} says nothing"
    # Migrations have Alembic's own form, and are frozen when they are released.
    if module and "migrations" not in module.split("."):
        words = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
        if "Belongs here: " not in words or "oes not belong here: " not in words:
            yield "its docstring does not say what belongs here and what does not"
    floor, height = STOREYS.get(part, (0, 0))
    for source, name in imports(module, path):
        if source.partition(".")[0].startswith("dagster"):
            if floor < STOREYS["orchestration"][0]:
                yield f"imports {source}: Dagster stays on the top floor"
            continue
        if source.partition(".")[0] != PACKAGE:
            continue
        inner = [*source.split(".")[1:], *filter(None, [name])]
        other = inner[0] if inner else ""
        if other not in STOREYS or other == part:
            continue
        if STOREYS[other][1] > height:
            yield f"imports {'.'.join(inner)}: upwards"
        if any(piece.startswith("_") for piece in inner):
            yield f"imports {'.'.join(inner)}: a sibling's private part"
    yield from _private_attributes(module, part, path)


def _private_attributes(module: str, part: str, path: Path) -> Iterator[str]:
    """Find ``sibling._private`` where ``sibling`` is a module of another part."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    siblings: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            for alias in node.names:
                inner = [*(node.module or "").split(".")[1:], alias.name]
                if inner[0] != part:
                    siblings[alias.asname or alias.name] = ".".join(inner)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in siblings
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
        ):
            yield f"uses {siblings[node.value.id]}.{node.attr}: a sibling's private part"


# ---- this house -----------------------------------------------------------------------------------------------------


def test_the_house_stands_as_it_should() -> None:
    assert faults(Path(trajectory_pipeline.__path__[0])) == []


def test_every_part_of_a_floor_is_there() -> None:
    """A floor that names what is gone would let something else take its place unseen."""
    parts = {module.partition(".")[0] for module, _ in modules(Path(trajectory_pipeline.__path__[0]))} - {""}
    assert parts == set(STOREYS)


def test_loading_the_definitions_imports_nothing_heavy() -> None:
    """Every process of Dagster loads them: code server, daemon's probes, each run."""
    loaded = run_python(
        "import json, sys\n"
        "from trajectory_pipeline.definitions import build_defs\n"
        "from trajectory_pipeline.settings import Settings\n"
        "build_defs(Settings()).resolve_all_job_defs()\n"
        "print(json.dumps(sorted(name.partition('.')[0] for name in sys.modules)))"
    )
    assert sorted(HEAVY & set(json.loads(loaded))) == []


def test_loading_the_definitions_prints_nothing() -> None:
    program = "from trajectory_pipeline.definitions import defs\ndefs().resolve_all_job_defs()"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_no_setting_is_read_when_a_module_is_imported() -> None:
    poisoned = {name: "nonsense" for name in aliases() if "KEY" not in name and "MODEL" not in name}
    names = [
        f"{PACKAGE}.{module}"
        for module, _ in modules(Path(trajectory_pipeline.__path__[0]))
        if module and "migrations" not in module and not module.endswith("__main__")
    ]
    told = run_python(
        "import importlib\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "from trajectory_pipeline.errors import SettingsError\n"
        "from trajectory_pipeline.settings import load_settings\n"
        "try: load_settings()\n"
        "except SettingsError: print('poisoned')",
        **poisoned,
    )
    assert told.strip() == "poisoned"


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


# ---- houses with a fault --------------------------------------------------------------------------------------------

DOCSTRING = '"""What it is.\n\nBelongs here: this. Does not belong here: that.\n"""\n'
SOUND = {
    "__init__.py": "",
    "errors.py": DOCSTRING,
    "schema/__init__.py": DOCSTRING,
    "letta/__init__.py": DOCSTRING + "from trajectory_pipeline.errors import PipelineError\n",
    "sinks/__init__.py": DOCSTRING + "_PRIVATE = 1\n",
    "storage/postgres/migrations/versions/0001_first.py": "revision = '0001'\n",
    "stages/__init__.py": DOCSTRING + "from trajectory_pipeline.letta import source\nfrom . import verification\n",
    "orchestration/__init__.py": DOCSTRING
    + "import dagster as dg\nfrom trajectory_pipeline.pipeline import verification\n",
    "cli/__init__.py": DOCSTRING + "from trajectory_pipeline.defs.jobs import JOB_NAME\n",
}


def house(folder: Path, **changed: str) -> Path:
    for name, text in {**SOUND, **{key.replace("__", "/") + ".py": text for key, text in changed.items()}}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_a_sound_house_has_no_fault(tmp_path: Path) -> None:
    assert faults(house(tmp_path)) == []


@pytest.mark.parametrize(
    ("module", "text", "fault"),
    [
        ("letta__source", "import dagster", "letta.source: imports dagster: Dagster stays on the top floor"),
        ("schema__types", "from dagster._core import events", "schema.types: imports dagster._core"),
        ("sinks__parquet", "from dagster_postgres.utils import x", "sinks.parquet: imports dagster_postgres.utils"),
        ("stages__first", "def work():\n    import dagster as dg\n", "stages.first: imports dagster"),
        (
            "letta__source",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dagster import AssetKey\n",
            "letta.source: imports dagster",
        ),
        ("letta__source", "import importlib\nimportlib.import_module('dagster')", "letta.source: imports dagster"),
        (
            "schema__types",
            "from trajectory_pipeline.letta import source",
            "schema.types: imports letta.source: upwards",
        ),
        ("errors", "import trajectory_pipeline.storage.parquet.store", "errors: imports sinks.parquet: upwards"),
        (
            "sinks__parquet",
            "def late():\n    from trajectory_pipeline.defs.assets.assets import CAPTURE\n",
            "sinks.parquet: imports orchestration.assets.CAPTURE: upwards",
        ),
        ("stages__first", "from ..cli import main", "stages.first: imports cli.main: upwards"),
        ("stages__first", "from trajectory_pipeline import definitions", "stages.first: imports definitions: upwards"),
        (
            "orchestration__assets",
            "from trajectory_pipeline.cli import main",
            "orchestration.assets: imports cli.main: upwards",
        ),
        (
            "stages__first",
            "from trajectory_pipeline.storage import _PRIVATE",
            "stages.first: imports sinks._PRIVATE: a sibling's private part",
        ),
        (
            "stages__first",
            "from trajectory_pipeline.storage._inner import name",
            "stages.first: imports sinks._inner.name: a sibling's private part",
        ),
        (
            "stages__first",
            "from trajectory_pipeline.storage import parquet\nparquet._write()",
            "stages.first: uses sinks.parquet._write: a sibling's private part",
        ),
        ("sinks__utils", "", "sinks.utils: the name 'utils' says nothing"),
        ("letta__manager__inner", "", "letta.manager.inner: the name 'manager' says nothing"),
        ("attic", "", "attic: stands on no floor"),
    ],
)
def test_a_fault_is_found(tmp_path: Path, module: str, text: str, fault: str) -> None:
    found = faults(house(tmp_path, **{module: DOCSTRING + text}))
    assert [line for line in found if line.startswith(fault)], found
    assert len(found) == 1


@pytest.mark.parametrize(
    "text", ["", '"""Only what it is."""', '"""Belongs here: all."""', "# Belongs here: all\nx = 1"]
)
def test_a_docstring_that_does_not_say_what_belongs_here_is_found(tmp_path: Path, text: str) -> None:
    found = faults(house(tmp_path, sinks__parquet=text))
    assert found == ["sinks.parquet: its docstring does not say what belongs here and what does not"]


def test_a_part_may_use_its_own_private_parts(tmp_path: Path) -> None:
    own = (
        DOCSTRING
        + "from trajectory_pipeline.storage import _PRIVATE\nfrom trajectory_pipeline.storage._inner import x\n"
    )
    assert faults(house(tmp_path, sinks__parquet=own)) == []
