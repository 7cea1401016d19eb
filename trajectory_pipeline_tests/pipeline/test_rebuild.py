"""Trajectories are rebuilt from raw rows alone, also of an older version, without the source."""

from dataclasses import replace

import pyarrow.parquet as pq

from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.stale_partitions import built_by_older_versions
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

HOUR = min((size, hour) for hour, size in sample_partitions().items() if size > 2)[1]


def test_rebuild_older_version_needs_no_source(pipeline: Pipeline) -> None:
    pipeline.capture(HOUR)
    files, stored = pipeline.parquet(TRAJECTORIES, HOUR), pipeline.ask("SELECT * FROM trajectory.trajectories")
    path = next(pipeline.folder.glob(f"{TERMINAL_RUNS.name}/*/*.parquet"))
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.drop_columns(["erased", "deleted_at", "schema_version"]), path)
    pipeline.do("UPDATE trajectory.partitions SET schema_version = '0'")
    assert built_by_older_versions(pipeline.database) == [partition_key(HOUR)]
    without_source = replace(pipeline, letta_url="postgresql://letta@127.0.0.1:1/letta")
    result = without_source.convert(HOUR)
    assert result.row_balance.balanced
    assert pipeline.parquet(TRAJECTORIES, HOUR) == files
    assert pipeline.ask("SELECT * FROM trajectory.trajectories") == stored
    assert built_by_older_versions(pipeline.database) == []
