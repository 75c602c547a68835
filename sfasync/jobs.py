"""A running job and the handle on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .progress import ProgressCallback, Reporter

if TYPE_CHECKING:
    from .models import Progress

_T = TypeVar("_T")


class Job(Generic[_T]):
    """A job of an engine: look at it, cancel it, wait for it.

    As a context manager it bounds the job's life: leaving the block waits for the job, and raises its error if nobody
    has seen it; leaving it by an exception cancels the job first. The engine cancels jobs that are left when it closes.
    """

    def __init__(self, work: Callable[[Reporter], Coroutine[Any, Any, _T]], callback: ProgressCallback | None) -> None:
        self._reporter = Reporter(callback)
        self._task = asyncio.create_task(self._run(work))
        self._result_seen = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._reporter.snapshot().state}>"

    async def __aenter__(self) -> Job[_T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.cancel()
            await self.ended()
        elif self._result_seen:
            await self.ended()
        else:
            await self.result()

    @property
    def done(self) -> bool:
        """Whether the job has ended, in whatever way."""
        return self._task.done()

    def progress(self) -> Progress:
        """How far the job is, at this moment."""
        return self._reporter.snapshot()

    def cancel(self) -> None:
        """Ask the job to end; it does so within 5 s, with nothing half-visible. Harmless when it has ended.

        Where a disk hangs, it ends when the disk answers: a thread that is in a call of the system has memory of it.
        """
        self._task.cancel()

    async def result(self) -> _T:
        """What the job made.

        Cancelling this call cancels the job and waits for its end.

        Raises:
            SfasyncError: The job failed.
            asyncio.CancelledError: The job was cancelled.
        """
        self._result_seen = True
        return await self._task

    async def ended(self) -> None:
        """Wait until the job has ended, in whatever way. Cancelling this call leaves the job alone."""
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.exception()  # seen

    def when_ended(self, callback: Callable[[Job[_T]], object]) -> None:
        """Call a plain function with this job, on the loop, when it has ended."""
        self._task.add_done_callback(lambda _: callback(self))

    async def _run(self, work: Callable[[Reporter], Coroutine[Any, Any, _T]]) -> _T:
        try:
            result = await work(self._reporter)
        except asyncio.CancelledError:
            self._reporter.enter("cancelled")
            raise
        except BaseException:
            self._reporter.enter("failed")
            raise
        self._reporter.enter("done")
        return result
