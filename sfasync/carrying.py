"""Threads that carry: the part of a copy between ends that answer at once.

Each thread has an end of the source and one of the target (`blocking`) and moves a stretch of the plan piece by piece,
without the event loop, which hears of whole stretches, and four times in a second::

    thread 1   read write read write read write ...      one piece after another, from cache to cache
    thread 2      read write read write read write ...
    loop       stretch            stretch                progress, zeros, cancellation

That is the quickest way to move bytes as long as nobody has to wait. Where answers take their time, many requests have
to be under way, and where something fails, it has to be asked again: both are the pipeline's, to which everything that
is left is given back.

All disks of an engine share the threads (`Crew`), in turns that are no longer, and so get ahead at the same pace.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from typing import Final, NamedTuple

from .blocking import BlockingSink, BlockingSource, FileReader, FileWriter, Reader, Writer
from .buffers import BufferPool
from .crew import Claim, Crew
from .errors import SfasyncError, SystemLimitError
from .extents import Action, Step
from .interfaces import Sink, Source
from .progress import Meter
from .scheduling import as_batch
from .sharing import shared
from .sparse import zero_runs
from .tasks import run_all
from .units import MiB
from .workers import Workers, settled

_logger = logging.getLogger(__name__)

STRETCH: Final = 16 * MiB
_LONGEST: Final = 128 * MiB
"""Bytes that a thread moves between two words with the loop, at least and at most: a word costs 0.1 ms of CPU."""

PIECE: Final = 2 * MiB
"""Bytes that it moves at once: half as many calls as of 1 MiB, and still in the caches (docs/performance.md)."""

_NEWS: Final = 0.25
"""Seconds after which the loop hears of a stretch that is not finished, and another disk may have its turn."""

_SHORT: Final = 0.003
"""Seconds of waiting for a piece that do no harm: three threads with 2 MiB each move 2 GB/s so."""

_PATIENCE: Final = 0.03
"""Seconds of longer waits, one after another, after which an end is far away: of all threads together at first, of
each once a piece has come at once. A far end shows with its first answer, and costs one; a near one that hiccups is
not to be taken for it.
"""

_RETREAT: Final = 2.0
"""Seconds that threads have for the pieces they are at, when one of them has failed. One that waits for a server that
hangs is not waited for, which costs its connection.
"""

_WAITS: Final = 3
"""How many of them there are at least, once a piece has come at once."""

_WAITING: Final = 0.75
"""Part of the time that they take: where the machine is busy, everything else takes longer too."""


def stretches(end: int, *, crew: Crew, connections: int, more: int = 0, least: int) -> Callable[[int], int]:
    """How long stretches are, by their offsets: the less is left, the shorter, so that threads end together.

    Args:
        end: Behind the last byte that is to be moved.
        crew, connections, more: As of `carriers`.
        least: Bytes of the shortest, a power of two; so are all.
    """
    several = 4 * max(1, min(crew.count, connections - 1 + more))  # for each thread

    def length_at(offset: int) -> int:
        length = least
        while length < _LONGEST and end - offset >= several * length:
            length *= 2
        return length

    return length_at


class _Moved(NamedTuple):
    """What a thread has done of a stretch."""

    end: int
    zeros: list[tuple[int, int]]  # read as zeros, and not written
    well: bool  # whether to go on
    reading: float  # seconds
    writing: float


class _Distance:
    """How far away the ends of a copy are, by how long they let its threads wait; told by all of them.

    Args:
        count: How many threads there are.

    Attributes:
        far: Whether they let them wait again and again.
    """

    def __init__(self, count: int) -> None:
        self.far = False
        self._count = count
        self._near = False  # whether a piece came at once
        self._lock = threading.Lock()
        self._waits = 0  # longer ones, one after another
        self._waited = 0.0  # what they took together
        self._taken = 0.0  # and all pieces with them

    def judge(self, waited: float, taken: float) -> None:
        """Take note of the seconds that a piece took, and of those among them that an end let a thread wait."""
        with self._lock:
            if waited < _SHORT:
                self._near = True
                self._waits, self._waited, self._taken = 0, 0.0, 0.0
                return
            self._waits += 1
            self._waited += waited
            self._taken += taken
            least, patience = (_WAITS, _PATIENCE * self._count) if self._near else (1, _PATIENCE)
            if self._waits >= least and self._waited > max(patience, self._taken * _WAITING):
                self.far = True


class _Hand:
    """One thread's pair of ends.

    Args:
        reader, writer: The ends.
        block: Zeros count where they fill a block of so many bytes of the disk; 0 to write them.
        distance: Of both ends; a hand ends when they are far.
        batch: As of `carriers`.
    """

    def __init__(self, reader: Reader, writer: Writer, block: int, distance: _Distance, *, batch: bool) -> None:
        self._batch = batch
        self._distance = distance
        self._reader = reader
        self._writer = writer
        self._file = reader if isinstance(reader, FileReader) else None
        self._sender = writer if isinstance(writer, FileWriter) else None
        self._block = block
        self._stopped = False

    def move(self, step: Step, view: memoryview) -> _Moved:
        """Move a stretch through the memory of one piece, in a thread.

        Ends with the stretch, the first failure, `stop`, a far end, or when there is news.
        """
        with as_batch() if self._batch else nullcontext():
            return self._move(step, view)

    def _move(self, step: Step, view: memoryview) -> _Moved:
        position, end = step.offset, step.offset + step.length
        zeros: list[tuple[int, int]] = []
        reading = writing = 0.0
        failed = False
        try:
            while position < end and reading + writing < _NEWS and not self._over:
                with view[: end - position] as piece:
                    waited = self._reader.waited + self._writer.waited
                    began = time.perf_counter()
                    taken = self._take(position, piece)
                    read = time.perf_counter()
                    zeros += self._write(position, piece) if taken else self._send(position, len(piece))
                    written = time.perf_counter()
                    position += len(piece)
                reading += read - began
                writing += written - read
                self._distance.judge(self._reader.waited + self._writer.waited - waited, written - began)
        except SfasyncError as error:
            _logger.info("a thread of the copy stops at %d: %s", position, error)  # the pipeline meets it again
            failed = True
        return _Moved(position, zeros, not (failed or self._over), reading, writing)

    def pause(self) -> None:
        """End `move` after the piece it is at; called on the loop."""
        self._stopped = True

    def stop(self) -> None:
        """End `move` soon; called on the loop."""
        self.pause()
        self._reader.stop()
        self._writer.stop()

    def settle(self) -> None:
        self._writer.settle()

    @property
    def _over(self) -> bool:
        return self._stopped or self._distance.far

    def _take(self, offset: int, piece: memoryview) -> bool:
        """Read a piece; False if the system can send it without us."""
        if self._file and self._sender and self._file.is_sendable(offset, piece, self._block):
            return False
        self._reader.read_into(offset, piece)
        return True

    def _send(self, offset: int, length: int) -> list[tuple[int, int]]:
        """As `_write`, of what was not read."""
        assert self._file and self._sender, "a piece that nobody can send"
        self._sender.send(offset, length, self._file.fileno())
        return []

    def _write(self, offset: int, piece: memoryview) -> list[tuple[int, int]]:
        """Write what is not zero; returns the ranges of the disk that are."""
        if not self._block:
            self._writer.write(offset, piece)
            return []
        zeros = []
        for start, end, zero in zero_runs(piece, offset, self._block):
            if zero:
                zeros.append((offset + start, offset + end))
            else:
                with piece[start:end] as part:
                    self._writer.write(offset + start, part)
        return zeros


class Carriers:
    """The threads of one copy; made by `carriers`.

    Attributes:
        count: How many carry; 0 where there is nothing for them to do, or no longer.
    """

    def __init__(self, hands: list[_Hand], distance: _Distance, crew: Crew, meter: Meter) -> None:
        self.count = len(hands)
        self._distance = distance
        self._hands = hands
        self._idle = list(hands)  # who worked last is next: what serves its ends is in caches, here and at the server
        self._crew = crew
        self._claim = Claim()
        self._meter = meter
        self._turn = asyncio.Lock()  # an async generator takes one caller at a time
        self._left: list[Step] = []
        self._retreat: asyncio.TimerHandle | None = None

    @property
    def far(self) -> bool:
        """Whether they ended because the ends let them wait."""
        return self._distance.far

    async def carry(self, plan: AsyncIterator[Step], sink: Sink, *, piece: int, pool: BufferPool) -> list[Step]:
        """Carry out a plan of DATA and ZERO for as long as all goes well.

        Args:
            plan: What to do, in stretches; closed by the caller.
            sink: Takes zeros.
            piece: Bytes moved at once.
            pool: Gives the memory, a piece for each thread.

        Returns:
            What was begun and is not done. If there is anything, the plan may not be at its end either.

        Raises:
            SfasyncError: The plan or a `zero` failed; with `disk` set. Cancelling leaves no read or write behind.
        """

        async def lane() -> None:
            while self.count:
                async with self._turn:
                    step = await anext(plan, None)
                if step is None:
                    return
                if step.action is Action.ZERO:
                    await sink.zero(step.offset, step.length)
                    self._meter.zero += step.length
                    self._meter.changed()
                else:
                    await self._stretch(step, sink, piece, pool)

        try:
            await run_all(lane() for _ in self._hands)
        except SfasyncError as error:
            error.disk = error.disk or self._meter.id
            raise
        finally:
            if self._retreat is not None:
                self._retreat.cancel()
        return self._left

    async def _stretch(self, step: Step, sink: Sink, piece: int, pool: BufferPool) -> None:
        """Let threads move a stretch, each until it has news, in turns with other disks; what they do not is left."""
        assert step.action is Action.DATA and not step.zeros, f"{step} in the plan of a copy"
        position, end = step.offset, step.offset + step.length
        well = True
        while well and position < end:
            rest = Step(Action.DATA, position, end - position)
            async with self._crew.hired(self._claim) as thread:
                slot = await pool.acquire(min(piece, rest.length))
                hand = self._idle.pop()  # there are as many as lanes
                try:
                    moved = await self._move(hand, thread, rest, slot.view)
                finally:
                    self._idle.append(hand)
                    slot.release()
            for first, last in moved.zeros:
                await sink.zero(first, last - first)
            self._meter.read += moved.end - position
            self._meter.written += moved.end - position
            self._meter.seconds["read"] += moved.reading
            self._meter.seconds["write"] += moved.writing
            self._meter.changed()
            position, well = moved.end, moved.well
        if position < end:
            self._left.append(Step(Action.DATA, position, end - position))
            self._end()

    async def _move(self, hand: _Hand, thread: Workers, rest: Step, view: memoryview) -> _Moved:
        """Let a thread move what is left of a stretch until it has news."""
        nothing = _Moved(rest.offset, [], False, 0.0, 0.0)
        if not self.count:
            return nothing
        try:
            moving = thread.submit(hand.move, rest, view)
        except SystemLimitError as error:
            _logger.info("a thread less: %s", error)  # the pipeline's have begun, or fail with this
            return nothing
        try:
            return await settled(moving, stop=hand.stop)
        finally:
            hand.settle()

    def _end(self) -> None:
        """Let all threads end: after the piece that each is at, or in the midst of it if that takes long."""
        if self.count:
            self.count = 0
            self._claim.leaving = True
            for hand in self._hands:
                hand.pause()
            self._retreat = asyncio.get_running_loop().call_later(_RETREAT, self._stop)

    def _stop(self) -> None:
        for hand in self._hands:
            hand.stop()


@asynccontextmanager
async def carriers(
    source: Source,
    target: Sink,
    *,
    crew: Crew,
    connections: int,
    least: int = 2,
    more: int = 0,
    block: int,
    batch: bool = False,
    meter: Meter,
) -> AsyncIterator[Carriers]:
    """Threads for a copy, for the time of the block.

    Args:
        source: Read.
        target: Written.
        crew: Whose threads they are, in their turns.
        connections: To each end, of which one stays free.
        least: How many connections are worth it. No threads come where there would be fewer, or an end is not for them.
        more: So many threads more than connections, which share these to read: for those that do more than that.
        block: As of `SparseSink`.
        batch: Whether threads only receive and send, and leave the processor to the servers (`scheduling`).
        meter: Counts what is done.
    """
    async with AsyncExitStack() as ends:
        hands: list[_Hand] = []
        distance = _Distance(0)
        count = min(crew.count, connections - 1)
        if count >= least and isinstance(source, BlockingSource) and isinstance(target, BlockingSink):
            readers = await ends.enter_async_context(source.readers(count))
            threads = min(crew.count, len(readers) + more)
            if least <= len(readers) < threads:
                readers = [*shared(readers, threads)]
            writers = await ends.enter_async_context(target.writers(len(readers)))
            distance = _Distance(len(writers))
            hands = [_Hand(*pair, block, distance, batch=batch) for pair in zip(readers, writers, strict=False)]
        yield Carriers(hands if len(hands) >= least else [], distance, crew, meter)
