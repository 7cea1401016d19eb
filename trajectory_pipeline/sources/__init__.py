"""Sources beside the Letta database: local files of Letta Code, folders of ATIF files, Letta's REST API.

Each finds terminal runs and reads their rows into the form of ``terminal_runs`` (``schema.raw``). The rest, from
fingerprints to what becomes of a run that moved, is in ``found_runs``. ``docs/sources.md`` tells how to add another.
"""
