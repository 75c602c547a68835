"""Moves a whole disk into a backup: long stretches of data by threads that carry them, the rest by the pipeline.

A thread reads a chunk and seals it while it is in the cache of its processor, without a word with the event loop. What
is only a few chunks long, or has zeros inside, is not worth a thread: that is gathered for the pipeline::

    plan       DDDDDDDDDDDDzDDZZZZDDDDDDDDDDDD     D a chunk of data, z one with zeros inside
    threads    ------------       ------------
    pipeline               ----   (and the zeros)

What threads leave, because something failed or the source is far away, is the pipeline's as well (`carrying`), for a
while (`recess`). So is what follows where data is scattered, up to the next long stretch: there the map must not wait
for the pipeline, nor the pipeline for the map.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final

from .buffers import BufferPool
from .carrying import carriers, stretches
from .crew import Crew
from .extents import Action, Step, again
from .interfaces import DiskWriter, Source
from .pipeline import transfer
from .progress import Meter
from .recess import Plan, Recess
from .units import MiB

_STRETCH: Final = 8 * MiB
"""Bytes of the shortest stretch, with which disks end: several equal ones within a few of them."""

_MORE: Final = 1
"""Threads more than connections, which seal while the others read (`sharing`)."""

_LEAST: Final = 4
"""Chunks next to each other that are worth a thread's while."""

_GATHERED: Final = 1024
"""Steps that are kept for the pipeline; more are carried out at once. After so many without a stretch that is worth a
thread's while, none is expected.
"""

_DENSE: Final = 64
"""Chunks next to each other after which more of them are expected again."""


async def haul(
    plan: AsyncIterator[Step],
    source: Source,
    writer: DiskWriter,
    *,
    crew: Crew,
    connections: int,
    pool: BufferPool,
    lanes: int,
    meter: Meter,
    dense: bool,
) -> None:
    """Carry out a plan whose DATA are chunks.

    Args:
        plan: What to do, in order; closed by the caller.
        source: Read.
        writer: Written.
        crew: Whose threads carry.
        connections: To the source.
        pool: Gives the memory.
        lanes: As of `transfer`.
        meter: Counts what is done.
        dense: Whether long stretches are likely; otherwise threads come with the first one.

    Raises:
        SfasyncError: As of `transfer`.
    """

    async def pipeline(steps: AsyncIterator[Step]) -> None:
        await transfer(steps, source, writer, pool=pool, lanes=lanes, meter=meter)

    length_at = stretches(meter.size, crew=crew, connections=connections, more=_MORE, least=_STRETCH)
    plan = Plan(plan)
    recess = Recess()
    least = max(2, crew.count - 2)  # with fewer connections than processors, the pipeline seals more at a time
    if not dense:
        await pipeline(again([], plan, piece=writer.chunk_size, enough=_Dense()))
    while not plan.ended:
        kept: list[Step] = []
        left: list[Step] = []
        # Its block ends before the pipeline begins, which needs the connections of the threads.
        async with carriers(
            source, writer, crew=crew, connections=connections, least=least, more=_MORE, block=0, meter=meter
        ) as threads:
            carried = threads.count > 0
            if carried:
                async with aclosing(_stretches(plan, kept, pipeline, length_at)) as steps:
                    left = await threads.carry(steps, writer, piece=writer.chunk_size, pool=pool)
        enough: Callable[[Step], bool] = _Dense()
        if left or not carried:
            recess.begin(carried=carried)
            enough = recess.over
        await pipeline(again([*left, *kept], plan, piece=writer.chunk_size, enough=enough))


class _Dense:
    """Whether a plan has come to a stretch that is long enough to go on with threads, told after each of its steps."""

    def __init__(self) -> None:
        self._count = 0  # chunks of the stretch
        self._end = 0  # of the last one

    def __call__(self, step: Step) -> bool:
        if step.action is not Action.DATA or step.zeros:
            self._count = 0
        else:
            self._count = self._count + 1 if step.offset == self._end else 1
        self._end = step.offset + step.length
        return self._count >= _DENSE


async def _stretches(
    plan: AsyncIterator[Step],
    kept: list[Step],
    pipeline: Callable[[AsyncIterator[Step]], Awaitable[None]],
    length_at: Callable[[int], int],
) -> AsyncGenerator[Step, None]:
    """What of a plan is for threads, as long as there is some; `kept` holds what is not, and what was not yet given out
    when this ends early.
    """
    stretch: list[Step] = []
    since = 0  # steps that were kept since the last stretch
    async for step in plan:
        if stretch and not _continues(stretch, step, length_at):
            if len(stretch) >= _LEAST:
                kept.append(step)  # until somebody comes for the next stretch, who may not
                yield _joined(stretch)
                kept.pop()
                since = 0
            else:
                kept += stretch
                since += len(stretch)
            stretch = []
        if step.action is Action.DATA and not step.zeros:
            stretch.append(step)
        else:
            kept.append(step)
            since += 1
        if since >= _GATHERED and not stretch:
            return
        if len(kept) >= _GATHERED:
            batch, kept[:] = kept[:], []
            await pipeline(_each(batch))
    if len(stretch) >= _LEAST:
        yield _joined(stretch)
    else:
        kept += stretch


def _continues(stretch: Sequence[Step], step: Step, length_at: Callable[[int], int]) -> bool:
    begin = stretch[0].offset
    adjacent = stretch[-1].offset + stretch[-1].length == step.offset
    return step.action is Action.DATA and not step.zeros and adjacent and step.offset - begin < length_at(begin)


def _joined(stretch: Sequence[Step]) -> Step:
    end = stretch[-1].offset + stretch[-1].length
    return stretch[0]._replace(length=end - stretch[0].offset)


async def _each(steps: Sequence[Step]) -> AsyncIterator[Step]:
    for step in steps:
        yield step
