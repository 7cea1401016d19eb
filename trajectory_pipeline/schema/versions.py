"""Versions of the code that captures and converts. Each is shown as its asset's code version."""

CAPTURE_VERSION = 4
"""Raise it by one whenever the same source gives other rows, or another Parquet file, of ``terminal_runs``.

Every captured partition of an older version is stale and is read again when it is materialized. Leave it alone where
only names, comments or speed change. ``test_recorded_output`` fails where the output changed and this did not.
"""

CONVERSION_VERSION = 6
"""Raise it by one whenever the same raw rows give other trajectories: in a column, a document or a Parquet file.

Every partition of an older version is stale and is rebuilt when it is materialized again. Leave it alone where only
names, comments or speed change. ``test_recorded_output`` fails where the output changed and this did not.
"""

SEARCH_TEXT_VERSION = "1"
"""Raised with any change of the search text (``search.search_text``): all texts are then made again, and those that
differ are embedded again."""

EXPORT_VERSION = "3"
"""Raised with any change of what is written of a run in any format: all partitions of exports are then made again."""
