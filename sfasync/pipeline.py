"""Moves one disk from a source to a sink by a plan; knows no NBD, no repository and no VM.

A pipeline is a number of lanes. Each lane takes the next step of the plan and sees it through: memory, read, write.
Steps thus begin in order and end in any. How much is in flight is bounded by the lanes and, over all pipelines of an
engine, by the buffer pool. With a `Tuner`, only as many lanes work as it finds useful; the others rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

from .buffers import BufferPool, Filled, Slot, fill_with_zeros
from .errors import SfasyncError
from .extents import Action, Step
from .interfaces import ChunkSink, Sink, Source
from .progress import Meter
from .tasks import run_all
from .tuning import Tuner


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

    Nothing is flushed: that is the caller's, who knows what belongs together. A plan with KEEP, AUDIT or AUDIT_ZERO
    needs a `ChunkSink`.

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
    pipeline = _Pipeline(plan, source, sink, pool, meter, tuner)
    try:
        await run_all(pipeline.lane(number) for number in range(tuner.most if tuner else cast(int, lanes)))
    except SfasyncError as error:
        error.disk = error.disk or meter.id
        raise


class _Pipeline:
    def __init__(
        self,
        plan: AsyncIterator[Step],
        source: Source,
        sink: Sink | ChunkSink,
        pool: BufferPool,
        meter: Meter,
        tuner: Tuner | None,
    ) -> None:
        self._plan = plan
        self._turn = asyncio.Lock()  # an async generator takes one caller at a time
        self._source = source
        self._sink = sink
        self._pool = pool
        self._meter = meter
        self._tuner = tuner
        self._planned = False  # the plan has ended
        self._resting: dict[int, asyncio.Future[None]] = {}  # lanes that have nothing to do now, by their numbers

    async def lane(self, number: int) -> None:
        """See to one step after another until the plan ends; rest while the tuner wants `number` lanes or fewer."""
        while await self._wanted(number):
            async with self._turn:
                step = await anext(self._plan, None)
            if step is None:
                self._planned = True
                self._wake()
                return
            await self._carry_out(step)
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
        seconds = self._meter.seconds
        began = time.perf_counter()
        slot = await self._pool.acquire(step.length)
        ready = time.perf_counter()
        seconds["memory"] += ready - began
        filled = await self._fill(slot, step)
        read = time.perf_counter()
        seconds["read"] += read - ready
        try:
            await write(step.offset, filled.view)
        finally:
            filled.release()
        written = time.perf_counter()
        seconds["write"] += written - read
        self._meter.written += step.length
        if self._tuner is not None:
            before = self._tuner.setting
            self._tuner.finished(ready, written, step.length)
            if self._tuner.setting.window > before.window:
                self._wake()

    async def _fill(self, slot: Slot, step: Step) -> Filled:
        """Read what has to be read and zero the rest; a failed or cancelled fill gives the slot back."""
        try:
            if not step.zeros:
                await self._source.read_into(step.offset, slot.view)
                self._meter.read += step.length
            else:
                await self._fill_around_zeros(slot, step)
            return slot.filled()
        except BaseException:
            slot.release()
            raise

    async def _fill_around_zeros(self, slot: Slot, step: Step) -> None:
        for start, end in step.zeros:
            fill_with_zeros(slot.view[start - step.offset : end - step.offset])
        for start, end in step.reads():
            await self._source.read_into(start, slot.view[start - step.offset : end - step.offset])
            self._meter.read += end - start
