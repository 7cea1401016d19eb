"""The command ``label``: shows a run, asks what came of it, and shows the verdict only then."""

import getpass
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import click

from trajectory_pipeline.cli.connections import open_sinks
from trajectory_pipeline.cli.console import err, out
from trajectory_pipeline.cli.render_trajectory import plain_text, render_run
from trajectory_pipeline.cli.show import chain_of, trajectory_row
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.schema.enums import (
    Criterion,
    FailureOwner,
    LabelSource,
    Outcome,
    RequirementStatus,
    SamplingDesign,
)
from trajectory_pipeline.schema.labels import NO_STEP, RATINGS, Label, check_label, requirement_item
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.label_samples import QueuedRun, queue
from trajectory_pipeline.storage.postgres.labels import Key, withdraw_labels, write_labels
from trajectory_pipeline.storage.postgres.summaries import outcome_of_run
from trajectory_pipeline.text import pluralize

_OUTCOMES = {"s": Outcome.SUCCESS, "p": Outcome.PARTIAL_SUCCESS, "f": Outcome.FAILURE, "u": Outcome.UNKNOWN}
_OWNERS = {
    "a": FailureOwner.AGENT,
    "t": FailureOwner.TOOL,
    "l": FailureOwner.LLM_PROVIDER,
    "i": FailureOwner.INFRASTRUCTURE,
    "u": FailureOwner.USER,
    "s": FailureOwner.SPECIFICATION,
}
_STATUSES = {
    "m": RequirementStatus.MET,
    "u": RequirementStatus.UNMET,
    "x": RequirementStatus.NOT_APPLICABLE,
    "i": RequirementStatus.INSUFFICIENT_EVIDENCE,
}
_SKIP, _BACK, _QUIT, _WHO = "k", "b", "q", "w"
_COMMANDS = {_SKIP: "skip", _BACK: "back to the last run", _QUIT: "quit", _WHO: "who am I"}


class _Quit(Exception):  # noqa: N818 - it ends the session, and is no error
    """The person wants to stop."""


@dataclass
class _Session:
    """One person labelling runs; ``done`` are the runs that were labelled in it, each with its labels' keys."""

    database: TrajectoryDatabase
    annotator: str
    criteria: Sequence[str]
    detailed: bool
    done: list[tuple[int, list[Key]]] = field(default_factory=list)


@click.command("label")
@click.argument("run_ids", nargs=-1)
@click.option("--annotator", help="Who you are. Default: the name of your account.")
@click.option("--sample", help="Only runs of this sample. Default: of all samples.")
@click.option("--detailed", is_flag=True, help="Ask for requirements, the first wrong step and ratings too.")
@click.option("--criterion", "criteria", multiple=True, help="Also ask for this criterion of your own, as yes or no.")
def command(
    run_ids: tuple[str, ...], annotator: str | None, sample: str | None, criteria: tuple[str, ...], *, detailed: bool
) -> None:
    """Label runs: those that are named, else those that `labels sample` drew and you have not labelled.

    Shows what happened, asks what came of it, and shows the verdict only when you have answered. Each run is stored
    when you are done with it: stop at any time, and go on later.
    """
    if not sys.stdin.isatty():
        raise PipelineError("Labelling needs a terminal: use `trajectory-pipeline labels import` for a file of labels.")
    database = open_sinks().storage.postgres
    session = _Session(database, (annotator or getpass.getuser()).strip(), criteria, detailed)
    _check_session(session)
    waiting: list[QueuedRun | str] = list(run_ids) if run_ids else list(queue(database, session.annotator, sample))
    if not waiting:
        raise PipelineError(
            "There is nothing to label: draw runs with `trajectory-pipeline labels sample --count 50`, or name them."
        )
    out.print(f"Labelling as {session.annotator}: {len(waiting)} runs")
    try:
        _label_all(session, waiting)
    except (_Quit, click.Abort, EOFError, KeyboardInterrupt):
        out.print()
    out.print(f"{len(session.done)} runs labelled. Go on later with the same command.")


def _check_session(session: _Session) -> None:
    """Refuse a name or a criterion that no label can have, before anyone answers."""
    for criterion in (Criterion.OUTCOME, *session.criteria):
        value = Outcome.UNKNOWN if criterion == Criterion.OUTCOME else "yes"
        try:
            check_label(_made(session, "run", criterion, value))
        except ValueError as error:
            raise PipelineError(f"{error}.") from None


def _label_all(session: _Session, waiting: Sequence[QueuedRun | str]) -> None:
    place = 0
    while place < len(waiting):
        one = waiting[place]
        run_id = one if isinstance(one, str) else one.run_id
        row = trajectory_row(session.database, run_id)
        out.print(f"\nRun {place + 1} of {len(waiting)}")
        out.print(render_run(row, *chain_of(session.database, row)), soft_wrap=False)
        answer = _key(session, "What came of it?", {key: word.value for key, word in _OUTCOMES.items()} | _COMMANDS)
        if answer == _SKIP:
            place += 1
        elif answer == _BACK:
            place = _undo(session, place)
        else:
            labels = _ask(session, run_id, row, _OUTCOMES[answer], one)
            if outdated := write_labels(session.database, labels).outdated:
                err.print(f"{pluralize(outdated, 'answer')} not kept: a later label of yours is there.")
            session.done.append((place, [label.key for label in labels]))
            _show_verdict(outcome_of_run(session.database, run_id))
            place += 1


def _undo(session: _Session, place: int) -> int:
    """Withdraw the labels of the run that was labelled last, and return its place."""
    if not session.done:
        out.print("Nothing was labelled yet.")
        return place
    before, keys = session.done.pop()
    withdraw_labels(session.database, keys)
    out.print("The last labels are withdrawn.")
    return before


def _ask(session: _Session, run_id: str, row: dict[str, Any], outcome: Outcome, drawn: QueuedRun | str) -> list[Label]:
    """Ask for all that is said of a run whose outcome is given, and return it as labels."""
    answers: list[tuple[str, str, dict[str, Any]]] = []
    if session.detailed:
        while statement := _line("Requirement of the task (empty: no more)"):
            status = _STATUSES[_key(session, "Its status?", {key: word.value for key, word in _STATUSES.items()})]
            extra = {"statement": statement, "item": requirement_item(statement)}
            answers.append((Criterion.REQUIREMENT, status, extra))
    if outcome in (Outcome.FAILURE, Outcome.PARTIAL_SUCCESS):
        owner = _OWNERS[_key(session, "Who caused the failure?", {key: word.value for key, word in _OWNERS.items()})]
        answers.append((Criterion.FAILURE_OWNER, owner, {}))
        if mode := _line("Failure mode, such as misread_tool_output (empty: none named)"):
            answers.append((Criterion.FAILURE_MODE, mode, {}))
        if session.detailed:
            answers.append((Criterion.FIRST_WRONG_STEP, _wrong_step(row), {}))
    if session.detailed:
        ratings = {str(number): str(number) for number in range(1, 6)}
        answers += [(rating, _key(session, rating.replace("_", " "), ratings), {}) for rating in RATINGS]
    yes_or_no = {"y": "yes", "n": "no"}
    answers += [(name, yes_or_no[_key(session, f"{name}?", yes_or_no)], {}) for name in session.criteria]
    note = _line("Why (empty: no note)")
    answers.append((Criterion.OUTCOME, outcome, {"note": note or None}))
    design: dict[str, Any] = {}
    if isinstance(drawn, QueuedRun):
        design = {
            "sampling_design": SamplingDesign(drawn.design),
            "inclusion_probability": drawn.inclusion_probability,
        }
    labels: dict[Key, Label] = {}
    for criterion, value, extra in answers:
        label = _made(session, run_id, criterion, value, **extra, **design)
        try:
            check_label(label)
        except ValueError as error:
            out.print(f"Not stored: {error}.")
        else:
            # A statement that was given twice counts as given last.
            labels[label.key] = label
    return list(labels.values())


def _made(session: _Session, run_id: str, criterion: str, value: str, **more: Any) -> Label:
    return Label(
        run_id=run_id,
        criterion=criterion,
        annotator=session.annotator,
        source=LabelSource.TERMINAL,
        value=str(value),
        labelled_at=datetime.now(UTC),
        **more,
    )


def _wrong_step(row: dict[str, Any]) -> str:
    """Ask for the turn in which it first went wrong, and return its step."""
    turns = (row["data"] or {}).get("turns", [])
    while True:
        number = _line("First wrong turn, by its number (empty: none)")
        if not number:
            return NO_STEP
        step = turns[int(number) - 1]["step_id"] if number.isdigit() and 0 < int(number) <= len(turns) else None
        if step:
            return str(step)
        out.print("There is no such turn, or it has no step.")


def _key(session: _Session, question: str, keys: dict[str, str]) -> str:
    """Ask until one of these keys is pressed."""
    choices = "  ".join(f"[{key}] {meaning}" for key, meaning in keys.items())
    out.print(f"{question}  {choices}")
    while True:
        key = click.getchar().lower()
        if key in ("\x03", "\x04", _QUIT if _QUIT in keys or "q" not in keys else ""):
            raise _Quit
        if key == _WHO and _WHO in keys:
            out.print(f"You are {session.annotator}.")
        elif key in keys:
            out.print(f"  {keys[key]}")
            return key


def _line(question: str) -> str:
    answer: str = click.prompt(question, default="", show_default=False)
    return answer.strip()


def _show_verdict(verdict: dict[str, Any] | None) -> None:
    if verdict is None or verdict["outcome"] is None:
        out.print("Stored. There is no verdict to compare it with.")
        return
    out.print(f"Stored. The judge ({verdict['judge_model']}) says: {verdict['outcome']}")
    for requirement in verdict["requirements"] or ():
        out.print(plain_text(f"  {requirement['status']}: {requirement['statement']}"))
