"""The command ``python -m trajectory_pipeline.demo.simulated_judge``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trajectory_pipeline.demo.simulated_judge.faults import fault_table_markdown, fault_table_text
from trajectory_pipeline.demo.simulated_judge.prices import PRICE_TABLE
from trajectory_pipeline.demo.simulated_judge.process import is_loopback, serve
from trajectory_pipeline.errors import JudgeError

_EPILOG = """\
It fails on request, by the first of these that is present:
  a request header     x-simulate: rate_limit;retry_after=2
  the model's name     simulated-judge:rate_limit;retry_after=2
  POST /control/faults [{{"fault": "rate_limit", "params": {{}}, "times": 3, "every": null, "match": null}}]
GET and DELETE /control/faults show and clear the planned faults; GET and DELETE /control/calls show and reset its
usage log.

Its prices are made up; a pipeline that asks it finds them with TRAJECTORY_PRICES={prices}

Faults, with their parameters:
{table}
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trajectory_pipeline.demo.simulated_judge",
        description="Serve the OpenAI API on this machine; the answers come from simple rules instead of a model.",
        epilog=_EPILOG.format(table=fault_table_text(), prices=PRICE_TABLE),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="0: any free port (default)")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="delay of each answer")
    parser.add_argument("--ready-file", type=Path, metavar="PATH", help="write the URL there when the server is ready")
    parser.add_argument(
        "--exit-with-parent", action="store_true", help="exit when standard input closes or the parent ends"
    )
    parser.add_argument("--list-faults", action="store_true", help="print the table of faults as Markdown and exit")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.list_faults:
        print(fault_table_markdown())
        return 0
    if not is_loopback(chosen.host):
        parser.error(f"--host {chosen.host}: the simulated judge serves this machine only; use 127.0.0.1")
    if chosen.latency < 0:
        parser.error("--latency cannot be negative")
    try:
        serve(
            chosen.host,
            chosen.port,
            latency=chosen.latency,
            ready_file=chosen.ready_file,
            exit_with_parent=chosen.exit_with_parent,
        )
    except JudgeError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
