"""A named, bounded set of threads for work that would hold up the event loop: sealing, hashing and file I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from .errors import StateError, SystemLimitError

_T = TypeVar("_T")


class Workers:
    """Threads that run one function per block; each function should consist of calls that release the GIL.

    A hop to a thread and back costs 35-70 µs, so a block makes one.
    """

    def __init__(self, count: int, name: str = "sfasync") -> None:
        self.count = count
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._closed = False
        self._alive = False  # whether there is a thread; it lasts until the workers are closed

    async def run(self, function: Callable[..., _T], *args: object) -> _T:
        """The result of `function(*args)`, run in a thread.

        Cancelling returns at once; the function goes on and its result is dropped. For a function that touches a
        buffer use `run_to_end`.
        """
        return await asyncio.wrap_future(self.submit(function, *args))

    async def run_to_end(self, function: Callable[..., _T], *args: object) -> _T:
        """As `run`, for a function that touches the caller's memory: cancelling waits until the thread has left it.

        A function that no thread has begun yet when the cancellation arrives is never begun.
        """
        return await settled(self.submit(function, *args))

    async def run_surely(self, function: Callable[..., _T], *args: object) -> _T:
        """As `run_to_end`, for clean-up: it is run, cancelled or not, as soon as a thread is free."""
        return await settled(self.submit(function, *args), surely=True)

    async def run_anyway(self, function: Callable[..., _T], *args: object) -> _T:
        """As `run`, for clean-up that touches no memory of the caller: it is run, whether cancelled or not."""
        future = self.submit(function, *args)
        await _end_of(future)
        return future.result()

    def submit(self, function: Callable[..., _T], *args: object) -> Future[_T]:
        """Start a function in a thread, from any thread; one of these workers must not wait for it to begin.

        Raises:
            StateError: The workers were closed.
            SystemLimitError: Not a single thread could be started; with fewer than wanted, work goes on.
        """
        future: Future[_T] = Future()
        try:
            self._executor.submit(self._run, future, function, args)
        except RuntimeError as error:
            if self._closed:
                raise StateError("what this belongs to is closed; open it again") from error
            # It stays in the executor's queue all the same, so with a thread at all it only waits longer.
            if not self._alive and future.cancel():
                raise SystemLimitError("no thread can be started; raise the limit (ulimit -u)") from error
        return future

    def close(self) -> None:
        """Take no more work. Does not wait for threads; each ends after the function it is in."""
        self._closed = True
        self._executor.shutdown(wait=False)

    def _run(self, future: Future[_T], function: Callable[..., _T], args: tuple[object, ...]) -> None:
        """Let a future have the result of a function, unless it was cancelled before."""
        self._alive = True
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function(*args)
        except BaseException as error:  # noqa: BLE001 - it is told to whoever waits for the result
            future.set_exception(error)
            del future  # the error's traceback refers to this frame
        else:
            future.set_result(result)


async def settled(future: Future[_T], *, stop: Callable[[], None] | None = None, surely: bool = False) -> _T:
    """The result of a function that runs in a thread; never returns or raises while the thread is still in it.

    Args:
        future: From `Workers.submit`.
        stop: Called when the caller is cancelled, so that the function can end early.
        surely: Run the function even if the caller is cancelled before a thread is free for it.

    Raises:
        asyncio.CancelledError: The caller was cancelled. Ask the future whether the function ran, and what came of it.
    """
    cancellation: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await _end_of(future)
        except asyncio.CancelledError as error:
            cancellation = error
            if not surely:
                future.cancel()
            if stop is not None:
                stop()
    if cancellation is not None:
        if not future.cancelled():
            future.exception()  # seen: the cancellation goes first
        raise cancellation
    return future.result()


def _end_of(future: Future[_T]) -> asyncio.Future[None]:
    """Completes when the function has; cancelling it leaves that alone."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    future.add_done_callback(partial(_tell, loop, ended))
    return ended


def _tell(loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None], _: Future[_T]) -> None:
    """Called in the thread. Half of what `asyncio.wrap_future` and `asyncio.wait` take between them."""
    with suppress(RuntimeError):  # the loop was closed: nobody waits
        loop.call_soon_threadsafe(_end, ended)


def _end(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)
