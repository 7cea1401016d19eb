"""A process that uses an embedded server, for the tests to kill.

Arguments: the folder, the settings as JSON and, optionally, "fork". It says ``{"port": ..., "password": ...}`` when
the server is up, and releases it at each line of its standard input. It ends, as an ordinary program does, without
releasing, when its input ends.
"""

import json
import os
import sys
import time
from pathlib import Path

import psycopg

from trajectory_pipeline.demo import embedded_postgres


def say(**words: object) -> None:
    print(json.dumps(words), flush=True)


def main(folder: Path, settings: dict[str, str], *extras: str) -> None:
    server = embedded_postgres.start(folder, settings=settings)
    try:
        if "fork" in extras:
            child = os.fork()
            if child == 0:
                server.release()  # its parent's, so without effect
                time.sleep(60)
                os._exit(0)
            say(port=server.port, password=server.password, child=child)
        else:
            say(port=server.port, password=server.password)
        for _ in sys.stdin:
            server.release()
            say(released=True)
    except KeyboardInterrupt:
        # As a program that writes its last results on Ctrl-C.
        time.sleep(0.5)
        with psycopg.connect(server.url("postgres")) as connection:
            connection.execute("SELECT 1")
        say(answers_after_interrupt=True)
        server.release()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), *sys.argv[3:])
