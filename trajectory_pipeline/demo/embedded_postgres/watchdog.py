"""The watchdog: a small process of its own that stops the server once nobody uses it.

Belongs here: that process, and nothing that others import. Does not belong here: starting it (``launch``), and how a
server is stopped (``postmaster``).

Run as ``python -m trajectory_pipeline.demo.embedded_postgres.watchdog FOLDER DATA``. It waits for ``in-use.lock``,
which the kernel grants when the last user is gone, even by ``kill -9``. It is a session of its own, so a Ctrl-C meant
for the owner does not reach it; and it does not end on a polite signal, because a server without it would be left
behind when a supervisor asks a whole group of processes to end.
"""

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

from trajectory_pipeline.demo.embedded_postgres import locks
from trajectory_pipeline.demo.embedded_postgres.postmaster import Postmaster

_POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def main(folder: Path, data: Path) -> None:
    """Become the watchdog, in the background, unless there is one."""
    # Started from a background job of a shell, the owner may ignore or block signals; that is not to be copied.
    for number in _POLITE:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    own = locks.open_file(folder / locks.WATCHDOG)
    if not locks.try_lock(own, fcntl.LOCK_EX):
        return
    start, in_use = (locks.open_file(folder / name) for name in (locks.START, locks.IN_USE))
    postmaster = Postmaster(folder, data)
    # The starter waits for its child: it ends here, and init inherits (and reaps) the watchdog itself.
    if os.fork() != 0:
        os._exit(0)
    while True:
        fcntl.flock(in_use, fcntl.LOCK_EX)
        # Let go at once: whoever starts takes start.lock first, then this one, and so must the watchdog.
        fcntl.flock(in_use, fcntl.LOCK_UN)
        fcntl.flock(start, fcntl.LOCK_EX)
        if locks.try_lock(in_use, fcntl.LOCK_EX):
            break
        fcntl.flock(start, fcntl.LOCK_UN)  # a new user came in between
    if postmaster.alive():
        _say("nobody uses the server any more: stopping it")
        if not postmaster.stop():
            _say("the server does not end, not even killed")
    # In this order: whoever gets start.lock next must not see a watchdog that is about to end.
    os.close(own)
    os.close(start)
    # Whoever waited for these locks may look for processes next; an orderly end of Python takes a while.
    os._exit(0)


def _say(text: str) -> None:
    moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    print(f"{moment} [{os.getpid()}] WATCHDOG:  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
