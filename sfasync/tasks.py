"""Running coroutines together and ending them properly."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

_T = TypeVar("_T")

_OVER: Final = object()


class Looks(AsyncIterator[None]):
    """Moments at which to look whether something has happened: now, and then after pauses that double.

    ::

        async for _ in Looks(0.01, 1.0, seconds=60.0):
            if await has_happened():
                break
        else:
            raise ...  # time is up

    Args:
        first, longest: Seconds of the first pause, and of the longest one.
        seconds: Of all pauses together; the last one is shortened to that.
    """

    def __init__(self, first: float, longest: float, *, seconds: float = math.inf) -> None:
        self._pause = min(first, longest)
        self._longest = longest
        self._seconds = seconds
        self._end: float | None = None

    async def __anext__(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._end is None:
            self._end = now + self._seconds
            return
        left = self._end - now
        if left <= 0:
            raise StopAsyncIteration
        await asyncio.sleep(min(self._pause, left))
        self._pause = min(2 * self._pause, self._longest)


async def insist(ask: Callable[[], Awaitable[_T]], refusal: type[Exception], looks: Looks) -> _T:
    """What is answered; asked at each of those moments, while the answer is that refusal.

    Raises:
        Exception: The refusal, the last time; or what else is raised.
    """
    await anext(looks)
    while True:
        try:
            return await ask()
        except refusal:
            if await anext(looks, _OVER) is _OVER:
                raise


async def run_all(coroutines: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """The results of all coroutines, run at the same time, in their order.

    The first failure cancels the others and is raised as it is; later failures are attached to it as notes. Returns or
    raises only when all of them have ended. Cancelling cancels them all.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as failures:  # in order of time: a TaskGroup collects them as the tasks end
        raise first_cause(failures) from None
    return [task.result() for task in tasks]


def first_cause(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group, with the others attached as notes."""
    first, *others = _flat(failures)
    for other in others:
        first.add_note(f"also: {type(other).__name__}: {other}")
    return first


def _flat(failures: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    flat: list[BaseException] = []
    for failure in failures.exceptions:
        flat.extend(_flat(failure) if isinstance(failure, BaseExceptionGroup) else [failure])
    return flat


async def finish(coroutine: Coroutine[Any, Any, _T], deadline: float, *, hurried: float | None = None) -> _T:
    """The result of a clean-up that must run to its end although the caller is being cancelled.

    A cancellation that arrives meanwhile is raised when the coroutine has ended. A second one shortens the time left to
    half a second.

    Args:
        coroutine: What has to be done.
        deadline: Seconds after which it is cancelled itself.
        hurried: Seconds that a cancellation leaves it at most; None to leave it the deadline.

    Raises:
        TimeoutError: It took longer and was cancelled.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    task = asyncio.ensure_future(coroutine)
    interrupted: asyncio.CancelledError | None = None
    while not task.done() and loop.time() < end:
        try:
            await asyncio.wait({task}, timeout=end - loop.time())
        except asyncio.CancelledError as cancellation:
            left = hurried if interrupted is None else 0.5
            if left is not None:
                end = min(end, loop.time() + left)
            interrupted = interrupted or cancellation
    timed_out = not task.done()
    if timed_out:
        interrupted = await cancelled(task) or interrupted
    if interrupted is not None:
        if not task.cancelled():
            task.exception()  # seen: the cancellation goes first
        raise interrupted
    if timed_out:
        raise TimeoutError(f"clean-up was not done after {deadline:g} s")
    return task.result()


@asynccontextmanager
async def meanwhile(coroutine: Coroutine[Any, Any, _T]) -> AsyncIterator[asyncio.Task[_T]]:
    """A task that runs during the block, to be awaited in it, and is cancelled at its end if it is not.

    What becomes of a task that nobody awaits is of no interest.
    """
    task = asyncio.ensure_future(coroutine)
    try:
        yield task
    finally:
        interruption = await cancelled(task)
        if not task.cancelled():
            task.exception()  # seen
        if interruption is not None:
            raise interruption


async def cancelled(task: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Cancel a task, if it runs still, and wait for its end.

    Returns:
        A cancellation of the caller that arrived meanwhile and should be raised once everything is cleaned up.
    """
    interrupted: asyncio.CancelledError | None = None
    task.cancel()
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as cancellation:
            interrupted = cancellation
            task.cancel()
    return interrupted
