"""The command ``batches``: lists the batches of calls at the judge's provider, cancels one, or gives it up."""

import click

from trajectory_pipeline.cli.connections import open_sinks
from trajectory_pipeline.cli.console import out
from trajectory_pipeline.cli.tables import print_table
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.pipeline.configured_models import judge_config
from trajectory_pipeline.pipeline.keep_batches import cancel_batch, forget_batch, poll_batches
from trajectory_pipeline.storage.postgres.judge_batches import JudgeBatch, open_batches


@click.command("batches")
@click.option("--last", default=20, show_default=True, type=click.IntRange(1, 1000), help="How many to list.")
@click.option("--poll", is_flag=True, help="First ask the provider, as the sensor does.")
@click.option("--cancel", metavar="ID", help="Cancel this batch at the provider; what is answered by then is booked.")
@click.option(
    "--forget", metavar="ID", help="Give up a batch that the provider does not know any more: its lines count as lost."
)
def command(last: int, cancel: str | None, forget: str | None, *, poll: bool) -> None:
    """List the batches of calls at the judge's provider, the newest first.

    An ID is that of the list or the provider's own.

    \b
    Examples:
      trajectory-pipeline batches --poll
      trajectory-pipeline batches --cancel batch_6871f
    """  # noqa: D301 - \b keeps click from rewrapping the text
    if cancel and forget:
        raise PipelineError("Take one of --cancel and --forget.")
    opened = open_sinks()
    settings = opened.settings
    if poll or cancel or forget:
        judge = judge_config(settings.judge, settings.privacy, settings.budget)
        if cancel or forget:
            act, batch_id = (cancel_batch, cancel) if cancel else (forget_batch, forget)
            out.print(act(opened.storage, judge, str(batch_id)))
            return
        for polled in poll_batches(opened.storage, judge):
            out.print(polled.seen)
    with open_batches(opened.storage.postgres) as store:
        batches, waiting = store.latest(last), store.submitted_verdicts()
    if not batches:
        out.print("There was no batch yet: TRAJECTORY_JUDGE_MODE=batch submits them.")
        return
    _print(batches)
    out.print(f"{waiting} verdicts wait for a batch.")


def _print(batches: list[JudgeBatch]) -> None:
    print_table(
        ("batch", "provider's id", "state", "at provider", "lines", "answered", "usd", "begun", "note"),
        [_row(batch) for batch in batches],
        whole=("batch", "provider's id"),
    )


def _row(batch: JudgeBatch) -> tuple[str, ...]:
    usd = batch.reserved_usd if batch.booked_usd is None else batch.booked_usd
    return (
        batch.batch_id,
        batch.provider_batch_id or "",
        batch.state,
        batch.provider_status or "",
        str(batch.lines),
        "" if batch.completed is None else str(batch.completed),
        "" if usd is None else f"{'at most ' if batch.booked_usd is None else ''}{usd:.6f}",
        f"{batch.created_at:%Y-%m-%d %H:%M}",
        batch.note or "",
    )
