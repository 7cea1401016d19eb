"""The command behind ``make fault-scenarios``: every fault over the whole sample, a row each; exit code 1 if any fails.

python -m trajectory_pipeline_tests.fault_scenarios
python -m trajectory_pipeline_tests.fault_scenarios rate_limit truncated --markdown scenarios.md
"""

import sys
import tempfile
import time
from pathlib import Path

import click

from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.demo.simulated_judge import FAULTS, SimulatedJudge
from trajectory_pipeline_tests.conftest import FAST
from trajectory_pipeline_tests.fault_scenarios.scenarios import ALWAYS, all_scenarios
from trajectory_pipeline_tests.fault_scenarios.sweep import ScenarioResult, capture
from trajectory_pipeline_tests.letta_sample import sample_partitions

STATUSES = ("judged", "insufficient_evidence", "not_eligible", "failed", "quarantined", "deferred_budget", "not asked")
HEADINGS = (
    "fault",
    "applies to",
    "calls",
    "lost",
    "server's USD",
    "our USD",
    "before: judged / insufficient / not eligible / failed / quarantined / deferred / not asked",
    "calls to recover",
    "days",
    "after: judged / insufficient / not eligible",
    "seconds",
    "contract holds",
)


def row(result: ScenarioResult) -> tuple[str, ...]:
    """Return a scenario as cells of the table."""
    return (
        f"`{result.scenario}`",
        "every call" if result.scenario.every == ALWAYS else f"every {result.scenario.every}rd",
        str(result.calls),
        str(result.lost),
        f"{result.charged:.4f}",
        f"{result.booked:.4f}",
        " / ".join(str(result.before[status]) for status in STATUSES),
        str(result.recovery_calls),
        str(result.days),
        " / ".join(str(result.after[status]) for status in STATUSES[:3]),
        f"{result.seconds:.0f}",
        f"no: {len(result.violations)}" if result.violations else "yes",
    )


def line(cells: tuple[str, ...]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


@click.command()
@click.argument("faults", nargs=-1, type=click.Choice(list(FAULTS)))
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="File for the table.")
def main(faults: tuple[str, ...], markdown: Path | None) -> None:
    """Judge the whole sample with each of the FAULTS (by default all), then with a healthy judge."""
    lines = [line(HEADINGS), line(("---",) * len(HEADINGS))]
    print("\n".join(lines), flush=True)
    failed, started = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder, SimulatedJudge.start() as judge:
        server_folder = Path(folder) / "server"
        try:
            with embedded_postgres.start(server_folder, settings=FAST) as server:
                sweep = capture(server, judge, Path(folder), list(sample_partitions()))
                for scenario in all_scenarios():
                    if faults and scenario.fault is not None and scenario.fault not in faults:
                        continue
                    result = sweep.run(scenario)
                    lines.append(line(row(result)))
                    print(lines[-1], flush=True)
                    for violation in result.violations[:10]:
                        print(f"  {violation}", flush=True)
                    failed += bool(result.violations)
        finally:
            embedded_postgres.remove(server_folder)
    if markdown is not None:
        markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines) - 2} scenarios in {time.monotonic() - started:.0f} s, {failed} failed", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
