"""Moves one disk from a source to a sink by a plan; knows no NBD, no repository and no VM.

A pipeline is a number of lanes. Each lane takes the next step of the plan and sees it through: memory, read, write.
Chunks that are mostly zeros are small work: a lane takes several of them, which share one piece of memory and are read
and written together. Steps thus begin in order and end in any. How much is in flight is bounded by the lanes and, over
all pipelines of an engine, by the buffer pool. With a `Tuner`, only as many lanes work as it finds useful; the others
rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final, cast

from .buffers import BufferPool, Filled, Slot
from .errors import SfasyncError
from .extents import Action, Step, loads
from .interfaces import ChunkSink, Sink, Source, SparseChunk
from .progress import Meter
from .scattered import read_parts
from .tasks import run_all
from .tuning import Tuner

_TOGETHER: Final = 32
"""Steps that a lane takes at most: 16 chunks that are mostly zeros, and the zeros between them."""


async def transfer(
    plan: AsyncIterator[Step],
    source: Source,
    sink: Sink | ChunkSink,
    *,
    pool: BufferPool,
    lanes: int | Tuner,
    meter: Meter,
) -> None:
    """Carry out a plan.

    Nothing is flushed: that is the caller's, who knows what belongs together. A plan with KEEP, AUDIT or AUDIT_ZERO, or
    with zeros inside of DATA, needs a `ChunkSink`.

    Args:
        plan: What to do, in order; closed by the caller.
        source: Read for DATA and AUDIT.
        sink: Written.
        pool: Gives the memory; its budget is the only back-pressure.
        lanes: Steps under way at once, or who finds out how many.
        meter: Counts what is done.

    Raises:
        SfasyncError: The first failure of a read, a write or the plan; with `disk` set. Everything in flight has ended.
            Cancelling leaves no read or write behind; what was written stays written.
    """
    tuner = lanes if isinstance(lanes, Tuner) else None
    try:
        async with aclosing(loads(plan, most=_TOGETHER)) as work:
            pipeline = _Pipeline(work, source, sink, pool, meter, tuner)
            await run_all(pipeline.lane(number) for number in range(tuner.most if tuner else cast(int, lanes)))
    except SfasyncError as error:
        error.disk = error.disk or meter.id
        raise


class _Pipeline:
    def __init__(
        self,
        work: AsyncIterator[list[Step]],
        source: Source,
        sink: Sink | ChunkSink,
        pool: BufferPool,
        meter: Meter,
        tuner: Tuner | None,
    ) -> None:
        self._work = work
        self._turn = asyncio.Lock()  # an async generator takes one caller at a time
        self._source = source
        self._sink = sink
        self._pool = pool
        self._meter = meter
        self._tuner = tuner
        self._planned = False  # the plan has ended
        self._resting: dict[int, asyncio.Future[None]] = {}  # lanes that have nothing to do now, by their numbers

    async def lane(self, number: int) -> None:
        """See to one load after another until the plan ends; rest while the tuner wants `number` lanes or fewer."""
        while await self._wanted(number):
            async with self._turn:
                load = await anext(self._work, None)
            if load is None:
                self._planned = True
                self._wake()
                return
            if load[0].zeros:
                await self._move_sparse(load)
            else:
                await self._carry_out(load[0])
            self._meter.changed()

    async def _wanted(self, number: int) -> bool:
        """Whether a lane has something to do, as soon as that is known."""
        while not self._planned and self._tuner is not None and number >= self._tuner.setting.window:
            self._resting[number] = asyncio.get_running_loop().create_future()
            await self._resting[number]
        return not self._planned

    def _wake(self) -> None:
        """Let those lanes look again that rest and need not."""
        for number in list(self._resting):
            if self._planned or self._tuner is None or number < self._tuner.setting.window:
                turn = self._resting.pop(number)
                if not turn.done():  # by a cancellation
                    turn.set_result(None)

    async def _carry_out(self, step: Step) -> None:
        if step.action is Action.DATA:
            await self._move(step, self._sink.write)
        elif step.action is Action.ZERO:
            await self._sink.zero(step.offset, step.length)
            self._meter.zero += step.length
        elif step.action is Action.KEEP:
            await cast(ChunkSink, self._sink).keep(step.offset, step.length)
            self._meter.skipped += step.length
        elif step.action is Action.AUDIT:
            await self._move(step, cast(ChunkSink, self._sink).audit)
            self._meter.audited += 1
        else:
            await cast(ChunkSink, self._sink).audit_zero(step.offset, step.length)
            self._meter.zero += step.length

    async def _move(self, step: Step, write: Callable[[int, memoryview], Awaitable[None]]) -> None:
        async def read(slot: Slot) -> Filled:
            await self._source.read_into(step.offset, slot.view)
            self._meter.read += step.length
            return slot.filled()

        began, ended = await self._pass(step.length, read, lambda filled: write(step.offset, filled.view))
        self._meter.written += step.length
        if self._tuner is not None:
            before = self._tuner.setting
            self._tuner.finished(began, ended, step.length)
            if self._tuner.setting.window > before.window:
                self._wake()

    async def _move_sparse(self, steps: Sequence[Step]) -> None:
        """Move chunks with zeros inside, and zeros between them; of all of them only the data is in memory."""

        async def read(slot: Slot) -> Filled:
            parts = [part for chunk in _in_memory(steps, slot.view) for part in chunk.parts]
            length = sum(len(view) for _, view in parts)
            await read_parts(self._source, parts)
            self._meter.read += length
            return slot.filled(length)

        async def write(filled: Filled) -> None:
            await cast(ChunkSink, self._sink).write_sparse(_in_memory(steps, filled.view))

        await self._pass(steps[0].length, read, write)
        self._meter.written += sum(step.length for step in steps if step.zeros)
        self._meter.zero += sum(step.length for step in steps if not step.zeros)

    async def _pass(
        self, length: int, read: Callable[[Slot], Awaitable[Filled]], write: Callable[[Filled], Awaitable[None]]
    ) -> tuple[float, float]:
        """Let something be read into a slot of `length` bytes, and written from it; gives when that began and ended."""
        seconds = self._meter.seconds
        asked = time.perf_counter()
        slot = await self._pool.acquire(length)
        began = time.perf_counter()
        seconds["memory"] += began - asked
        try:
            filled = await read(slot)
        except BaseException:
            slot.release()
            raise
        reading = time.perf_counter()
        seconds["read"] += reading - began
        try:
            await write(filled)
        finally:
            filled.release()
        ended = time.perf_counter()
        seconds["write"] += ended - reading
        return began, ended


def _in_memory(steps: Sequence[Step], view: memoryview) -> list[SparseChunk]:
    """The chunks whose data, without the zeros inside, is one after the other in a view; steps of zeros have none."""
    chunks = []
    position = 0
    for step in steps:
        parts = []
        for start, end in step.reads() if step.zeros else ():
            parts.append((start, view[position : position + end - start]))
            position += end - start
        chunks.append(SparseChunk(step.offset, step.length, parts))
    return chunks
