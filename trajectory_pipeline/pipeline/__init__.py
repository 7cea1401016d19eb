"""The three stages of one partition (capture, convert, judge). Knows nothing of Dagster: a notebook can call it."""
