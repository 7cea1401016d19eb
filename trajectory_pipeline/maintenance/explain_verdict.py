"""Explains how a run came to its verdict, from what is stored: raw rows, trajectory, prompt, calls, verdict."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc

from trajectory_pipeline.errors import PipelineError, describe_defect
from trajectory_pipeline.judge.judge_trajectory import build_judge_request
from trajectory_pipeline.judge.policy import RefinementPolicy
from trajectory_pipeline.judge.transcript.context import NO_CONTEXT, TaskContext
from trajectory_pipeline.partition_keys import HOUR, parse_partition_key, source_of_key
from trajectory_pipeline.pipeline.agent_contexts import AgentContexts
from trajectory_pipeline.pipeline.documents import MissingDocumentError, find_row, shown_documents
from trajectory_pipeline.schema.arrow import rows_of
from trajectory_pipeline.schema.enums import JudgeOrder, RedactionMode
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.source_protocol import Source
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.redaction_key import redaction_key as stored_redaction_key
from trajectory_pipeline.storage.postgres.summaries import attempts_of_run, verdicts_of_run
from trajectory_pipeline.storage.postgres.verdict_status import judging_candidates
from trajectory_pipeline.storage.postgres.verdicts import open_verdicts
from trajectory_pipeline.storage.storage import Storage

Row = dict[str, Any]
_RAW_COLUMNS = ("id", "status", "stop_reason", "created_at", "completed_at")


def explain_verdict(
    row: Mapping[str, Any],
    *,
    storage: Storage,
    find_source: Callable[[str], Source],
    policy: RefinementPolicy | None,
    redaction_key: bytes | None,
) -> Row:
    """Return what is known of how a run came to its verdict; a missing part has its reason under ``missing``.

    The row is one of ``trajectory.trajectories``. ``find_source`` gives the source of a name, which is read if it can
    be reached. ``policy`` is the current one, if there is a judge; that of the run's last verdict goes before it.
    Without a redaction key, the database's is used.
    """
    run_id = str(row["run_id"])
    verdicts = verdicts_of_run(storage.postgres, run_id)
    verdict = verdicts[0] if verdicts else None
    attempts = attempts_of_run(storage.postgres, run_id)
    key = (verdict or {}).get("verdict_key")
    return {
        "run_id": run_id,
        "partition_key": row["partition_key"],
        "captured": _captured(storage.parquet, row),
        "source": _source(find_source, row),
        "trajectory": {name: value for name, value in row.items() if name != "data"},
        "shown": _shown(row, storage, _policy(policy, verdict), redaction_key, verdict),
        "verdict": verdict,
        "attempts": [attempt for attempt in attempts if attempt["verdict_key"] == key],
        "other_verdicts": [
            {name: other[name] for name in ("policy_id", "repetition", "verdict_status", "outcome", "updated_at")}
            for other in verdicts[1:]
        ],
        "missing": None if verdict else "no verdict: not judged yet, not captured long enough ago, or no judge is set",
    }


def _captured(store: ParquetStore, row: Mapping[str, Any]) -> Row:
    found = find_row(store, TERMINAL_RUNS, str(row["run_id"]), row["partition_key"])
    if found is None:
        where = f"{store.shown_uri}: materialize terminal_runs of {row['partition_key']}"
        return {"missing": f"the raw rows are not in {where}"}
    return _raw(found)


def _source(find_source: Callable[[str], Source], row: Mapping[str, Any]) -> Row:
    hour = parse_partition_key(row["partition_key"])
    run_id: Any = row["run_id"]
    try:
        with find_source(source_of_key(row["partition_key"])).snapshot() as snapshot:
            for batch in snapshot.terminal_runs(hour, hour + HOUR):
                found = rows_of(batch.filter(pc.equal(batch.column("run_id"), run_id)))
                if found:
                    return _raw(found[0])
    except PipelineError as error:
        return {"missing": f"the source was not read: {error}"}
    return {"missing": "the source has no such run in that hour now: it moved, or was deleted"}


def _raw(found: Mapping[str, Any]) -> Row:
    run = found.get("run") or found
    columns = {name: run[name] for name in _RAW_COLUMNS if isinstance(run, dict) and run.get(name) is not None}
    return {**columns, "steps": len(found.get("steps") or ()), "messages": len(found.get("messages") or ())}


def _policy(policy: RefinementPolicy | None, verdict: Mapping[str, Any] | None) -> RefinementPolicy | None:
    """Return the policy that a verdict was reached under, as far as this version knows its parts."""
    if verdict is None or verdict["definition"] is None:
        return policy
    definition = verdict["definition"]
    if "judges" in definition:
        definition = definition["judges"][0]["policy"]
    parameters = definition.get("parameters") or {}
    redaction = definition.get("redaction")
    return RefinementPolicy(
        definition["model"],
        parameters.get("temperature", 0.0),
        parameters.get("max_prompt_tokens", RefinementPolicy.max_prompt_tokens),
        parameters.get("max_answer_tokens", RefinementPolicy.max_response_tokens),
        RedactionMode(redaction["mode"]) if isinstance(redaction, dict) else RedactionMode.SECRETS,
        # Older policies showed no context.
        instructions_tokens=parameters.get("instructions_tokens", 0),
        earlier_turns_tokens=parameters.get("earlier_turns_tokens", 0),
    )


def _shown(
    row: Mapping[str, Any],
    storage: Storage,
    policy: RefinementPolicy | None,
    redaction_key: bytes | None,
    verdict: Mapping[str, Any] | None,
) -> Row:
    """Render what the judge was shown once more, and compare it with what it was shown then."""
    if policy is None:
        return {"missing": "no judge is set and none was asked, so no policy says how to render it"}
    policy = replace(policy, redaction_key=stored_redaction_key(storage.postgres, redaction_key))
    run_id, key = str(row["run_id"]), row["partition_key"]
    with open_verdicts(storage.postgres) as verdicts:
        candidates = judging_candidates(verdicts.connection, policy.policy_id, [key], JudgeOrder.NEWEST)
        candidate = next((one for one in candidates if one.run_id == run_id), None)
        run_ids = candidate.task_run_ids if candidate else (run_id,)
        rows = verdicts.documents(run_ids)
        spoken = verdicts.spoken_documents(candidate.conversation_run_ids) if candidate else {}
    try:
        documents = shown_documents(run_ids, key, rows, storage.parquet)
        context = NO_CONTEXT
        if candidate is not None:
            earlier = shown_documents(candidate.conversation_run_ids, key, spoken, storage.parquet)
            context = TaskContext(AgentContexts(storage.parquet, [candidate]).of(candidate), earlier)
        request = build_judge_request(documents, policy, context=context)
    except MissingDocumentError as missing:
        return {"missing": str(missing)}
    except PipelineError:
        raise
    except Exception as error:
        return {"missing": f"it cannot be rendered: {describe_defect(error)}"}
    digest = (verdict or {}).get("shown_sha256")
    return {
        "context": "\n\n".join(request.context.bodies),
        "context_coverage": request.context.coverage,
        "windows": [window.text for window in request.rendered.windows],
        "coverage": request.rendered.coverage,
        "prompt_tokens": request.prompt_tokens,
        # None if no digest of what was judged is stored.
        "same_as_judged": digest and digest == request.shown_sha256,
    }
