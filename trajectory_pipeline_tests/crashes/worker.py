"""A process that materializes partitions, for the tests to kill.

It imports everything once, then forks a child for each order, a line of JSON on its standard input, and says the
child's process id; a child that ends by itself says how. A real process each, without the seconds that imports take.

An order: ``letta``, ``database``, ``storage``; ``hours``, partition keys; ``rounds``, how often; ``marked``, whether
each round first writes a version of its own into every run of these hours, at the source.
"""

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import HOUR, parse_partition_key
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline_tests.pipeline.materializing import Pipeline


@dataclass
class Stored(Pipeline):
    """A pipeline whose storage may be anywhere."""

    uri: str = ""

    @property
    def store(self) -> ParquetStore:
        return ParquetStore(self.uri)


def materialize(order: dict[str, Any]) -> None:
    pipeline = Stored(order["letta"], order["database"], Path(), uri=order["storage"])
    hours = [parse_partition_key(key) for key in order["hours"]]
    for number in range(order["rounds"]):
        if order.get("marked"):
            mark(pipeline, f"{order['marked']}-{number}", hours)
        pipeline.capture(*hours)


def mark(pipeline: Pipeline, version: str, hours: list[Any]) -> None:
    """Write a version into every run of these hours."""
    with psycopg.connect(pipeline.letta_url) as connection:
        for hour in hours:
            connection.execute(
                "UPDATE runs SET project_id = %s WHERE completed_at >= %s AND completed_at < %s",
                [version, hour.replace(tzinfo=None), (hour + HOUR).replace(tzinfo=None)],
            )


def say(**words: Any) -> None:
    # One write a line: several children share the pipe.
    os.write(1, (json.dumps(words) + "\n").encode())


def child(order: dict[str, Any]) -> None:
    try:
        materialize(order)
    except PipelineError as error:
        say(pid=os.getpid(), error=str(error))
    except BaseException as error:
        say(pid=os.getpid(), defect=repr(error))
    else:
        say(pid=os.getpid(), done=True)
    os._exit(0)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    say(ready=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        say(pid=pid, started=True)


if __name__ == "__main__":
    main()
