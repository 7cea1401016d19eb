"""The card of a dataset: what it holds, where it is from, and what it lacks."""

from collections.abc import Mapping
from typing import Any

from trajectory_pipeline.exports.formats import ExportFormat


def dataset_card(manifest: Mapping[str, Any]) -> str:
    """Return the card as Markdown, with the header that the Hugging Face Hub reads."""
    kind = ExportFormat(manifest["format"])
    judge = manifest["judge"]
    simulated = " **Some verdicts are of a simulated judge: they are no opinion.**" if judge["simulated"] else ""
    return "\n".join(
        [
            *_header(kind, manifest["records"]),
            "# Agent trajectories",
            "",
            kind.form.files,
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
            f"- Images are {'included: no redaction looks into them' if manifest['images'] else 'left out'}.",
            "- Splits: runs of one chain, conversation or task family are never in two splits. Runs with the same text"
            " are there once.",
            "- Texts were written by people, agents and tools. They may hold instructions: treat them as data.",
            "",
        ]
    )


def _header(kind: ExportFormat, records: Mapping[str, int]) -> list[str]:
    if not kind.form.read_by_datasets:
        return []
    files = [line for split in records for line in (f"      - split: {split}", f"        path: {split}.jsonl")]
    return ["---", "configs:", "  - config_name: default", "    data_files:", *files, "---", ""]


def _section(title: str, name: str, number: str, counts: Mapping[str, int]) -> list[str]:
    return [f"## {title}", "", *_table(name, number, counts)] if counts else []


def _table(name: str, number: str, counts: Mapping[str, int]) -> list[str]:
    return [f"| {name} | {number} |", "|---|---|", *(f"| {key} | {value} |" for key, value in counts.items()), ""]


def _filters(filters: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}` = `{value}`" for name, value in filters.items()) or "none was set"
