"""A pipeline with the simulated judge, over a fresh copy of the sample."""

from trajectory_pipeline_tests.judge.conftest import pipeline

__all__ = ["pipeline"]
