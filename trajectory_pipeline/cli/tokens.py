"""The commands ``tokens create``, ``tokens list`` and ``tokens revoke``."""

from datetime import UTC, datetime, timedelta

import click

from trajectory_pipeline.cli.connections import open_sinks
from trajectory_pipeline.cli.console import err, out
from trajectory_pipeline.cli.tables import print_table
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.schema.enums import TokenScope
from trajectory_pipeline.storage.postgres.service_access import Tenants
from trajectory_pipeline.storage.postgres.service_tokens import (
    ServiceToken,
    create_token,
    list_tokens,
    revoke_token,
    tenants_without_runs,
    token_id_of,
)
from trajectory_pipeline.urls import describe_postgres


@click.group("tokens")
def command() -> None:
    """Make, list and revoke tokens of the service (`trajectory-pipeline serve`)."""


@command.command("create")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in TokenScope]),
    default=[TokenScope.READ.value],
    show_default=True,
    help="What the token allows; give it several times for several.",
)
@click.option("--organization", "organizations", multiple=True, help="Organization whose runs it sees; repeatable.")
@click.option("--agent", "agents", multiple=True, help="Agent whose runs it sees too; repeatable.")
@click.option("--all-tenants", is_flag=True, help="It sees all runs.")
@click.option(
    "--days", default=90, show_default=True, type=click.IntRange(0, 36_500), help="Days that it is valid. 0: for ever."
)
def create_command(
    name: str,
    scopes: tuple[str, ...],
    organizations: tuple[str, ...],
    agents: tuple[str, ...],
    *,
    all_tenants: bool,
    days: int,
) -> None:
    """Make a token and print it, for the only time: it is stored as a hash.

    NAME says what it is for. From the first token on, every request to the service needs one.

    \b
    Examples:
      trajectory-pipeline tokens create "support team" --organization org-1
      trajectory-pipeline tokens create operations --scope read --scope judge --all-tenants
    """  # noqa: D301 - \b keeps click from rewrapping the text
    if all_tenants == bool(organizations or agents):
        raise PipelineError("Say whose runs the token sees: --organization and --agent, or --all-tenants.")
    if not name.isprintable() or not 0 < len(name) <= 100:
        raise PipelineError("NAME must be printable, of 1 to 100 characters.")
    for text in (*organizations, *agents):
        if not text.isprintable() or not text:
            raise PipelineError(f"{text!r} is no id of an organization or agent.")
    tenants = None if all_tenants else Tenants(frozenset(organizations), frozenset(agents))
    lifetime = timedelta(days=days) if days else None
    database = open_sinks().storage.postgres
    token = create_token(database, name, frozenset(map(TokenScope, scopes)), tenants, lifetime)
    err.print(
        f"Token {token_id_of(token)} is stored in {describe_postgres(database.url)}. Keep it like a password; it is not"
        " shown again."
    )
    if tenants is not None and (missing := tenants_without_runs(database, tenants)):
        err.print(f"No run of {', '.join(missing)} is stored so far: check the id if there should be.")
    click.echo(token)


@command.command("list")
def list_command() -> None:
    """List all tokens, the newest first: what each allows, whose runs it sees, and until when."""
    database = open_sinks().storage.postgres
    tokens = list_tokens(database)
    if not tokens:
        out.print(
            f"There is no token in {describe_postgres(database.url)}. On 127.0.0.1 the service can be read without one"
            " until the first is made."
        )
        return
    print_table(("id", "token", "sees"), [_row(token) for token in tokens], whole=("id", "sees"))


@command.command("revoke")
@click.argument("token_id")
def revoke_command(token_id: str) -> None:
    """Revoke a token by its id, at once. Without any valid token left, the service answers nobody."""
    revoke_token(open_sinks().storage.postgres, token_id)
    out.print(f"{token_id} is revoked.")


def _row(token: ServiceToken) -> tuple[str, ...]:
    about = (token.name, " ".join(sorted(token.scopes)), f"made {token.created_at:%Y-%m-%d}", _state(token))
    return token.token_id, "\n".join(about), _sees(token)


def _sees(token: ServiceToken) -> str:
    if token.tenants is None:
        return "all runs"
    return "\n".join(sorted(token.tenants.organizations | token.tenants.agents))


def _state(token: ServiceToken) -> str:
    if token.revoked_at is not None:
        return f"revoked {token.revoked_at:%Y-%m-%d}"
    if token.expires_at is None:
        return "valid"
    word = "valid until" if token.expires_at > datetime.now(UTC) else "expired"
    return f"{word} {token.expires_at:%Y-%m-%d %H:%M} UTC"
