"""What options that filter runs have in common, whatever the command."""

import click

COMPLETED_FROM = click.option(
    "--completed-from",
    "--from",
    "completed_from",
    metavar="TIME",
    help="Ended at this time or later; UTC without an offset.",
)
COMPLETED_TO = click.option("--completed-to", "--to", "completed_to", metavar="TIME", help="Ended before this time.")


def option_names(command: click.Command) -> dict[str, str]:
    """Return the option of each parameter of a command, as a user types it."""
    return {str(parameter.name): parameter.opts[0] for parameter in command.params}
