"""A process that reads one partition in a loop, in Postgres and in Parquet, and says what it saw that may not be.

Arguments: the sink's URL, the partition's key, the path of its file. It reads until its standard input ends.
"""

import json
import select
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pyarrow.parquet as pq


def main(url: str, key: str, path: str) -> None:
    seen: Counter[str] = Counter()
    wrong: list[Any] = []
    versions: set[str] = set()

    def take(reader: str, rows: int, marks: list[str]) -> None:
        seen[reader] += 1
        versions.update(marks)
        if rows != expected or len(marks) != 1:
            wrong.append([reader, rows, marks])

    with psycopg.connect(url, autocommit=True) as connection, duckdb.connect() as duck:
        question = (
            "SELECT count(*), array_agg(DISTINCT project_id) FROM trajectory.trajectories WHERE partition_key = %s"
        )
        expected = connection.execute(question, [key]).fetchall()[0][0]
        print(json.dumps({"expected": expected}), flush=True)
        while not select.select([sys.stdin], [], [], 0.01)[0]:
            take("Postgres", *connection.execute(question, [key]).fetchall()[0])
            # Opened once: given a path, pyarrow may open it again for the pages, which are another version's by then.
            with Path(path).open("rb") as file:
                table = pq.read_table(file, columns=["run_id", "project_id"])
            take("pyarrow", table.num_rows, sorted(set(table["project_id"].to_pylist())))
            take("DuckDB", *duck.execute(f"SELECT count(*), list(DISTINCT project_id) FROM '{path}'").fetchall()[0])
    print(json.dumps({"seen": seen, "wrong": wrong[:5], "versions": len(versions)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
