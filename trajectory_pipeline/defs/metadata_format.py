"""Lists and tables as Dagster metadata."""

from collections.abc import Mapping, Sequence

import dagster as dg

_LISTED = 50


def bullet_list(items: Sequence[str]) -> dg.MarkdownMetadataValue:
    """Return the first 50 of a list, and how many more there are."""
    more = f"\n- … and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return dg.MetadataValue.md("\n".join(f"- `{item}`" for item in items[:_LISTED]) + more)


def count_table(counts: Mapping[str, int], name: str) -> dg.MarkdownMetadataValue:
    """Return counts by name as a table, the largest first."""
    rows = "\n".join(
        f"| {key} | {count} |" for key, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
    return dg.MetadataValue.md(f"| {name} | count |\n|---|---|\n{rows}" if rows else "none")
