"""What a person may set when launching a run from the UI, by asset."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import dagster as dg
from pydantic import BeforeValidator, Field, ValidationError

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.schema.enums import JudgeMode, JudgeOrder
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES


def _by_name(kind: type[StrEnum]) -> BeforeValidator:
    # A run's configuration has the names of an enumeration, and pydantic takes its values.
    return BeforeValidator(lambda value: kind.__members__.get(value, value) if isinstance(value, str) else value)


class CaptureConfig(dg.Config):
    """Launch configuration of ``terminal_runs``."""

    force: bool = Field(False, description="Read the source again, even where nothing seems to have changed.")
    accept_deletions: bool = Field(
        False,
        description="You have looked: the source is the right one, and what it lacks was deleted there, however much"
        " it is.",
    )


class ConversionConfig(dg.Config):
    """Launch configuration of ``trajectories``."""

    force: bool = Field(False, description="Convert the raw rows again, even where the result would be the same.")


class RefinementConfig(dg.Config):
    """Launch configuration of ``refined_outcomes``."""

    limit: int | None = Field(
        None,
        ge=1,
        description="Judge at most so many trajectories, over all partitions of the run. The refinement sensor requests"
        " the others later. Default: all.",
    )
    mode: Annotated[JudgeMode | None, _by_name(JudgeMode)] = Field(
        None,
        description="`ONLINE`: each trajectory is judged at once. `BATCH`: those that fit one prompt are submitted to"
        " the provider's batch API, and judged within 24 hours at its batch price. Default: as TRAJECTORY_JUDGE_MODE"
        " says.",
    )
    order: Annotated[JudgeOrder | None, _by_name(JudgeOrder)] = Field(
        None,
        description="Which trajectories go first: `NEWEST`, or `SIGNALS` (likely failures). Default: as"
        " TRAJECTORY_JUDGE_ORDER says.",
    )
    run_ids: list[str] | None = Field(
        None, description="Judge these runs alone, of the partitions of the run. Default: all."
    )
    policy: str | None = Field(
        None,
        pattern="^[0-9a-f]{16}$",
        description="Id of the policy that you expect (`policies.policy_id`): the run is refused where the settings"
        " give another one, so that nothing is paid for by mistake. Default: whatever the settings give.",
    )


_CONFIGS: dict[str, type[dg.Config]] = {
    TERMINAL_RUNS.name: CaptureConfig,
    TRAJECTORIES.name: ConversionConfig,
    REFINED_OUTCOMES.name: RefinementConfig,
}


def require_policy(config: RefinementConfig, current: str) -> None:
    """Raise ``PipelineError`` if another policy than the current one is expected."""
    if config.policy and config.policy != current:
        raise PipelineError(
            f"The launch configuration expects the policy {config.policy}, and the settings give {current}: nothing was"
            " judged. Restore the judge's settings, or launch without `policy`."
        )


def require_valid_config(run_config: Mapping[str, Any]) -> None:
    """Check the configuration of all assets of a run: the first step refuses what the last one would.

    Dagster itself refuses other types and unknown names when a run is launched, but it checks bounds only when a step
    begins.

    Raises:
        dagster.Failure: a value is wrong; the text names it.
    """
    problems: list[str] = []
    for op, config in run_config.get("ops", {}).items():
        # The operation of another source's asset has the source's name before it: ``laptop__terminal_runs``.
        name = op.rpartition("__")[2]
        try:
            _CONFIGS.get(name, dg.Config)(**config.get("config", {}))
        except ValidationError as error:
            problems += [f"{name}.{'.'.join(map(str, one['loc']))} is wrong: {one['msg']}" for one in error.errors()]
    if problems:
        text = "; ".join(problems)
        raise dg.Failure(f"The launch configuration is refused, and nothing was done: {text}.", allow_retries=False)
