"""The kinds of sources that ``TRAJECTORY_SOURCES`` can name, and opening one."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from trajectory_pipeline.errors import SettingsError
from trajectory_pipeline.settings import SourceSpec
from trajectory_pipeline.source_protocol import Source
from trajectory_pipeline.sources.atif import AtifSource
from trajectory_pipeline.sources.letta_api import LettaApiSource
from trajectory_pipeline.sources.letta_code.source import LettaCodeSource


class Access(NamedTuple):
    """What a source may need besides its place."""

    api_key: str | None = None
    requests_per_minute: int = 300


def _letta_code(spec: SourceSpec, _: Access) -> Source:
    folders = tuple(Path(folder.strip()).expanduser() for folder in spec.place.split(",") if folder.strip())
    return LettaCodeSource(spec.name, folders)


def _atif(spec: SourceSpec, _: Access) -> Source:
    return AtifSource(spec.name, spec.place)


def _letta_api(spec: SourceSpec, access: Access) -> Source:
    return LettaApiSource(spec.name, spec.place, access.api_key, access.requests_per_minute)


KINDS: dict[str, Callable[[SourceSpec, Access], Source]] = {
    "letta_code": _letta_code,
    "atif": _atif,
    "letta_api": _letta_api,
}


def open_source(spec: SourceSpec, access: Access) -> Source:
    """Return a source; nothing is read yet. A kind ``module.Class`` is called with the name and the place.

    Raises:
        SettingsError: there is no such kind.
    """
    if spec.kind in KINDS:
        return KINDS[spec.kind](spec, access)
    module, _, name = spec.kind.rpartition(".")
    try:
        source: Source = getattr(import_module(module), name)(spec.name, spec.place)
    except (ImportError, ValueError, AttributeError):
        raise SettingsError(
            f"TRAJECTORY_SOURCES names the kind {spec.kind} for {spec.name}: there is {', '.join(KINDS)}, and any class"
            " that can be imported here, as module.Class."
        ) from None
    return source
