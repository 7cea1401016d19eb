"""A pipeline with the simulated judge, over a fresh copy of the sample."""

from trajectory_pipeline_tests.judge.conftest import captured, pipeline

__all__ = ["captured", "pipeline"]
