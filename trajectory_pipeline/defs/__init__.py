"""The Dagster floor: when, and for which partition.

Belongs here: assets, checks, jobs, schedules, sensors and resources, all thin. Does not belong here: the work itself
(``stages`` and below), which knows no Dagster.
"""
