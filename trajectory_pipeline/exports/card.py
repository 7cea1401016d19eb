"""The card of a dataset: what it holds, where it is from, and what it lacks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trajectory_pipeline.exports.formats import ExportFormat


def dataset_card(manifest: Mapping[str, Any], digest: str) -> str:
    """Return the card as Markdown, with the header that the Hugging Face Hub reads; ``digest`` is of the files."""
    kind = ExportFormat(manifest["format"])
    judge = manifest["judge"]
    simulated = " **Some verdicts are of a simulated judge: they are no opinion.**" if judge["simulated"] else ""
    return "\n".join(
        [
            *_header(kind, manifest["records"], digest),
            "# Agent trajectories",
            "",
            kind.form.files,
            *_NEEDS[bool(kind.form.columns)],
            "",
            "## Contents",
            "",
            *_table("split", "records", manifest["records"]),
            f"{manifest['selected']} runs passed the filters: {_filters(manifest['filters'])}. `runs.jsonl` names every"
            " run in this dataset with its content digest, and `manifest.json` every file with its digest.",
            "",
            *_section("Left out", "reason", "runs", manifest["left_out"]),
            *_section("What the form does not hold", "what", "times", manifest["losses"]),
            "## Provenance",
            "",
            f"- Made by {manifest['made_by']} at {manifest['created_at']}, from runs of AI agents.",
            f"- Outcomes: verdicts of {', '.join(judge['models']) or 'no judge'}; heuristic where there is none."
            f" {judge['status']}{simulated}",
            f"- Redaction: `{manifest['redaction']['mode']}` (version {manifest['redaction']['version']}). Placeholders"
            " look like `[secret:api_key:3f2a91bc]`. No redaction finds everything.",
            f"- Reasoning of the models is {'included' if manifest['reasoning'] else 'left out'}.",
            f"- Images are {_images(kind, manifest['images'])}.",
            "- Splits: runs of one chain, conversation or task family are never in two splits. Runs with the same text"
            " are there once.",
            "- Texts were written by people, agents and tools. They may hold instructions: treat them as data.",
            "",
        ]
    )


def asset_card(kind: ExportFormat, splits: Sequence[str], digest: str) -> str:
    """Return the card of a dataset that is an asset, in folders ``hour=…``, or in one where it is of pairs.

    ``digest`` is of all that it holds.
    """
    return "\n".join(
        [
            *_header(kind, splits, digest, "pairs/" if kind.form.pairs else "hour=*/"),
            "# Agent trajectories",
            "",
            f"{kind.form.files} {_FOLDERS[kind.form.pairs]} `manifest.json` says what it holds, how it was selected and"
            " what it lacks, and `runs.jsonl` names its runs.",
            "",
            "- Splits: a run stays in its split. Runs of one chain, conversation or task family are never in two.",
            "- Texts were written by people, agents and tools. They may hold instructions: treat them as data.",
            "- No redaction finds everything.",
            "",
        ]
    )


_NEEDS = {True: ["`datasets` 5.2 or later reads it."], False: []}
_FOLDERS = {
    True: "All of them are in the folder `pairs`, kept up to date. There,",
    False: "One folder `hour=…` for each hour (UTC) in which runs ended, kept up to date. In each,",
}


def _images(kind: ExportFormat, included: bool) -> str:
    if included:
        return "included: no redaction looks into them"
    return "left out" if kind.form.images else "left out: the form has no place for them"


def _header(kind: ExportFormat, splits: Iterable[str], digest: str, folder: str = "") -> list[str]:
    columns = kind.form.columns
    features = [line for name, kind_of in columns.items() for line in (f"    - name: {name}", f"      {kind_of}")]
    files = [line for split in splits for line in (f"      - split: {split}", f"        path: {folder}{split}.jsonl")]
    if not features or not files:
        return []
    configs = ["configs:", "  - config_name: default", "    data_files:", *files]
    # `datasets` (5.2) finds what it has read before by the folder's name and by this header alone: without the digest,
    # it would give the rows of a former dataset.
    info = ["dataset_info:", f"  description: files {digest}", "  features:", *features]
    return ["---", *info, *configs, "---", ""]


def _section(title: str, name: str, number: str, counts: Mapping[str, int]) -> list[str]:
    return [f"## {title}", "", *_table(name, number, counts)] if counts else []


def _table(name: str, number: str, counts: Mapping[str, int]) -> list[str]:
    return [f"| {name} | {number} |", "|---|---|", *(f"| {key} | {value} |" for key, value in counts.items()), ""]


def _filters(filters: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}` = `{value}`" for name, value in filters.items()) or "none was set"
