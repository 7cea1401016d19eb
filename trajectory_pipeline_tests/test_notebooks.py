"""The notebooks in docs/notebooks run as scripts over the demonstration's data; a failing cell fails the test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trajectory_pipeline_tests.pipeline.materializing import Pipeline

pytestmark = pytest.mark.process
NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.py"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook: Path, story: Pipeline) -> None:
    folder = story.folder.parent
    environment = {**os.environ, "TRAJECTORY_DATA_FOLDER": str(folder)}
    done = subprocess.run(
        [sys.executable, str(notebook)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
