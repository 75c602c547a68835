"""Work that is only good as long as a platform lets us have what it gave: a lease, a snapshot, a disk to write."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

from .errors import LeaseLostError, SfasyncError, printable
from .tasks import cancelled

log = logging.getLogger("sfasync")

_T = TypeVar("_T")

_CHECK_SECONDS = 5.0


class Watch:
    """Looks out for the loss of something, while its block lasts.

    Args:
        lost: Completes, with the reason, when it is lost. It is not cancelled.
        what: It, for messages.
    """

    def __init__(self, lost: Awaitable[str], what: str) -> None:
        self._lost: asyncio.Future[str] = asyncio.shield(lost)
        self._what = what

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lost.cancel()

    @property
    def loss(self) -> str | None:
        """What happened, in one line; None as long as nothing did."""
        if not self._lost.done():
            return None
        return f"the platform took {self._what} back: {printable(self._lost.result())}"

    async def guard(self, work: Coroutine[Any, Any, _T], *, needed: Callable[[], bool] = lambda: True) -> _T:
        """The result of the work, which is cancelled when what it needs is lost.

        Args:
            work: What is to be done.
            needed: Whether it still needs that, asked at the moment of the loss.

        Raises:
            LeaseLostError: It was lost; the work has ended.
        """
        task = asyncio.ensure_future(work)
        either: set[asyncio.Future[Any]] = {task, self._lost}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and needed():
                raise LeaseLostError(self.loss or "")
            return await task
        finally:
            await cancelled(task)


async def blame_loss(check: Callable[[], Awaitable[None]], error: Exception) -> None:
    """See whether a disk failed because what a platform gave is gone.

    Args:
        check: Asks the platform.
        error: How the disk failed.

    Raises:
        LeaseLostError: It did.
    """
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            await check()
    except LeaseLostError as lost:
        raise lost from error
    except (SfasyncError, TimeoutError) as other:
        log.info("whether the platform has taken it back is not known: %s", other)
