"""Look-ups of verdicts that other workers have claimed: reached by now, free again, or still claimed."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from trajectory_pipeline.schema.enums import FINAL_STATUSES
from trajectory_pipeline.storage.postgres.verdict_locks import live_locks
from trajectory_pipeline.storage.postgres.verdict_status import JudgingCandidate
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore


@dataclass(frozen=True)
class ClaimedVerdicts:
    """What became of claimed verdicts, each list in the order asked.

    Attributes:
        claimed: another worker still has the claim.
        reached: the verdict is stored.
        free: the claim ended without a verdict.
    """

    claimed: list[JudgingCandidate]
    reached: list[JudgingCandidate]
    free: list[JudgingCandidate]


async def look_up_claims(
    verdicts: VerdictStore, candidates: Sequence[JudgingCandidate], since: datetime
) -> ClaimedVerdicts:
    """Return which claims on these verdicts live, and what became of the others.

    Args:
        verdicts: where claims and verdicts are.
        candidates: whose verdicts were claimed.
        since: a verdict that is not final counts as reached if it was stored since then, by the database's clock.

    Raises:
        SinkError: the database cannot be read.
    """
    live = await asyncio.to_thread(live_locks, verdicts.connection, [one.verdict_key for one in candidates])
    ended = [one for one in candidates if one.verdict_key not in live]
    stored = await asyncio.to_thread(verdicts.verdicts, [one.key for one in ended])

    def is_reached(candidate: JudgingCandidate) -> bool:
        # Whatever the other worker stored meanwhile holds: a failed verdict is tried again when that is due.
        verdict = stored.get(candidate.key)
        return verdict is not None and (verdict["verdict_status"] in FINAL_STATUSES or verdict["updated_at"] >= since)

    return ClaimedVerdicts(
        claimed=[one for one in candidates if one.verdict_key in live],
        reached=[one for one in ended if is_reached(one)],
        free=[one for one in ended if not is_reached(one)],
    )
