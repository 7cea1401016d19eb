"""The demonstration's runs, served: to anybody on this machine, and to holders of tokens."""

from collections.abc import Callable, Iterator

import httpx2
import pytest

from trajectory_pipeline.settings import Settings
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.conftest import change_settings, make_settings
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.serve.serving import serving
from trajectory_pipeline_tests.serve.tenancy import Tokens, copy_rows, make_tenants


@pytest.fixture(scope="module")
def served(story: Pipeline) -> Iterator[httpx2.Client]:
    """A client of a service over the story, which nobody made a token for.

    No longer than a module: other tests copy the story's database, to which nobody may then be connected.
    """
    settings = make_settings(storage__database_url=story.database_url, storage__data_folder=story.folder.parent)
    with (
        serving(settings, Storage.at(str(story.folder), story.database_url)) as address,
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="session")
def tenant_settings(story: Pipeline, make_own_settings: Callable[[], Settings]) -> Settings:
    """Settings whose sinks hold the story's rows; a test must leave them as they are."""
    settings = make_own_settings()
    copy_rows(story.database_url, str(settings.storage.database_url))
    return change_settings(settings, storage__parquet_uri=str(story.folder))


@pytest.fixture(scope="session")
def tokens(tenant_settings: Settings) -> Tokens:
    """Tokens of two organizations that the rows are divided among."""
    return make_tenants(str(tenant_settings.storage.database_url))


@pytest.fixture(scope="session")
def guarded(tenant_settings: Settings, tokens: Tokens) -> Iterator[httpx2.Client]:
    """A client of a service over rows of two organizations; it sends no token by itself."""
    storage = Storage.at(tenant_settings.storage.parquet_location, str(tenant_settings.storage.database_url))
    with (
        serving(tenant_settings, storage) as address,
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        yield client
