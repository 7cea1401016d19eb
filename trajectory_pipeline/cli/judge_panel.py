"""The command ``judge-panel``: judges given runs under any policy, as many times as asked for."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import click

from trajectory_pipeline.cli.connections import open_sinks
from trajectory_pipeline.cli.console import err, out, step
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.pipeline.configured_models import judge_config
from trajectory_pipeline.pipeline.judge_panel import judge_panel
from trajectory_pipeline.pipeline.judging_estimate import estimate_panel
from trajectory_pipeline.schema.enums import FINAL_STATUSES
from trajectory_pipeline.text import pluralize

_SHOWN_IDS = 5


@click.command("judge-panel")
@click.argument("run_ids", nargs=-1, metavar="[RUN_ID]...")
@click.option(
    "--runs",
    "runs_file",
    type=click.File(encoding="utf-8-sig"),
    metavar="FILE",
    help="Run ids, one a line; - for stdin.",
)
@click.option("--model", help="Judge with this model instead of the one that is set.")
@click.option(
    "--policy",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Judge as this policy file says, instead of TRAJECTORY_JUDGE_POLICY.",
)
@click.option(
    "--repetitions", type=click.IntRange(1, 100), default=1, show_default=True, help="Verdicts of each run in the end."
)
@click.option("--dry-run", is_flag=True, help="Only estimate calls and cost.")
def command(
    run_ids: tuple[str, ...],
    runs_file: TextIO | None,
    model: str | None,
    policy: Path | None,
    repetitions: int,
    *,
    dry_run: bool,
) -> None:
    """Judge given runs under any policy, once or again and again, within the caps.

    The current policy stays as it is, and so do the verdicts that views, reports and files show. Verdicts that exist
    are kept: a panel that was interrupted goes on where it stopped, and nothing is paid for twice.

    \b
    Examples:
      trajectory-pipeline judge-panel --runs panel.txt --model gpt-5-mini --dry-run
      trajectory-pipeline judge-panel --runs panel.txt --repetitions 3

    \b
    Exit code 0  every run has its verdicts
              1  some have none: failed, deferred by a cap, or without a trajectory
              2  settings, sinks or judge are at fault
    """  # noqa: D301 - \b keeps click from rewrapping the text
    panel = list(dict.fromkeys([*run_ids, *_lines(runs_file)]))
    if model and policy:
        raise PipelineError("Give either --model or --policy: a policy file names its models.")
    if not panel:
        raise PipelineError("No run is named: give run ids, or a file of them with --runs.")
    opened = open_sinks()
    settings, changed = opened.settings, bool(model or policy)
    judge = judge_config(
        settings.judge.model_copy(update={"model": model, "policy_file": policy}) if changed else settings.judge,
        settings.privacy,
        settings.budget,
    )
    if dry_run:
        estimate = estimate_panel(panel, repetitions, opened.storage, judge, now=datetime.now(UTC))
        for sentence in estimate.sentences():
            out.print(sentence)
        _print_missing(estimate.missing)
        return
    with step(f"Judging {pluralize(len(panel), 'run')}") as progress:
        result = judge_panel(panel, repetitions, opened.storage, judge, progress=progress)
    wanted, final = repetitions * len(panel), sum(result.statuses[status] for status in FINAL_STATUSES)
    statuses = ", ".join(f"{number} {status}" for status, number in result.statuses.most_common())
    outcomes = ", ".join(f"{number} {outcome}" for outcome, number in result.outcomes.most_common())
    out.print(f"Policy {result.policy_id}: {statuses or 'no verdict'}{f' ({outcomes})' if outcomes else ''}.")
    out.print(
        f"{result.reused} were there already; {pluralize(result.stats.calls, 'call')}, {result.stats.cost_usd:f} USD."
    )
    _print_missing(result.missing)
    sys.exit(0 if final == wanted else 1)


def _lines(file: TextIO | None) -> list[str]:
    try:
        return [line.strip() for line in file if line.strip()] if file else []
    except UnicodeDecodeError as error:
        raise PipelineError(f"The file of run ids cannot be read as UTF-8 text: {error}.") from None


def _print_missing(run_ids: list[str]) -> None:
    if run_ids:
        shown = ", ".join(run_ids[:_SHOWN_IDS]) + (", …" if len(run_ids) > _SHOWN_IDS else "")
        missing = pluralize(len(run_ids), "run")
        err.print(f"{missing} without a trajectory, or deleted at the source: {shown}", style="red")
