"""Work on one connection that many tasks wait for, done together: what comes while it is busy makes the next round.

Belongs here: collecting. Does not belong here: the work.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class MicroBatcher(Generic[_Item, _Result]):
    """Turns work on many items into a call for each of them.

    A round of items that fails as a whole is done again one by one, so that one bad item is its own affair.

    Args:
        turn: held while the work is done: one for all work on the same connection.
        work: takes items and returns a result for each; runs in a thread, off the loop.
    """

    def __init__(self, turn: asyncio.Lock, work: Callable[[Sequence[_Item]], Sequence[_Result]]) -> None:
        self._turn = turn
        self._work = work
        self._waiting: list[tuple[_Item, asyncio.Future[_Result]]] = []
        self._rounds: set[asyncio.Task[None]] = set()

    async def __call__(self, item: _Item) -> _Result:
        """Have the work done on an item; returns its result, or raises what the work raised."""
        future: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._waiting) == 1:
            task = asyncio.create_task(self._round())
            self._rounds.add(task)
            task.add_done_callback(self._rounds.discard)
        return await future

    async def _round(self) -> None:
        async with self._turn:
            taken, self._waiting = self._waiting, []
            try:
                results = await asyncio.to_thread(self._work, [item for item, _ in taken])
            except Exception as error:
                if len(taken) == 1:
                    _fail(taken[0][1], error)
                else:
                    for item, future in taken:
                        await self._alone(item, future)
                return
            for (_, future), result in zip(taken, results, strict=True):
                if not future.done():
                    future.set_result(result)

    async def _alone(self, item: _Item, future: "asyncio.Future[_Result]") -> None:
        try:
            (result,) = await asyncio.to_thread(self._work, [item])
        except Exception as error:
            _fail(future, error)
        else:
            if not future.done():
                future.set_result(result)


def _fail(future: "asyncio.Future[_Result]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
