"""The project's ``workspace.yaml``, with one code server for each entry: webserver and daemon share them.

With the file itself, each of them loads the definitions in a process of its own, and the daemon does so again every
minute.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajectory_pipeline.errors import SettingsError


@dataclass(frozen=True)
class SharedWorkspace:
    """A workspace file that names code servers alone, and the commands that start those of the project.

    Attributes:
        file: for webserver and daemon.
        code_servers: one command for each entry that Dagster would load by itself.
    """

    file: Path
    code_servers: tuple[tuple[str, ...], ...]


@contextmanager
def shared_workspace(workspace: Path) -> Iterator[SharedWorkspace]:
    """Yield the shared form of a ``workspace.yaml``: each of its entries, with sockets beside it.

    Raises:
        SettingsError: Dagster cannot read the file; the text names it.
    """
    from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin

    with tempfile.TemporaryDirectory(prefix="dagster-") as folder:
        entries: list[dict[str, Any]] = []
        commands: list[tuple[str, ...]] = []
        for origin in _origins(workspace):
            entry: dict[str, Any] = {"location_name": origin.location_name}
            if isinstance(origin, ManagedGrpcPythonEnvCodeLocationOrigin):
                entry["socket"] = str(Path(folder) / f"code-server-{len(commands)}")
                commands.append(_command(origin.loadable_target_origin, origin.location_name, entry["socket"]))
            else:
                # A server of the user's own.
                entry |= {"host": origin.host, "port": origin.port, "socket": origin.socket, "ssl": origin.use_ssl}
                entry["additional_metadata"] = origin.additional_metadata
            entries.append({"grpc_server": {name: value for name, value in entry.items() if value is not None}})
        file = Path(folder) / "workspace.yaml"
        file.write_text(json.dumps({"load_from": entries}))
        yield SharedWorkspace(file, tuple(commands))


def _origins(workspace: Path) -> list[Any]:
    from dagster._core.workspace.load_target import WorkspaceFileTarget

    try:
        return list(WorkspaceFileTarget(paths=[str(workspace)]).create_origins())
    except Exception as error:
        # Dagster raises errors of many classes, those of its YAML parser included.
        reason = " ".join(str(error).split())
        raise SettingsError(f"Dagster cannot read {workspace}: {reason}. Correct the file.") from error


def _command(target: Any, name: str, socket: str) -> tuple[str, ...]:
    served = [*target.get_cli_args(), "--location-name", name, "--socket", socket, "--log-level", "warning"]
    if target.executable_path:
        # Runs are then executed by that environment too, as Dagster does it.
        served.append("--use-python-environment-entry-point")
    return (target.executable_path or sys.executable, "-W", "ignore", "-m", "dagster", "code-server", "start", *served)
