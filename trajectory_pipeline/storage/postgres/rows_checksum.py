"""Whether what a partition's transaction finds is what the last materialization left."""

from collections.abc import Sequence

from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction
from trajectory_pipeline.storage.postgres.run_locations import find_moved_runs


def all_located(partition: PartitionTransaction, run_ids: Sequence[str]) -> bool:
    """Whether each of these runs is noted to be in this partition.

    Raises:
        SinkError: it cannot be read.
    """
    with translating_database_errors(partition.url, f"Looking where the runs of {partition.partition_key} are"):
        row = partition.connection.execute(
            "SELECT count(*) FROM trajectory.run_locations WHERE run_id = ANY(%s) AND partition_key = %s",
            [list(run_ids), partition.partition_key],
        ).fetchone()
    return row is not None and row[0] == len(run_ids)


def runs_moved_away(partition: PartitionTransaction, run_ids: Sequence[str]) -> list[str]:
    """Return which of these runs are in another partition, by the newest look at the source.

    Raises:
        SinkError: it cannot be read.
    """
    with translating_database_errors(partition.url, f"Looking where the runs of {partition.partition_key} are"):
        return find_moved_runs(partition.connection, partition.partition_key, run_ids)


def rows_checksum(partition: PartitionTransaction) -> str:
    """Return a digest that any change to the partition's rows in Postgres changes, whoever makes it.

    A row's ``xmin`` moves with any change to it, as at the source. Rows of other partitions do not count.

    Raises:
        SinkError: they cannot be read.
    """
    with translating_database_errors(partition.url, f"Comparing the rows of {partition.partition_key}"):
        row = partition.connection.execute(
            "SELECT md5(string_agg(concat_ws(':', kind, rows, sum), ',' ORDER BY kind)) FROM ("
            "SELECT 1 AS kind, count(*) AS rows, sum(hashtextextended(run_id || ':' || xmin::text, 0)::numeric) AS sum"
            " FROM trajectory.trajectories WHERE partition_key = %(key)s"
            " UNION ALL SELECT 2, count(*), sum(hashtextextended(run_id || ':' || xmin::text, 0)::numeric)"
            " FROM trajectory.quarantine WHERE partition_key = %(key)s) p",
            {"key": partition.partition_key},
        ).fetchone()
    return str(row[0]) if row else ""


def documents_omitted(partition: PartitionTransaction) -> int:
    """Return how many of the partition's trajectories have no document in Postgres.

    Raises:
        SinkError: they cannot be read.
    """
    with translating_database_errors(partition.url, f"Counting documents of {partition.partition_key}"):
        row = partition.connection.execute(
            "SELECT count(*) FROM trajectory.trajectories WHERE partition_key = %s AND data_omitted_reason IS NOT NULL",
            [partition.partition_key],
        ).fetchone()
    return int(row[0]) if row else 0
