"""One copy from a stream, whose size only its end tells."""

from __future__ import annotations

import asyncio
import time

from .buffers import Filled
from .copying import CopyOptions, lane_count, limited_by, piece_size, shaped
from .interfaces import GrowingSink, Stream
from .models import CopyResult
from .progress import Meter, Reporter
from .resources import Resources
from .tasks import run_all


async def copy_stream(
    source: Stream, target: GrowingSink, options: CopyOptions, resources: Resources, reporter: Reporter
) -> CopyResult:
    """Copy a stream up to its end; a larger target keeps its tail.

    A stream cannot be read twice, so writes that a target loses before they are durable end the copy.

    Args:
        source: Read, in order.
        target: Made larger with what comes, and written.
        options: How; `extents` plays no part.
        resources: Shared with the engine's other jobs.
        reporter: Told how far it is; the size is what has come so far.

    Raises:
        SfasyncError: The first failure; the target has partial content.
    """
    began = time.monotonic()
    meter = reporter.meter("", 0)
    reporter.enter("running")
    intake = _Intake(source, target, options, resources, meter)
    lanes = lane_count(options, resources.limits)
    await run_all(intake.lane() for _ in range(lanes))
    await target.end(meter.size)
    reporter.enter("committing")
    durable = options.flush and await target.flush()
    return CopyResult(
        size=meter.size,
        bytes_read=meter.read,
        bytes_zero=0,
        durable=durable,
        requests=lanes,
        request_size=piece_size(options, resources, target.block_size),
        limited_by=limited_by(meter),
        seconds=time.monotonic() - began,
    )


class _Intake:
    """Lanes that take the next piece of a stream one after another, and write at the same time."""

    def __init__(
        self, source: Stream, target: GrowingSink, options: CopyOptions, resources: Resources, meter: Meter
    ) -> None:
        self._source = source
        self._target = target
        self._sink = shaped(target, options)
        self._piece = piece_size(options, resources, target.block_size)
        self._pool = resources.pool
        self._throttle = resources.throttle
        self._meter = meter
        self._turn = asyncio.Lock()
        self._ended = False

    async def lane(self) -> None:
        while True:
            async with self._turn:
                offset = self._meter.size
                filled = None if self._ended else await self._next()
            if filled is None:
                return
            began = time.perf_counter()
            try:
                await self._sink.write(offset, filled.view)
            finally:
                length = len(filled.view)
                filled.release()
            self._meter.seconds["write"] += time.perf_counter() - began
            self._meter.written += length
            self._meter.changed()

    async def _next(self) -> Filled | None:
        """The next piece, for which the target has room; None at the end."""
        slot = await self._pool.acquire(self._piece)
        try:
            began = time.perf_counter()
            count = await self._source.read_into(slot.view)
            self._meter.seconds["read"] += time.perf_counter() - began
            self._ended = count < self._piece
            if count == 0:
                slot.release()
                return None
            if self._throttle is not None:
                await self._throttle.take(count)
            await self._target.grow(self._meter.size + count)
            self._meter.read += count
            self._meter.size += count
            return slot.filled(count)
        except BaseException:
            slot.release()
            raise
