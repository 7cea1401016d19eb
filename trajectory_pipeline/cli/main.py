"""The command group: which commands there are, and how their errors are reported."""

import sys
from importlib import import_module
from pathlib import Path

import click
from dotenv import load_dotenv

from trajectory_pipeline import __version__
from trajectory_pipeline.cli.console import err
from trajectory_pipeline.errors import PipelineError

COMMANDS = {
    "batches": ("batches:command", "List the batches of calls at the judge's provider, or cancel one."),
    "check": ("check:command", "Compare the whole history: source, ledger, Postgres and Parquet."),
    "clean": ("clean:command", "Delete what is in the data folder: embedded server, Parquet, exports, logs."),
    "demo": ("demo:command", "Run the whole pipeline on this machine with sample rows and a scripted judge."),
    "dev": ("dev:command", "Check the settings, then run the Dagster UI and daemon."),
    "doctor": ("doctor:command", "Check settings, source, sinks and judge, and say what to do."),
    "erase": ("erase:command", "Erase content now that was deleted at the source."),
    "explain": ("explain:command", "Explain how a run came to its verdict."),
    "export": ("export:command", "Write runs as a dataset that trainers, viewers and spreadsheets read."),
    "exports": ("exports:command", "List exported datasets, those that hold a run, and pairs to export."),
    "families": ("families:command", "Show how often each kind of task succeeds, with intervals."),
    "judge-panel": ("judge_panel:command", "Judge given runs under any policy, once or again and again."),
    "label": ("label:command", "Label runs: say what came of them, to see how far the judge agrees."),
    "labels": ("labels:command", "Draw runs to label; import and export labels."),
    "load-sample": ("demo:load_sample_command", "Load the sample rows into an empty database."),
    "materialize": ("materialize:command", "Materialize partitions without the UI."),
    "migrate": ("migrate:command", "Create or upgrade the schema `trajectory` in TRAJECTORY_DATABASE_URL."),
    "plan": ("plan:command", "Estimate what judging partitions would ask and cost."),
    "policy": ("policy:command", "Compare policies by labels; check a policy file; export the built-in prompt."),
    "prune": ("prune:command", "Delete partitions now that are older than the retention settings."),
    "quality": ("quality:command", "Measure how far the judge agrees with people and with itself."),
    "report": ("report:command", "Make the report: one HTML page about all trajectories."),
    "search": ("search:command", "Find runs by words and meaning; contrast successes with failures."),
    "serve": ("serve:command", "Serve trajectories over HTTP."),
    "settings": ("settings:command", "List the settings: environment variables and what they mean."),
    "show": ("show:command", "Show the trajectory of a run: turns, tools, errors, outcome and verdict."),
    "tokens": ("tokens:command", "Make, list and revoke tokens of the service."),
    "url": ("url:command", "Print the URL of a database in use, password included."),
}
"""For each command: ``module:attribute`` below this package, and its line in the help."""

_EXAMPLES = """
\b
Try it, with nothing installed and no key:
  trajectory-pipeline demo

\b
Use it, with your own Letta server:
  export LETTA_PG_URI=postgresql://reader:…@letta-db:5432/letta
  export TRAJECTORY_DATABASE_URL=postgresql://me:…@my-db:5432/agents
  trajectory-pipeline migrate
  trajectory-pipeline materialize --from 2026-11-20 --to 2026-11-21
  trajectory-pipeline dev

Settings come from the environment, or from a file .env in the working directory. `trajectory-pipeline settings` lists
them.
"""


class _Commands(click.Group):
    """Imports a command only when it is called: ``--help`` needs neither Dagster nor Arrow."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f"trajectory_pipeline.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        """Report an error that a person can fix as a sentence, with exit code 2 and without a traceback."""
        try:
            return super().invoke(ctx)
        except PipelineError as error:
            err.print("Error", style="red", end=": ")
            err.print(str(error))
            sys.exit(2)


@click.group(cls=_Commands, epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="trajectory-pipeline")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Turn every finished run of an agent into a trajectory, and have an LLM judge it."""
    # The demonstration has data of its own: it must not write to what the settings name.
    if ctx.invoked_subcommand != "demo":
        load_dotenv(Path.cwd() / ".env")


if __name__ == "__main__":
    main()
