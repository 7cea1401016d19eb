"""The demonstration's runs, served."""

from collections.abc import Iterator

import httpx2
import pytest

from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.conftest import make_settings
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.serve.serving import serving


@pytest.fixture(scope="session")
def served(story: Pipeline) -> Iterator[httpx2.Client]:
    """A client of a service over the story, which nobody made a token for."""
    settings = make_settings(
        storage__database_url=story.database_url, storage__data_folder=story.folder.parent, privacy__redaction="secrets"
    )
    with (
        serving(settings, Storage.at(str(story.folder), story.database_url)) as address,
        httpx2.Client(base_url=address) as client,
    ):
        yield client
