"""Batches work for one connection: items that arrive within a moment, or while it is busy, form the next batch."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_GATHERING_SECONDS = 0.01
"""A transaction costs many times what one more item in it does; a call to a judge takes a hundred times as long."""


class MicroBatcher(Generic[_Item, _Result]):
    """Offers work on many items, which returns a result for each, as a call for each of them.

    If a batch fails, its items are tried one by one, so that one bad item fails alone. The work runs in a thread, off
    the event loop, and holds the lock, which all work on the same connection shares.
    """

    def __init__(self, lock: asyncio.Lock, work: Callable[[Sequence[_Item]], Sequence[_Result]]) -> None:
        self._lock = lock
        self._work = work
        self._waiting: list[tuple[_Item, asyncio.Future[_Result]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, item: _Item) -> _Result:
        """Do the work on an item; returns its result, or raises what the work raised."""
        future: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._waiting) == 1:
            task = asyncio.create_task(self._run_batch())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _run_batch(self) -> None:
        await asyncio.sleep(_GATHERING_SECONDS)
        async with self._lock:
            batch, self._waiting = self._waiting, []
            await self._run(batch)

    async def _run(self, batch: "Sequence[tuple[_Item, asyncio.Future[_Result]]]") -> None:
        try:
            results = await asyncio.to_thread(self._work, [item for item, _ in batch])
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    await self._run([one])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
