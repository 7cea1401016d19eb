"""Requests to Dagster's webserver: runs in its queue, as if a person had launched them in the UI."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx2

from trajectory_pipeline.partition_keys import asset_path, name_at, source_of_key
from trajectory_pipeline.serve.problems import ProblemError

JOB = "trajectory_job"
LOCATION = "trajectory_pipeline"
REPOSITORY = "__repository__"
PARTITION_TAG = "dagster/partition"
REASON_TAG = "trajectory/reason"
TOKEN_TAG = "trajectory/token"  # noqa: S105 - the name of a tag; its value is a token's public id
_TIMEOUT_SECONDS = 20.0
LAUNCH = """mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId status } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on PipelineNotFoundError { message }
    ... on UnauthorizedError { message }
    ... on InvalidSubsetError { message }
    ... on ConflictingExecutionParamsError { message }
    ... on RunConflict { message }
    ... on PythonError { message }
  }
}"""
LOOK = """query Look($runId: ID!) {
  runOrError(runId: $runId) {
    __typename
    ... on Run { runId status creationTime startTime endTime tags { key value } assetSelection { path } }
    ... on PythonError { message }
  }
}"""

STATE = """query State($since: Float!) {
  queued: runsOrError(filter: {statuses: [QUEUED]}) { ... on Runs { count } }
  running: runsOrError(filter: {statuses: [STARTING, STARTED, CANCELING]}) { ... on Runs { count } }
  failed: runsOrError(filter: {statuses: [FAILURE], updatedAfter: $since}) { ... on Runs { count } }
  instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } }
}"""
_MOST_BYTES = 4_000_000
_STATE_TIMEOUT_SECONDS = 4.0
"""Whoever collects metrics waits ten seconds."""


@dataclass(frozen=True)
class DagsterState:
    """What Dagster's webserver says of its runs and daemons.

    Attributes:
        runs: by state: ``queued``, ``running``, and ``failed`` since the moment that was asked for.
        daemons: whether each daemon that must run is healthy, by its type.
    """

    runs: dict[str, int]
    daemons: dict[str, bool]


@dataclass(frozen=True)
class DagsterQueue:
    """Dagster's GraphQL endpoint; ``url`` is the UI's address, None where the settings name none."""

    url: str | None

    def launch(
        self, assets: Sequence[str], partition_key: str, config: Mapping[str, Any], tags: Mapping[str, str]
    ) -> dict[str, str]:
        """Put one run into the queue; returns its ``runId`` and ``status``.

        Raises:
            ProblemError: 503, Dagster cannot be reached; 502, it refused.
        """
        source = source_of_key(partition_key)
        params = {
            "selector": {
                "repositoryLocationName": LOCATION,
                "repositoryName": REPOSITORY,
                "jobName": name_at(JOB, source),
                "assetSelection": [{"path": asset_path(name, source)} for name in assets],
                "assetCheckSelection": None,
            },
            "mode": "default",
            "runConfigData": {
                # Dagster joins the parts of a key for the name of the operation.
                "ops": {"__".join(asset_path(name, source)): {"config": values} for name, values in config.items()}
            },
            "executionMetadata": {
                "tags": [{"key": key, "value": value} for key, value in {PARTITION_TAG: partition_key, **tags}.items()]
            },
        }
        with _understood():
            answer = self._ask(LAUNCH, {"params": params})["launchRun"]
            if answer["__typename"] != "LaunchRunSuccess":
                words = answer.get("message") or "; ".join(one["message"] for one in answer.get("errors", ()))
                raise ProblemError(502, f"Dagster refused to launch a run of {partition_key}: {_first_line(words)}")
            return {name: str(answer["run"][name]) for name in ("runId", "status")}

    def run(self, run_id: str) -> dict[str, Any] | None:
        """Return a run's ``runId``, ``status``, ``tags`` and times; None where there is none.

        Raises:
            ProblemError: 503, Dagster cannot be reached; 502, it refused.
        """
        with _understood():
            answer = self._ask(LOOK, {"runId": run_id})["runOrError"]
            if answer["__typename"] != "Run":
                return None
            return {
                **{name: str(answer[name]) for name in ("runId", "status")},
                "tags": {tag["key"]: tag["value"] for tag in answer["tags"]},
                "created_at": datetime.fromtimestamp(answer["creationTime"], UTC),
                "started_at": _moment(answer["startTime"]),
                "ended_at": _moment(answer["endTime"]),
            }

    def state(self, since: float) -> DagsterState:
        """Return the state of runs and daemons; ``since`` is a Unix time.

        Raises:
            ProblemError: 503, Dagster cannot be reached; 502, it refused.
        """
        with _understood():
            answer = self._ask(STATE, {"since": since}, _STATE_TIMEOUT_SECONDS)
            statuses = answer["instance"]["daemonHealth"]["allDaemonStatuses"]
            return DagsterState(
                {name: int(answer[name].get("count") or 0) for name in ("queued", "running", "failed")},
                {str(one["daemonType"]): bool(one["healthy"]) for one in statuses if one["required"]},
            )

    def _ask(self, query: str, variables: Mapping[str, Any], timeout_seconds: float = _TIMEOUT_SECONDS) -> Any:
        if self.url is None:
            raise ProblemError(
                503,
                "This service knows no Dagster: set TRAJECTORY_DAGSTER_UI_URL to the address of its webserver, and"
                " start the service again.",
            )
        until = time.monotonic() + timeout_seconds
        text = bytearray()
        try:
            asked = {"query": query, "variables": variables}
            address = self.url.rstrip("/") + "/graphql"
            with httpx2.stream("POST", address, json=asked, timeout=timeout_seconds) as response:
                # The timeout is that of each read: an answer that trickles in would never end.
                for piece in response.iter_bytes():
                    text += piece
                    if len(text) > _MOST_BYTES or time.monotonic() > until:
                        # What is cut off is no JSON.
                        break
            body = json.loads(text)
        except (httpx2.HTTPError, ValueError, RecursionError):
            raise ProblemError(
                503, "Dagster's webserver (TRAJECTORY_DAGSTER_UI_URL) cannot be reached, or does not answer: start it."
            ) from None
        if not isinstance(body, dict) or not isinstance(body.get("data"), dict) or body.get("errors"):
            raise ProblemError(502, f"Dagster's webserver refused the request with status {response.status_code}.")
        return body["data"]


@contextmanager
def _understood() -> Iterator[None]:
    """Turn what an answer lacks into a problem: what answers may be no Dagster, or another version."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        raise ProblemError(
            502,
            "What answers at TRAJECTORY_DAGSTER_UI_URL does not answer as this version of Dagster: check the address,"
            " and that both have one version.",
        ) from None


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["it did not say why"])[0][:500]
