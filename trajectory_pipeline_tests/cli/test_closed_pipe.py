"""A command whose reader goes away: it ends as the signal would end it, and without a traceback."""

import os
import subprocess
import sys

CODE = "from trajectory_pipeline.cli.console import out\nfor number in range(100_000): out.print(number)"


def test_closed_pipe_is_no_finding_of_a_command() -> None:
    """Code 1 says of several commands that nothing was found."""
    process = subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    os.read(process.stdout.fileno(), 10)
    process.stdout.close()
    told = process.stderr.read()
    assert (process.wait(60), told) == (141, b"")
