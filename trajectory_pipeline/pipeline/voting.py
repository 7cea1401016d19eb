"""Judges trajectories under a policy with several votes: each vote is a verdict under the policy of its judge.

A vote that was stored is never asked for again, whatever ended the work between two votes.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from trajectory_pipeline.judge.config import JudgeConfig, Voter
from trajectory_pipeline.judge.votes import Vote, combine_votes, escalation, unfinished_vote
from trajectory_pipeline.pipeline.judge_worker import sample_of, verdict_identity
from trajectory_pipeline.pipeline.judging_estimate import needs_judging
from trajectory_pipeline.pipeline.judging_stats import JudgingStats
from trajectory_pipeline.schema.enums import EscalateWhen, VerdictStatus
from trajectory_pipeline.storage.postgres.verdict_locks import new_worker
from trajectory_pipeline.storage.postgres.verdict_status import JudgingCandidate
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore, open_verdicts
from trajectory_pipeline.storage.storage import Storage

AT_ONCE = 100
"""So many trajectories get all their votes before others get any.

A cap that ends in between then leaves verdicts, and not only first votes: of a backlog that is larger than each day's
budget, no verdict would ever be complete.
"""

Unfinished = tuple[Collection[JudgingCandidate], Exception | None]
JudgeAlone = Callable[
    [Sequence[JudgingCandidate], JudgeConfig, Mapping[str, JudgingStats], Callable[[str], None]], Unfinished
]
"""Judges candidates with one judge: see ``judge_candidates``."""


@dataclass
class Voting:
    """Asks for the votes on each trajectory, some trajectories at a time, and combines them, partition by partition.

    Attributes:
        judge: with its voters, and a resolved redaction key.
        stats: what judging did, by partition key; the calls for all votes are added.
        judge_alone: asks one judge.
        on_complete: is called when the last verdict of a partition is stored.
    """

    candidates: Sequence[JudgingCandidate]
    storage: Storage
    judge: JudgeConfig
    verdicts: VerdictStore
    stats: Mapping[str, JudgingStats]
    judge_alone: JudgeAlone
    on_complete: Callable[[str], None]
    _here: Sequence[JudgingCandidate] = ()
    _stored: set[JudgingCandidate] = field(default_factory=set)
    _asked: set[str] = field(default_factory=set)
    _reasons: dict[JudgingCandidate, EscalateWhen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._left = Counter(one.partition_key for one in self.candidates)

    def run(self) -> Unfinished:
        """Judge all; returns the trajectories that are left without a verdict, and the error that ended it, if any."""
        voters = self.judge.voters
        for voter in voters:
            policy = voter.judge.policy
            self.verdicts.record_policy(policy.policy_id, policy.definition, policy.model)
        error: Exception | None = None
        for number in range(0, len(self.candidates), AT_ONCE):
            self._here = self.candidates[number : number + AT_ONCE]
            error = self._judge_here()
            if error is not None:
                break
        return [one for one in self.candidates if one not in self._stored], error

    def _judge_here(self) -> Exception | None:
        first, second = self._first, [voter for voter in self.judge.voters if voter.escalated]
        error = self._ask(self._here, first, is_last=not second)
        if error is not None or not second:
            return error
        escalated: list[JudgingCandidate] = []
        for candidate, votes in self._votes(self.verdicts, self._here, first).items():
            reason = escalation(votes, self.judge.rule, candidate.heuristic_outcome)
            if reason is not None:
                self._reasons[candidate] = reason
                escalated.append(candidate)
        return self._ask(escalated, second, is_last=True)

    @property
    def _first(self) -> list[Voter]:
        return [voter for voter in self.judge.voters if not voter.escalated]

    def _ask(
        self, candidates: Sequence[JudgingCandidate], voters: Sequence[Voter], *, is_last: bool
    ) -> Exception | None:
        """Ask for the votes of one step, one after another; with the last vote of all, combine each partition's."""
        rounds = [(voter, sample) for voter in voters for sample in range(voter.samples)]
        for number, (voter, sample) in enumerate(rounds, 1):
            ends = is_last and number == len(rounds)
            asked = candidates
            if voter.judge.statements_from is not None:
                # Nothing can be decided where a vote before it has not ended.
                before = self._votes(self.verdicts, candidates, voters[: voters.index(voter)])
                asked = [one for one, votes in before.items() if unfinished_vote(votes) is None]
            due = self._due([sample_of(one, voter, sample) for one in asked], voter)
            if ends:
                waited_for = {one.partition_key for one in due}
                for key in {one.partition_key for one in self._here} - waited_for:
                    self._combine(key)
            if not due:
                continue
            stats: defaultdict[str, JudgingStats] = defaultdict(JudgingStats)
            _, error = self.judge_alone(due, voter.judge, stats, self._combine if ends else lambda _: None)
            # A trajectory counts once, however many judges are asked about it.
            newly = Counter(one.partition_key for one in due if one.run_id not in self._asked)
            self._asked |= {one.run_id for one in due}
            for key, done in stats.items():
                self.stats[key].add(replace(done, judged=min(done.judged, newly[key])))
            if error is not None:
                return error
        return None

    def _due(self, votes: Sequence[JudgingCandidate], voter: Voter) -> list[JudgingCandidate]:
        """Return the votes that are still to be asked for."""
        now = self.verdicts.now()
        stored = self.verdicts.verdicts([vote.key for vote in votes])
        due: list[JudgingCandidate] = []
        for vote in votes:
            row = stored.get(vote.key)
            if row is None or row["erased"]:
                due.append(vote)
                continue
            status, retry = row["verdict_status"], row["next_attempt_at"]
            backing_off = status == VerdictStatus.QUARANTINED and retry is not None and retry > now
            known = replace(vote, status=status, error_class=row["error_class"], backing_off=backing_off)
            if known.due or needs_judging(known, voter.judge.access):
                due.append(known)
        return due

    def _votes(
        self, verdicts: VerdictStore, candidates: Sequence[JudgingCandidate], voters: Sequence[Voter]
    ) -> dict[JudgingCandidate, list[Vote]]:
        """Return the votes on each trajectory, in the order of the policy.

        Those without all votes are left out, unless it is because a vote before it has not ended.
        """
        slots = [(voter, sample) for voter in voters for sample in range(voter.samples)]
        keys = {one: [sample_of(one, voter, sample).key for voter, sample in slots] for one in candidates}
        stored = verdicts.verdicts([key for listed in keys.values() for key in listed])
        found = {
            one: [
                Vote(stored[key], voter.escalated)
                for key, (voter, _) in zip(listed, slots, strict=True)
                if key in stored
            ]
            for one, listed in keys.items()
        }
        return {one: votes for one, votes in found.items() if len(votes) == len(slots) or unfinished_vote(votes)}

    def _combine(self, key: str) -> None:
        """Store the verdicts of those trajectories of a partition that were asked about, as far as votes are there."""
        here = [one for one in self._here if one.partition_key == key]
        escalated = [one for one in here if one in self._reasons]
        policy_id = self.judge.policy.policy_id
        with open_verdicts(self.storage.postgres) as verdicts:
            votes = self._votes(verdicts, [one for one in here if one not in self._reasons], self._first)
            votes |= self._votes(verdicts, escalated, self.judge.voters)
            rows = [
                {
                    **verdict_identity(one, policy_id),
                    **combine_votes(listed, self.judge.rule, one.heuristic_outcome, self._reasons.get(one)),
                }
                for one, listed in votes.items()
            ]
            if rows:
                verdicts.save_verdicts(rows, new_worker())
        self._stored |= votes.keys()
        self._left[key] -= len(here)
        if not self._left[key]:
            self.on_complete(key)
