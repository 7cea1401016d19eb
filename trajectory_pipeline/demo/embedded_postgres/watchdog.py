"""The watchdog: a process that stops the server when its last user has ended.

Run as ``python -m trajectory_pipeline.demo.embedded_postgres.watchdog FOLDER DATA``. It waits for ``in-use.lock``,
which the kernel grants when the last user has ended, even by ``kill -9``. It has a session of its own, so Ctrl-C for
the owner does not reach it. It ignores polite signals: a supervisor that stops a whole group of processes would
otherwise leave the server running.
"""

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

from trajectory_pipeline.demo.embedded_postgres import locks
from trajectory_pipeline.demo.embedded_postgres.postmaster import Postmaster

_POLITE_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def main(folder: Path, data: Path) -> None:
    """Become the watchdog, in the background, unless there is one."""
    # An owner in a shell's background job may ignore or block signals; the watchdog must not inherit that.
    for number in _POLITE_SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    own = locks.open_file(folder / locks.WATCHDOG)
    if not locks.try_lock(own, fcntl.LOCK_EX):
        return
    start, in_use = (locks.open_file(folder / name) for name in (locks.START, locks.IN_USE))
    postmaster = Postmaster(folder, data)
    # The starter waits for its child, which exits here; init inherits (and reaps) the watchdog.
    if os.fork() != 0:
        os._exit(0)
    while True:
        fcntl.flock(in_use, fcntl.LOCK_EX)
        # Released at once: starting takes start.lock first, then this one, and so must the watchdog.
        fcntl.flock(in_use, fcntl.LOCK_UN)
        fcntl.flock(start, fcntl.LOCK_EX)
        if locks.try_lock(in_use, fcntl.LOCK_EX):
            break
        fcntl.flock(start, fcntl.LOCK_UN)  # a new user arrived meanwhile
    if postmaster.alive():
        _log("the server is not in use: stopping it")
        if not postmaster.stop():
            _log("the server does not stop, even after SIGKILL")
    # In this order: the next holder of start.lock must not see a watchdog that is about to exit.
    os.close(own)
    os.close(start)
    # A process that waited for these locks may look for processes next, and a normal exit of Python takes a while.
    os._exit(0)


def _log(text: str) -> None:
    timestamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    print(f"{timestamp} [{os.getpid()}] WATCHDOG:  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
