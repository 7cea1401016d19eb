"""The API answers as its own description says, whatever is sent: cases made by schemathesis for every endpoint."""

import os
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from trajectory_pipeline_tests.serve.tenancy import MINE, Tokens

pytestmark = pytest.mark.heavy

CASES = int(os.environ.get("SERVICE_CASES", "6"))
"""Valid and invalid cases for each endpoint. Before a release: SERVICE_CASES=1000."""
CONFORMANCE: list[Any] = [status_code_conformance, content_type_conformance, response_schema_conformance]
UNAVAILABLE = 503
"""What an endpoint that needs a Dagster, or an embedding model, says without one."""


@pytest.fixture
def operations(guarded: httpx2.Client) -> list[Any]:
    description = guarded.get("/openapi.json").json()
    assert description["openapi"].startswith("3.1")
    return [one.ok() for one in schemathesis.openapi.from_dict(description).get_all_operations()]


def validate(case: schemathesis.Case, guarded: httpx2.Client, headers: dict[str, str]) -> int:
    """Send one case, and hold the answer to the description; returns its status."""
    response = case.call(base_url=str(guarded.base_url), headers=headers)
    checks = [*CONFORMANCE, *([] if response.status_code == UNAVAILABLE else [not_a_server_error])]
    case.validate_response(response, checks=checks)
    return response.status_code


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_every_endpoint_answers_as_described(
    guarded: httpx2.Client, tokens: Tokens, operations: list[Any], mode: schemathesis.GenerationMode
) -> None:
    for operation in operations:
        has_values = bool(operation.query or operation.path_parameters or operation.body)
        if mode == schemathesis.GenerationMode.NEGATIVE and not has_values:
            continue
        strategy = operation.as_strategy(generation_mode=mode)

        @settings(
            max_examples=CASES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(strategy)
        def check(case: schemathesis.Case) -> None:
            validate(case, guarded, tokens.header("all"))

        check()


def test_what_is_found_is_as_described(guarded: httpx2.Client, tokens: Tokens, operations: list[Any]) -> None:
    """Made-up values find nothing: here each endpoint that reads is asked for what is there."""
    answered = set()
    for operation in operations:
        if operation.method.upper() != "GET" or "/requests/" in operation.path:
            continue
        names = {parameter.name for parameter in operation.query}
        case = operation.Case(
            path_parameters={"run_id": min(tokens.runs[MINE])} if "{run_id}" in operation.path else {},
            query={"q": "the", "k": 5} if "q" in names else {},
        )
        assert validate(case, guarded, tokens.header("all")) == 200, operation.path
        answered.add(operation.path)
    assert len(answered) >= 8
