"""What a plan says is done, once, within the budget; failures and cancellation leave nothing behind."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import pytest

from sfasync.buffers import BufferPool
from sfasync.errors import SourceError, TargetError
from sfasync.extents import Step, again, chunks, pieces
from sfasync.interfaces import SparseChunk
from sfasync.models import Extent
from sfasync.pipeline import transfer
from sfasync.progress import Meter
from sfasync.throttle import Throttle, ThrottledSource
from sfasync.tuning import Setting, Tuner
from tests.support.memory import MemoryDisk

CHUNK = 16384


def content(size: int, seed: int = 1) -> bytes:
    rng = random.Random(seed)
    blocks = (rng.randbytes(4096) if rng.random() < 0.5 else bytes(4096) for _ in range(-(-size // 4096)))
    return b"".join(blocks)[:size]


async def run(source: MemoryDisk, sink: MemoryDisk, pool: BufferPool, *, lanes: int | Tuner = 8) -> Meter:
    meter = Meter("vda", source.size)
    piece = CHUNK if isinstance(lanes, int) else lambda _: lanes.setting.size
    async with aclosing(pieces(source.extents(), size=source.size, piece=8 * CHUNK, alignment=512)) as plan:
        await transfer(
            again((), plan, piece=piece, enough=lambda step: False), source, sink, pool=pool, lanes=lanes, meter=meter
        )
    return meter


@pytest.mark.parametrize("size", [0, 1, 511, 4096, CHUNK - 1, CHUNK + 1, 40 * CHUNK + 512])
async def test_copies_every_byte(size: int) -> None:
    source, sink = MemoryDisk(content(size)), MemoryDisk(b"\xff" * size)
    pool = BufferPool(4 * CHUNK)
    meter = await run(source, sink, pool)
    assert sink.content == source.content
    assert meter.read + meter.zero == size == meter.progress().done
    assert pool.in_use == 0
    assert pool.peak <= pool.budget


def tuner(pool: BufferPool, *, most: int = 32) -> Tuner:
    return Tuner(most=most, size=CHUNK, largest=4 * CHUNK, memory=pool.budget)


@pytest.mark.parametrize("size", [0, 1, CHUNK + 1, 200 * CHUNK + 512])
async def test_a_tuner_decides_how_many_lanes_work(size: int) -> None:
    source, sink = MemoryDisk(content(size)), MemoryDisk(b"\xff" * size)
    pool = BufferPool(16 * CHUNK)
    await run(source, sink, pool, lanes=tuner(pool))
    assert sink.content == source.content
    assert pool.in_use == 0


async def test_lanes_join_and_leave_as_the_tuner_changes_its_mind() -> None:
    class Wavering(Tuner):
        """Wants one lane more, and then fewer again, with each step."""

        def finished(self, began: float, now: float, length: int) -> None:
            seen.append(source.reading)
            self.setting = Setting(1 + len(seen) % 7, CHUNK)

    class Watched(MemoryDisk):
        reading = 0

        async def read_into(self, offset: int, buffer: memoryview) -> None:
            self.reading += 1
            for _ in range(10):
                await asyncio.sleep(0)
            await super().read_into(offset, buffer)
            self.reading -= 1

    seen: list[int] = []
    source, sink = Watched(b"x" * 300 * CHUNK), MemoryDisk(bytes(300 * CHUNK))
    pool = BufferPool(64 * CHUNK)
    wavering = Wavering(most=32, size=CHUNK, largest=CHUNK, memory=pool.budget)
    await run(source, sink, pool, lanes=wavering)
    assert sink.content == source.content
    assert max(seen[20:]) <= 7  # at first there were eight
    assert min(seen[20:]) < max(seen[20:])


@pytest.mark.parametrize("side", ["source", "sink"])
async def test_a_failure_ends_lanes_that_rest(side: str) -> None:
    source, sink = MemoryDisk(b"x" * 40 * CHUNK), MemoryDisk(bytes(40 * CHUNK))
    (source if side == "source" else sink).bad.add(17 * CHUNK + 3)
    pool = BufferPool(16 * CHUNK)
    with pytest.raises(SourceError if side == "source" else TargetError):
        await run(source, sink, pool, lanes=tuner(pool))
    assert pool.in_use == 0


class ChunkDisk(MemoryDisk):
    """Takes chunks without their zeros, and takes ranges over."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.kept: list[tuple[int, int]] = []
        self.together: list[int] = []

    async def write_sparse(self, chunks: Sequence[SparseChunk]) -> None:
        self.together.append(len(chunks))
        for chunk in chunks:
            await self.zero(chunk.offset, chunk.length)
            for offset, part in chunk.parts:
                await self.write(offset, part)

    async def keep(self, offset: int, length: int) -> None:
        self.kept.append((offset, length))


@pytest.mark.parametrize("throttled", [False, True])
async def test_zeros_inside_a_chunk_are_not_read(throttled: bool) -> None:
    source, sink = MemoryDisk(content(20 * CHUNK)), ChunkDisk(b"\xff" * 20 * CHUNK)
    pool = BufferPool(4 * CHUNK)
    meter = Meter("vda", source.size)
    async with aclosing(chunks(source.extents(), size=source.size, chunk=CHUNK, alignment=512)) as plan:
        read = ThrottledSource(source, Throttle(1 << 40)) if throttled else source
        await transfer(plan, read, sink, pool=pool, lanes=4, meter=meter)
    assert sink.content == source.content
    assert max(sink.together) > 1
    assert meter.written + meter.zero == source.size
    data = [e async for e in source.extents() if not e.zero]
    assert meter.read == sum(extent.length for extent in data) == sum(length for _, length in source.reads)


async def changed(*extents: Extent) -> AsyncIterator[Extent]:
    for extent in extents:
        yield extent


async def test_kept_ranges_are_not_read() -> None:
    source = MemoryDisk(b"n" * 4 * CHUNK)
    sink = ChunkDisk(b"o" * 4 * CHUNK)
    plan = chunks(
        source.extents(),
        size=source.size,
        chunk=CHUNK,
        alignment=1,
        changed=changed(Extent(CHUNK + 5, 1)),
        parent_size=source.size,
    )
    meter = Meter("vda", source.size)
    async with aclosing(plan):
        await transfer(plan, source, sink, pool=BufferPool(CHUNK), lanes=2, meter=meter)
    assert sink.content == b"o" * CHUNK + b"n" * CHUNK + b"o" * 2 * CHUNK
    assert (meter.read, meter.skipped) == (CHUNK, 3 * CHUNK)


@pytest.mark.parametrize("side", ["source", "sink"])
async def test_a_failure_names_the_disk_and_gives_everything_back(side: str) -> None:
    source, sink = MemoryDisk(b"x" * 40 * CHUNK), MemoryDisk(bytes(40 * CHUNK))
    (source if side == "source" else sink).bad.add(17 * CHUNK + 3)
    pool = BufferPool(8 * CHUNK)
    with pytest.raises(SourceError if side == "source" else TargetError) as caught:
        await run(source, sink, pool)
    assert (caught.value.disk, caught.value.offset) == ("vda", 17 * CHUNK)
    assert pool.in_use == 0


@pytest.mark.parametrize("side", ["source", "sink"])
async def test_a_failure_among_chunks_that_go_together_gives_everything_back(side: str) -> None:
    image = (b"x" * 4096 + bytes(CHUNK - 4096)) * 40
    source, sink = MemoryDisk(image), ChunkDisk(bytes(len(image)))
    (source if side == "source" else sink).bad.add(17 * CHUNK + 3)
    pool = BufferPool(8 * CHUNK)
    with pytest.raises(SourceError if side == "source" else TargetError) as caught:
        async with aclosing(chunks(source.extents(), size=source.size, chunk=CHUNK, alignment=1)) as plan:
            await transfer(plan, source, sink, pool=pool, lanes=4, meter=Meter("vda", source.size))
    assert (caught.value.disk, caught.value.offset) == ("vda", 17 * CHUNK)
    assert pool.in_use == 0


async def test_a_failing_plan_ends_the_transfer() -> None:
    async def broken() -> AsyncIterator[Step]:
        raise SourceError("no map")
        yield

    disk = MemoryDisk(b"")
    with pytest.raises(SourceError, match="no map"):
        await transfer(broken(), disk, disk, pool=BufferPool(4096), lanes=3, meter=Meter("vda", 0))


@pytest.mark.parametrize("side", ["source", "sink"])
async def test_cancelling_gives_everything_back(side: str) -> None:
    source, sink = MemoryDisk(b"x" * 40 * CHUNK), MemoryDisk(bytes(40 * CHUNK))
    (source if side == "source" else sink).gate.clear()
    pool = BufferPool(8 * CHUNK)
    task = asyncio.create_task(run(source, sink, pool))
    for _ in range(20):
        await asyncio.sleep(0)
    assert pool.in_use == pool.budget
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.in_use == 0


async def test_two_disks_share_one_pool_to_the_end() -> None:
    pool = BufferPool(2 * CHUNK)
    disks = [(MemoryDisk(content(30 * CHUNK, seed)), MemoryDisk(bytes(30 * CHUNK))) for seed in range(3)]
    await asyncio.gather(*(run(source, sink, pool, lanes=16) for source, sink in disks))
    assert all(source.content == sink.content for source, sink in disks)
    assert pool.peak <= pool.budget


async def test_a_throttle_lets_no_more_through_than_its_rate() -> None:
    loop = asyncio.get_running_loop()
    source = ThrottledSource(MemoryDisk(b"x" * 10 * CHUNK), Throttle(100 * CHUNK))
    sink = MemoryDisk(bytes(source.size))
    began = loop.time()
    async with aclosing(pieces(source.extents(), size=source.size, piece=CHUNK, alignment=1)) as plan:
        await transfer(plan, source, sink, pool=BufferPool(4 * CHUNK), lanes=4, meter=Meter("vda", source.size))
    # Ten pieces at a hundred a second, the first at once; uvloop counts in milliseconds, which are no binary fractions.
    assert loop.time() - began > 0.0895
    assert bytes(sink.content) == b"x" * 10 * CHUNK
