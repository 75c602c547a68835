"""Running coroutines together and ending them properly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

_T = TypeVar("_T")


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
