"""The sample that the tests use: rows of a real Letta server in every form that was seen (README.md)."""

from pathlib import Path

from trajectory_pipeline.demo.letta_sample.load import Sample

SAMPLE = Sample(Path(__file__).with_name("letta_sample.sql.gz"))
SAMPLE_FILE = SAMPLE.file

load_sample = SAMPLE.load
sample_counts = SAMPLE.counts
sample_partitions = SAMPLE.partitions
sample_terminal_run_ids = SAMPLE.terminal_run_ids
sample_window = SAMPLE.window
