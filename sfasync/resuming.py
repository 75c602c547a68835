"""A backup that goes on where another one of the same frozen disks was stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeVar

from .extents import Action, Step
from .interfaces import BackupSession, DiskWriter
from .models import Extent
from .progress import Meter
from .tasks import cancelled

log = logging.getLogger("sfasync")

_T = TypeVar("_T")

_BATCH: Final = 128  # steps that are offered to the writer at a time: a page of chunks


async def with_checkpoints(session: BackupSession, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of the work, beside which the session notes what is finished."""
    keeper = asyncio.create_task(_keep_noting(session))
    try:
        return await work
    finally:
        interrupted = await cancelled(keeper)
        if not keeper.cancelled():  # the backup does without
            log.warning("what this backup finished was not noted to the end: %s", keeper.exception())
        if interrupted is not None:
            raise interrupted


async def _keep_noting(session: BackupSession) -> None:
    while True:
        pause = await session.checkpoint()
        await asyncio.sleep(pause)


async def remaining(plan: AsyncGenerator[Step, None], writer: DiskWriter, meter: Meter) -> AsyncGenerator[Step, None]:
    """A plan of chunks without those that the writer takes over from an interrupted backup.

    ::

        plan       DDDDDDZZDDKK        of which the writer adopts
        finished   xxx..xxx....
        remaining  ...DD.ZZDDKK
    """
    waiting: list[Step] = []
    async with aclosing(plan):
        async for step in plan:
            if step.action is Action.DATA:
                waiting.append(step)
            if step.action is not Action.DATA or len(waiting) == _BATCH:
                for left in await _left_of(waiting, writer, meter):
                    yield left
                waiting.clear()
            if step.action is not Action.DATA:
                yield step
        for left in await _left_of(waiting, writer, meter):
            yield left


async def _left_of(steps: Sequence[Step], writer: DiskWriter, meter: Meter) -> list[Step]:
    """The steps, each a chunk next to the other, that the writer does not adopt."""
    if not steps:
        return []
    start, end = steps[0].offset, steps[-1].offset + steps[-1].length
    adopted = await writer.adopt(start, end - start)
    meter.resumed += sum(extent.length for extent in adopted)
    meter.changed()
    return [step for step in steps if not _within(step, adopted)]


def _within(step: Step, extents: Sequence[Extent]) -> bool:
    return any(extent.offset <= step.offset < extent.end for extent in extents)
