"""The Dagster layer: assets, checks, jobs, schedules, sensors and resources.

Only this package imports Dagster (the commands aside, which start it). The work itself is in ``pipeline`` and
``maintenance``.
"""
