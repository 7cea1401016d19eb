"""Compares policies that labelled runs were judged under."""

from collections.abc import Sequence

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.quality.policy_comparison import PolicyComparison, compare_policies
from trajectory_pipeline.schema.enums import Criterion
from trajectory_pipeline.schema.labels import JudgedPolicy
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.labels import policies_with_verdicts, read_labelled_verdicts


def compare_stored_policies(
    database: TrajectoryDatabase, wanted: Sequence[str]
) -> tuple[list[JudgedPolicy], PolicyComparison]:
    """Compare policies by the labels of outcomes; the first is what the others are compared with.

    Args:
        database: where labels and verdicts are.
        wanted: each a model, an id or the beginning of one; empty for all, the current policy first.

    Raises:
        PipelineError: a name fits none of them or several, there are fewer than two, or no run was judged under each.
        SinkError: the database refuses.
    """
    policies = policies_with_verdicts(database)
    chosen = [_find(name, policies) for name in wanted] or policies
    chosen = list(dict.fromkeys(chosen))
    if len(chosen) < 2:
        raise PipelineError(
            f"Two policies are needed, and {len(chosen)} is there"
            + (f" ({_names(chosen)})" if chosen else "")
            + ": judge the labelled runs under another one with `trajectory-pipeline judge-panel`."
        )
    rows = {
        policy.policy_id: read_labelled_verdicts(database, policy.policy_id, [Criterion.OUTCOME]) for policy in chosen
    }
    try:
        return chosen, compare_policies(rows)
    except ValueError as error:
        raise PipelineError(
            f"{_names(chosen)} cannot be compared: {error}. Judge the same runs with `trajectory-pipeline judge-panel`."
        ) from None


def _find(name: str, policies: Sequence[JudgedPolicy]) -> JudgedPolicy:
    found = [policy for policy in policies if policy.model == name or (name and policy.policy_id.startswith(name))]
    if len(found) == 1:
        return found[0]
    problem = f"fits {len(found)} policies" if found else "is no policy that labelled runs were judged under"
    raise PipelineError(f"{name!r} {problem}. There are: {_names(found or policies) or 'none'}.")


def _names(policies: Sequence[JudgedPolicy]) -> str:
    return ", ".join(policy.name for policy in policies)
