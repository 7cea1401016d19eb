"""The simulated judge imports neither Dagster nor other packages, except response schema, labels and guard."""

from __future__ import annotations

import ast
from pathlib import Path

import trajectory_pipeline.demo.simulated_judge as package

ALLOWED = {
    "trajectory_pipeline.errors",
    "trajectory_pipeline.demo.letta_code_sample",
    "trajectory_pipeline.demo.letta_sample.labels",
    "trajectory_pipeline.demo.simulated_judge",
    "trajectory_pipeline.judge.response_schema",
    "trajectory_pipeline.runtime.browser_guard",
}


def test_simulated_judge_imports_only_what_is_allowed() -> None:
    assert package.__file__ is not None
    for path in Path(package.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [node.module or ""]
            for name in names:
                assert "dagster" not in name, path.name
                if name.startswith("trajectory_pipeline"):
                    assert any(name == a or name.startswith(f"{a}.") for a in ALLOWED), f"{path.name}: {name}"
