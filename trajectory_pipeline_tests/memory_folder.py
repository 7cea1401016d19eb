"""A folder in memory for what tests create and delete thousands of times.

On ext4 a new file is slow for some seconds after others were deleted: the inodes of those are passed over one by one.
Each test drops two databases of 600 files, so creating the next two took a second instead of a tenth.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMORY = Path("/dev/shm")
_PREFIX = "trajectory-pipeline-tests-"
_NEEDED_BYTES = 4 * 2**30


@contextmanager
def memory_folder(otherwise: Path) -> Iterator[Path]:
    """Give a new folder in memory, and delete it; ``otherwise`` if there is no such memory, or too little of it."""
    if not os.access(_MEMORY, os.W_OK) or shutil.disk_usage(_MEMORY).free < _NEEDED_BYTES:
        yield otherwise
        return
    _delete_abandoned()
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", dir=_MEMORY) as name:
        folder = Path(name)
        # Root's server runs as another user, who must be able to enter.
        folder.chmod(0o711)
        yield folder


def _delete_abandoned() -> None:
    """Delete what sessions left that were killed: memory is not freed by itself."""
    for folder in _MEMORY.glob(f"{_PREFIX}*"):
        try:
            os.kill(int(folder.name.removeprefix(_PREFIX).partition("-")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:
            continue
