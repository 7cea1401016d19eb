"""The commands ``policy compare``, ``policy check`` and ``policy export``."""

from pathlib import Path

import click

from trajectory_pipeline.cli.connections import open_sinks
from trajectory_pipeline.cli.console import out
from trajectory_pipeline.cli.tables import print_table
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.judge.config import Voter
from trajectory_pipeline.judge.prompt import built_in_prompt
from trajectory_pipeline.judge.prompt_files import write_prompt
from trajectory_pipeline.pipeline.configured_models import judge_config
from trajectory_pipeline.quality.packages import INSTALL, missing_packages
from trajectory_pipeline.settings import load_settings
from trajectory_pipeline.text import pluralize

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group("policy")
def command() -> None:
    """Compare policies by labels; check a policy file; write the built-in prompt to begin from."""


@command.command("compare")
@click.argument("policies", nargs=-1, metavar="[POLICY]...")
def compare_command(policies: tuple[str, ...]) -> None:
    """Compare policies on the labelled runs that each of them judged: quality and cost, with paired intervals.

    A POLICY is a model, a policy id or the beginning of one. The others are compared with the first. Without any: all
    under which labelled runs were judged, with the current one first. `trajectory-pipeline judge-panel` judges runs
    under another policy.

    \b
    Examples:
      trajectory-pipeline policy compare
      trajectory-pipeline policy compare gpt-5-mini 4f0c21
    """  # noqa: D301 - \b keeps click from rewrapping the text
    if missing := missing_packages():
        raise PipelineError(f"Comparing needs {' and '.join(missing)}: {INSTALL}.")
    from trajectory_pipeline.pipeline.compare_policies import compare_stored_policies
    from trajectory_pipeline.quality.comparison_tables import difference_rows, measure_rows

    chosen, comparison = compare_stored_policies(open_sinks().storage.postgres, policies)
    names = {policy.policy_id: policy.name for policy in chosen}
    runs = pluralize(comparison.runs, "labelled run")
    out.print(f"{runs} that each policy judged, {pluralize(comparison.labels, 'label')}")
    header, *rows = measure_rows(comparison, names)
    print_table(header, rows, whole=header[1:])
    first, *others = comparison.policies
    for other in others:
        out.print(f"{names[other.policy_id]} compared with {names[first.policy_id]}, run by run:")
        header, *rows = difference_rows(other)
        print_table(header, rows)
        out.print(f"It alone agrees with {other.right_alone} labels, and the first alone with {other.first_alone}.")


@command.command("check")
@click.argument("file", type=_FILE)
def check_command(file: Path) -> None:
    """Read a policy file with its prompts, and say what it describes; nothing is called."""
    settings = load_settings()
    judge = judge_config(settings.judge.model_copy(update={"policy_file": file}), settings.privacy, settings.budget)
    out.print(f"Policy {judge.policy.policy_id}: {judge.policy.model}")
    for voter in judge.voters or (Voter(judge),):
        prompt = voter.judge.prompt
        step = ", in a second step" if voter.escalated else ""
        out.print(
            f"  {voter.judge.model}: {pluralize(voter.samples, 'vote')}{step}; policy {voter.judge.policy.policy_id}"
        )
        out.print(
            f"    rules and questions {prompt.version}, rubric {prompt.rubric_version}, answer {prompt.answer_version}"
        )
        out.print(f"    {prompt.overhead_tokens} tokens of a prompt before its transcript, by estimate")


@command.command("export")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def export_command(folder: Path) -> None:
    """Write the built-in rules, rubric, questions and answer schema into a folder, to change and name in a policy file.

    A file that you do not change can be removed: the built-in one is used in its place.
    """
    for path in write_prompt(built_in_prompt(), folder):
        out.print(str(path))
