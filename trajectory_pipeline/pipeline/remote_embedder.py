"""Embeds texts by a model behind an OpenAI-compatible API, within the budget of judging, and pays for no text twice.

A text is claimed before it is sent, and its embedding is stored as soon as it is there, together with the end of the
claim. Each HTTP call is a row of ``verdict_attempts``, reserved before and settled after, as those of a judge are.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any
from uuid import uuid4

from trajectory_pipeline.budget.caps import BudgetExhausted, BudgetShortfall, Cost, SpendTotals, find_shortfall
from trajectory_pipeline.budget.token_estimate import estimated_tokens
from trajectory_pipeline.errors import JudgeError, PipelineError, ProviderDownError
from trajectory_pipeline.judge.client.backoff import RequestSlot
from trajectory_pipeline.judge.client.call_record import CallRecord
from trajectory_pipeline.judge.client.embeddings import EmbeddingsResult, max_embeddings_bytes
from trajectory_pipeline.judge.client.errors import FATAL, PER_PROMPT, is_outage
from trajectory_pipeline.judge.client.session import JudgeSession, open_session
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.lossless_json import canonical_json
from trajectory_pipeline.pipeline.call_budget import (
    CLAIM_EXTRA_SECONDS,
    CallBudget,
    ClaimedElsewhere,
    JudgingStopped,
    priced,
    rate_limit,
)
from trajectory_pipeline.pipeline.embed import EmbeddingStats, usable_embedding, usable_embeddings
from trajectory_pipeline.pipeline.judge_candidates import run_to_end
from trajectory_pipeline.pipeline.judge_worker import CLAIM_POLL_SECONDS, CLAIM_RENEW_SECONDS
from trajectory_pipeline.schema.enums import ErrorClass
from trajectory_pipeline.search.embedding_models import EmbeddingModel, Vector
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.embeddings import EmbeddingStore, FailedText, WantedText
from trajectory_pipeline.storage.postgres.pgvector import PgVector
from trajectory_pipeline.storage.postgres.rate_limiter import open_rate_limiter
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection
from trajectory_pipeline.storage.postgres.spend_ledger import SEARCH, CallReservation, day_of, spend_totals
from trajectory_pipeline.storage.postgres.verdict_locks import (
    ExpiredClaims,
    VerdictLock,
    claim_holders,
    new_worker,
    renew_locks,
)
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore
from trajectory_pipeline.urls import without_credentials

_MOST_TOKENS = 250_000
"""Of one call, by estimate: OpenAI takes 300,000."""
QUERY_TIMEOUT_SECONDS = 10.0
"""Of the one call for what is searched for, at the most: somebody waits, and words are found without it."""
_LEAST_TOKENS = 20
"""Of the smallest text."""
_ONE_BY_ONE = PER_PROMPT | {ErrorClass.BAD_REQUEST}
"""Classes of a refusal that one text may be the reason of: each is sent alone then."""

Texts = Mapping[str, Sequence[WantedText]]
"""Runs by the digest of their text: equal texts are sent once."""


@dataclass(frozen=True)
class RemoteEmbedder:
    """An embedding model behind an API.

    Attributes:
        api: where it is, its limits, its budget, and whose texts may be sent.
        dimensions: how many numbers to ask for; None for as many as it makes.
        texts_per_call: most texts in one call.
    """

    api: JudgeConfig
    dimensions: int | None = None
    texts_per_call: int = 64

    @property
    def model(self) -> EmbeddingModel:
        """The model."""
        return EmbeddingModel(self.api.model, without_credentials(self.api.base_url), asked_dimensions=self.dimensions)

    @property
    def identity(self) -> str:
        """What decides which texts have an embedding: the model, and whose texts may be sent."""
        return f"{self.model.model_id} {canonical_json(dict(self.api.access.parameters()))}"

    def require_price(self) -> None:
        """Raise JudgeError where the model has no known price, and that is not allowed."""
        self.api.budget.require_price(self.api.model, self.api.base_url, answers=False)

    def shortfall(self, connection: RetryingConnection) -> BudgetShortfall | None:
        """Return the cap that has no headroom today for the smallest call; None where there is none."""
        totals = spend_totals(connection, day_of(connection.now()), None, "")
        shared = [cap for cap in self.api.budget.caps if cap.scope == "day"]
        return find_shortfall(shared, {"day": totals.get("day", SpendTotals())}, self._least)

    @property
    def _least(self) -> Cost:
        return self.api.max_call_cost(_LEAST_TOKENS, 0)

    def embed(
        self,
        store: EmbeddingStore,
        database: TrajectoryDatabase,
        partition_keys: Sequence[str],
        materialization_id: str,
        progress: Callable[[str], None],
    ) -> EmbeddingStats:
        """Embed the texts of partitions that have no embedding, as far as the budget goes.

        Raises:
            JudgeError: the model has no known price, and that is not allowed; or only this machine may be asked.
            ProviderDownError: the provider is down or refuses every call; what is stored stays.
            SinkError: embeddings cannot be stored; what is stored stays.
        """
        self.require_price()
        wanted = store.wanted(partition_keys)
        allowed = self._allowed(store, wanted)
        if not allowed:
            return EmbeddingStats()
        with (
            database.retrying() as ledger,
            database.retrying() as claims,
            open_rate_limiter(database, rate_limit(self.api)) as request_slot,
        ):
            worker = _Worker(self, store, ledger, claims, request_slot, materialization_id, progress, self._least)
            try:
                run_to_end(worker.embed_all(allowed))
            finally:
                with suppress(PipelineError):
                    store.release(worker.name)
            # Texts of equal words, and those that another worker has embedded meanwhile.
            store.reuse(partition_keys)
        return worker.stats

    def embed_query(self, database: TrajectoryDatabase, pgvector: PgVector, text: str) -> Vector:
        """Return the embedding of what is searched for.

        Raises:
            JudgeError: the model cannot be asked, or its answer is unusable; the text says why.
            BudgetExhausted: a cap has no headroom for the call.
            SinkError: the budget cannot be reserved.
        """
        self.require_price()
        seconds = min(self.api.timeout_seconds, QUERY_TIMEOUT_SECONDS)
        once = replace(self, api=replace(self.api, timeout_seconds=seconds, max_attempts=1))

        async def ask() -> EmbeddingsResult:
            async with open_session(once.api, request_slot=request_slot, max_bytes=max_embeddings_bytes(1)) as session:
                return await worker.request(session, [text], None, ())

        with (
            database.retrying() as ledger,
            open_rate_limiter(database, rate_limit(self.api)) as request_slot,
        ):
            store = EmbeddingStore(ledger, pgvector, self.model)
            worker = _Worker(
                once, store, ledger, ledger, request_slot, f"{SEARCH} {uuid4()}", lambda _: None, self._least
            )
            result = run_to_end(ask())
        if result.embeddings is None:
            raise JudgeError(f"The embedding model gave no embedding: {result.calls[-1].error_message}")
        return usable_embedding(result.embeddings[0])

    def _allowed(self, store: EmbeddingStore, wanted: Sequence[WantedText]) -> list[WantedText]:
        """Return the texts that may be sent; record of the others that they may not."""
        refusals = {one.run_id: self.api.access.refusal(one.agent_id, one.organization_id) for one in wanted}
        for one in wanted:
            if (reason := refusals[one.run_id]) is not None and not one.is_denied:
                store.save([one], {one.text_digest: FailedText(ErrorClass.DENIED, reason, is_retried=False)})
        return [one for one in wanted if refusals[one.run_id] is None]


@dataclass
class _Worker:
    """Sends texts in calls, a few of them at once."""

    embedder: RemoteEmbedder
    store: EmbeddingStore
    ledger: RetryingConnection
    claims: RetryingConnection
    request_slot: RequestSlot | None
    materialization_id: str
    progress: Callable[[str], None]
    least: Cost
    stats: EmbeddingStats = field(default_factory=EmbeddingStats)

    def __post_init__(self) -> None:
        self.name = new_worker()
        self._api = self.embedder.api
        self._budget = CallBudget(self.ledger, self._api, self.materialization_id, self.name, self.least)
        self._storing = asyncio.Lock()
        self._dimensions = self.store.dimensions() or self.embedder.dimensions
        self._former: dict[str, str] = {}
        self._total = 0

    async def embed_all(self, wanted: Sequence[WantedText]) -> None:
        api = self._api
        endpoint = without_credentials(api.base_url)
        latest = VerdictStore(self.store.connection).latest_error_classes(endpoint, api.model, api.breaker_after)
        renewal = asyncio.create_task(self._renew_claims())
        waiting: Texts = _by_digest(wanted)
        self._total = len(waiting)
        try:
            async with open_session(
                api,
                request_slot=self.request_slot,
                half_open=is_outage(latest, api.breaker_after),
                max_bytes=max_embeddings_bytes(self.embedder.texts_per_call),
            ) as session:
                while waiting:
                    claimed = await self._embed_waiting(waiting, session)
                    waiting = await self._wait_for_others({digest: waiting[digest] for digest in claimed})
        finally:
            renewal.cancel()

    async def _renew_claims(self) -> None:
        while True:
            await asyncio.sleep(CLAIM_RENEW_SECONDS)
            with suppress(PipelineError):
                await asyncio.to_thread(renew_locks, self.claims, self.name, CLAIM_EXTRA_SECONDS)

    async def _embed_waiting(self, waiting: Texts, session: JudgeSession) -> set[str]:
        """Embed what waits; returns the digests of texts that other workers have claimed."""
        calls = deque(_portions(waiting, self.embedder.texts_per_call))
        claimed: set[str] = set()
        failures: list[Exception] = []

        async def work() -> None:
            while calls and not failures:
                try:
                    claimed.update(await self._embed_portion(calls.popleft(), session))
                except JudgingStopped:
                    return
                except Exception as error:  # raised below, when no call is in flight any more
                    self._budget.stopped = True
                    failures.append(error)

        await asyncio.gather(*(work() for _ in range(min(self._api.concurrency, len(calls)))))
        if failures:
            raise failures[0]
        return claimed

    async def _embed_portion(self, texts: Texts, session: JudgeSession) -> set[str]:
        """Embed the texts of one call; returns the digests of those that another worker has claimed."""
        claims = self._claims(texts)
        async with self._storing:
            refused, known = await asyncio.to_thread(self.store.claim, claims)
        mine = {digest: runs for digest, runs in texts.items() if digest not in refused | known}
        if mine:
            try:
                await self._ask(mine, session)
            except ClaimedElsewhere:
                return refused | set(mine)
            except BudgetExhausted as exhausted:
                self.stats.deferred[exhausted.shortfall.cap.name] += len(mine)
        return refused

    async def _ask(self, texts: Texts, session: JudgeSession) -> None:
        bodies = [runs[0].text for runs in texts.values()]
        organization_id = next(iter(texts.values()))[0].organization_id
        result = await self.request(session, bodies, organization_id, self._claims(texts))
        if result.embeddings is not None:
            await self._store(texts, result.embeddings)
            return
        last = result.calls[-1]
        error_class = last.error_class or ErrorClass.NO_ANSWER
        if error_class in FATAL:
            raise ProviderDownError(f"The embedding model cannot be asked: {last.error_message}")
        if error_class in _ONE_BY_ONE and len(texts) > 1:
            for digest, runs in texts.items():
                await self._ask({digest: runs}, session)
            return
        failed = FailedText(error_class, last.error_message or "", is_retried=error_class not in PER_PROMPT)
        await self._save(texts, dict.fromkeys(texts, failed))

    async def request(
        self, session: JudgeSession, texts: Sequence[str], organization_id: str | None, claims: Sequence[VerdictLock]
    ) -> EmbeddingsResult:
        """Ask for the embeddings of texts, within the budget; raises what ``JudgeSession.embed`` raises."""
        begun: dict[str, CallRecord] = {}
        ended: list[CallRecord] = []
        self._budget.check_headroom(organization_id)

        async def begin(call: CallRecord) -> None:
            usd = self._api.budget.prices.max_cost(call.model, self._api.base_url, call.estimated_prompt_tokens, 0)
            reserved = Cost(usd or Decimal(0), call.estimated_prompt_tokens)
            # If its end is never seen, it stays lost, at what it may have cost.
            lost = replace(call, cost_usd=usd)
            row = {
                **self._row(lost),
                "reserved_usd": usd,
                "reserved_tokens": reserved.tokens,
                "organization_id": organization_id,
                "materialization_id": self.materialization_id,
            }
            await self._budget.reserve(CallReservation(row, reserved, reserved, claims))
            begun[call.attempt_id] = lost

        async def end(call: CallRecord) -> None:
            settled = priced(call, begun[call.attempt_id].cost_usd, self._api)
            await self._budget.settle(self._row(settled))
            ended.append(settled)

        try:
            return await session.embed(texts, self.embedder.dimensions, self._dimensions, begin, end)
        finally:
            self.stats.add_calls(ended)
            await self._budget.release(len(begun) - len(ended))

    async def _store(self, texts: Texts, embeddings: Sequence[Sequence[float]]) -> None:
        found = usable_embeddings(texts, embeddings, is_retried=True)
        self.stats.count(found)
        usable = (len(one) for one in found.values() if not isinstance(one, FailedText))
        self._dimensions = self._dimensions or next(usable, None)
        await self._save(texts, found)
        self.progress(f"{self.stats.embedded} of {self._total} texts embedded, {self.stats.cost_usd} USD")

    async def _save(self, texts: Texts, found: Mapping[str, Vector | FailedText]) -> None:
        runs = [run for each in texts.values() for run in each]
        async with self._storing:
            await asyncio.to_thread(self.store.save, runs, found, self.name)

    async def _wait_for_others(self, claimed: Texts) -> Texts:
        """Wait until a claim ends, or stays expired; returns the texts to try again."""
        if claimed:
            self.progress(f"waiting for {len(claimed)} texts that other workers have claimed")
        digests = {self.store.claim_key(digest): digest for digest in claimed}
        expired = ExpiredClaims()
        while claimed:
            async with self._storing:
                holders = await asyncio.to_thread(claim_holders, self.store.connection, list(digests))
            dead = expired.dead_holders(holders)
            self._former |= dead
            if free := digests.keys() - (holders.keys() - dead.keys()):
                # Those that are free first; the others are found claimed again.
                return dict(sorted(claimed.items(), key=lambda item: self.store.claim_key(item[0]) not in free))
            await asyncio.sleep(CLAIM_POLL_SECONDS)
        return {}

    def _claims(self, texts: Collection[str]) -> list[VerdictLock]:
        seconds = self._api.timeout_seconds + CLAIM_EXTRA_SECONDS
        keys = sorted(map(self.store.claim_key, texts))
        return [VerdictLock("", key, self.name, seconds, self._former.get(key)) for key in keys]

    def _row(self, call: CallRecord) -> dict[str, Any]:
        model_id = self.store.model.model_id
        return {**call.as_row(), "run_id": None, "verdict_key": None, "policy_id": model_id}


def _by_digest(wanted: Sequence[WantedText]) -> dict[str, list[WantedText]]:
    found: dict[str, list[WantedText]] = {}
    for one in sorted(wanted, key=lambda text: text.organization_id or ""):
        found.setdefault(one.text_digest, []).append(one)
    return found


def _portions(texts: Texts, most: int) -> Iterator[Texts]:
    """Yield the texts of one call each: of one organization, whose cap they count against."""
    portion: dict[str, Sequence[WantedText]] = {}
    tokens, organization = 0, None
    for digest, runs in texts.items():
        own, of = estimated_tokens(runs[0].text), runs[0].organization_id
        if portion and (len(portion) == most or tokens + own > _MOST_TOKENS or of != organization):
            yield portion
            portion, tokens = {}, 0
        portion[digest], organization = runs, of
        tokens += own
    if portion:
        yield portion
