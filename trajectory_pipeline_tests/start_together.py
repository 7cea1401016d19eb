"""Programs in processes of their own that begin what is tested at the same moment."""

import subprocess
import sys
import textwrap
from collections.abc import Sequence


def told_by(programs: Sequence[str]) -> list[str]:
    """Run programs that print ``ready``, call ``input()`` and then begin; return what each printed after that."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for program in programs
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.communicate(timeout=120)[0] for process in started]
