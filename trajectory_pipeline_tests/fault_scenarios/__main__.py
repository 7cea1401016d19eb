"""The command behind ``make fault-scenarios``: every fault over the whole sample, a row each; exit code 1 if any fails.

python -m trajectory_pipeline_tests.fault_scenarios
python -m trajectory_pipeline_tests.fault_scenarios rate_limit truncated --markdown moods.md
"""

import sys
import tempfile
import time
from pathlib import Path

import click

from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.demo.letta_sample.load import sample_partitions
from trajectory_pipeline.demo.simulated_judge import FAULTS, SimulatedJudge
from trajectory_pipeline_tests.conftest import FAST
from trajectory_pipeline_tests.fault_scenarios.scenarios import ALWAYS, every_mood
from trajectory_pipeline_tests.fault_scenarios.sweep import Told, capture

STATUSES = ("judged", "insufficient_evidence", "not_eligible", "failed", "quarantined", "deferred_budget", "not asked")
HEADINGS = (
    "mood",
    "strikes",
    "calls",
    "lost",
    "server's USD",
    "accounts' USD",
    "before: judged / insufficient / not eligible / failed / quarantined / deferred / not asked",
    "calls to heal",
    "days",
    "after: judged / insufficient / not eligible",
    "seconds",
    "holds",
)


def row(told: Told) -> tuple[str, ...]:
    """Return a mood as cells of the table."""
    return (
        f"`{told.mood}`",
        "every call" if told.mood.every == ALWAYS else f"every {told.mood.every}rd",
        str(told.calls),
        str(told.lost),
        f"{told.charged:.4f}",
        f"{told.booked:.4f}",
        " / ".join(str(told.before[status]) for status in STATUSES),
        str(told.healing_calls),
        str(told.days),
        " / ".join(str(told.after[status]) for status in STATUSES[:3]),
        f"{told.seconds:.0f}",
        f"no: {len(told.broken)}" if told.broken else "yes",
    )


def line(cells: tuple[str, ...]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


@click.command()
@click.argument("faults", nargs=-1, type=click.Choice(list(FAULTS)))
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="File for the table.")
def main(faults: tuple[str, ...], markdown: Path | None) -> None:
    """Judge the whole sample under each of the FAULTS (by default all), then with a healthy judge."""
    lines = [line(HEADINGS), line(("---",) * len(HEADINGS))]
    print("\n".join(lines), flush=True)
    broken, began = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder, SimulatedJudge.start() as judge:
        server_folder = Path(folder) / "server"
        try:
            with embedded_postgres.start(server_folder, settings=FAST) as server:
                sweep = capture(server, judge, Path(folder), list(sample_partitions()))
                for mood in every_mood():
                    if faults and mood.fault is not None and mood.fault not in faults:
                        continue
                    told = sweep.under(mood)
                    lines.append(line(row(told)))
                    print(lines[-1], flush=True)
                    for sentence in told.broken[:10]:
                        print(f"  {sentence}", flush=True)
                    broken += bool(told.broken)
        finally:
            embedded_postgres.remove(server_folder)
    if markdown is not None:
        markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines) - 2} moods in {time.monotonic() - began:.0f} s, {broken} broken", flush=True)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
