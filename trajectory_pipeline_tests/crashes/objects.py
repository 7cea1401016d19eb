"""What tests of object storage say in one place: the bucket, the credentials, a partition and its object's key."""

from datetime import datetime

from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline_tests.crashes.worker import Stored
from trajectory_pipeline_tests.letta_sample import sample_partitions

BUCKET = "trajectories"
BUSY = max(sample_partitions().items(), key=lambda item: item[1])[0]


def key_of_file(stored: Stored, hour: datetime = BUSY) -> str:
    return stored.store.path_of(TRAJECTORIES, hour).removeprefix(f"s3://{BUCKET}/")
