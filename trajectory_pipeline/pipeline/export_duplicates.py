"""Which runs a dataset leaves out since they say what another run in it says, or almost.

A text counts from when its run is written: a run without a place in the form, or that the target refuses, keeps nobody
out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trajectory_pipeline.exports.source import json_bytes
from trajectory_pipeline.pipeline.export_encoder import EncodedRun
from trajectory_pipeline.runtime.private_files import create_file
from trajectory_pipeline.storage.scratch.text_index import TextIndex

SAME_TEXT, SIMILAR_TEXT = "the same text as an earlier run", "almost the same text as an earlier run"


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Why a run is left out, and the run in the dataset that it is like."""

    reason: str
    kept_run_id: str


class WrittenTexts:
    """What the runs in a dataset say; ``close`` must be called."""

    def __init__(self, path: Path, threshold: float | None) -> None:
        """Find runs that say the same, or that are at least so similar; these are named in a file at ``path``."""
        self._runs = TextIndex(path.parent)
        self._path, self._threshold = path, threshold
        self._near: Any = None
        self._file: IO[bytes] | None = None

    def find(self, run: EncodedRun) -> Duplicate | None:
        """Return of which run this one is a duplicate; None where it is of none."""
        kept = self._runs.find(run.text_digest)
        if kept is not None:
            return Duplicate(SAME_TEXT, kept)
        near = self._near_duplicates()
        similar = near and near.find(run.outcome, run.signature)
        if similar is None:
            return None
        named = {"run_id": run.selected.run_id, "like_run_id": similar[0], "similarity": round(similar[1], 4)}
        if self._file is not None:
            self._file.write(json_bytes(named) + b"\n")
        return Duplicate(SIMILAR_TEXT, similar[0])

    def add(self, run: EncodedRun) -> None:
        """Take what a run says for written."""
        self._runs.add([(run.text_digest, run.selected.run_id)])
        near = self._near_duplicates()
        if near is not None:
            near.keep(run.selected.run_id, run.outcome, run.signature)

    def add_elsewhere(self, run_ids: Mapping[str, str]) -> None:
        """Take texts for written in another part of the dataset: runs by the digests of what they say."""
        self._runs.add(run_ids.items())

    def add_near_elsewhere(self, run_id: str, outcome: str, signature: Any) -> None:
        """Take a run for written in another part of the dataset, as one that others may be almost the same as."""
        self._near_duplicates().keep(run_id, outcome, signature)

    def close(self) -> None:
        """End the file, and remove what was kept."""
        self._runs.close()
        if self._near is not None:
            self._near.close()
        if self._file is not None:
            self._file.close()

    def _near_duplicates(self) -> Any:
        if self._threshold is not None and self._near is None:
            from trajectory_pipeline.storage.scratch.near_duplicates import NearDuplicates

            self._near = NearDuplicates(self._path.parent, self._threshold)
            self._file = create_file(self._path)
        return self._near
