"""Requests to Dagster's webserver: runs in its queue, as if a person had launched them in the UI."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    ) -> dict[str, Any]:
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
        answer = self._ask(LAUNCH, {"params": params})["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            words = answer.get("message") or "; ".join(one["message"] for one in answer.get("errors", ()))
            raise ProblemError(502, f"Dagster refused to launch a run of {partition_key}: {_first_line(words)}")
        run: dict[str, Any] = answer["run"]
        return run

    def run(self, run_id: str) -> dict[str, Any] | None:
        """Return a run, with its tags as a mapping; None where there is none.

        Raises:
            ProblemError: 503, Dagster cannot be reached; 502, it refused.
        """
        answer = self._ask(LOOK, {"runId": run_id})["runOrError"]
        if answer["__typename"] != "Run":
            return None
        return {**answer, "tags": {tag["key"]: tag["value"] for tag in answer["tags"]}}

    def state(self, since: float) -> DagsterState:
        """Return the state of runs and daemons; ``since`` is a Unix time.

        Raises:
            ProblemError: 503, Dagster cannot be reached; 502, it refused.
        """
        answer = self._ask(STATE, {"since": since}, _STATE_TIMEOUT_SECONDS)
        statuses = answer["instance"]["daemonHealth"]["allDaemonStatuses"]
        return DagsterState(
            {name: answer[name].get("count") or 0 for name in ("queued", "running", "failed")},
            {one["daemonType"]: bool(one["healthy"]) for one in statuses if one["required"]},
        )

    def _ask(self, query: str, variables: Mapping[str, Any], timeout_seconds: float = _TIMEOUT_SECONDS) -> Any:
        if self.url is None:
            raise ProblemError(
                503,
                "This service knows no Dagster: set TRAJECTORY_DAGSTER_UI_URL to the address of its webserver, and"
                " start the service again.",
            )
        try:
            response = httpx2.post(
                self.url.rstrip("/") + "/graphql",
                json={"query": query, "variables": variables},
                timeout=timeout_seconds,
            )
            body = response.json()
        except (httpx2.HTTPError, ValueError):
            raise ProblemError(
                503, "Dagster's webserver (TRAJECTORY_DAGSTER_UI_URL) cannot be reached, or does not answer: start it."
            ) from None
        if not isinstance(body, dict) or not isinstance(body.get("data"), dict) or body.get("errors"):
            raise ProblemError(502, f"Dagster's webserver refused the request with status {response.status_code}.")
        return body["data"]


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["it did not say why"])[0][:500]
