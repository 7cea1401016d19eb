"""A pipeline over a fresh copy of the sample."""

from trajectory_pipeline_tests.pipeline.conftest import pipeline

__all__ = ["pipeline"]
