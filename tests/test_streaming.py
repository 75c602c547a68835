"""Copies of streams, whose size only their end tells."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sfasync.copying import CopyOptions
from sfasync.errors import NoSpaceError, SourceError, TargetError
from sfasync.models import CopyResult, ExportAddress, Limits, Progress, Retry, Timeouts
from sfasync.nbd.uri import parse_uri
from sfasync.progress import Reporter
from sfasync.resources import Resources
from sfasync.streaming import copy_stream
from sfasync.units import KiB, MiB

from .support.memory import MemoryDisk
from .support.servers import nbdkit

DATA = random.Random(1).randbytes(2 * MiB) + bytes(3 * MiB) + random.Random(2).randbytes(MiB + 13)


class Bytes:
    """A stream of given bytes; after them comes an error, if there is one."""

    def __init__(self, data: bytes, error: Exception | None = None) -> None:
        self._rest = data
        self._error = error

    async def read_into(self, buffer: memoryview) -> int:
        await asyncio.sleep(0)
        part, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        if self._error is not None and len(part) < len(buffer):
            raise self._error
        buffer[: len(part)] = part
        return len(part)


@pytest.fixture
async def resources() -> AsyncIterator[Resources]:
    resources = Resources(Limits(memory=16 * MiB, rate=1 << 40), Timeouts(), Retry())
    yield resources
    assert resources.pool.in_use == 0
    resources.close()


async def copied(
    data: bytes | Bytes, target: Path | ExportAddress | MemoryDisk | None, resources: Resources, **options: Any
) -> CopyResult:
    stream = Bytes(data) if isinstance(data, bytes) else data
    async with resources.endpoints.growing_target(target) as sink:
        return await copy_stream(stream, sink, CopyOptions(**options), resources, Reporter())


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, MiB - 1, MiB, MiB + 1, len(DATA)])
async def test_a_file_gets_the_length_of_the_stream(resources: Resources, tmp_path: Path, length: int) -> None:
    target = tmp_path / "disk.raw"
    target.write_bytes(b"\xff" * 100)
    result = await copied(DATA[:length], target, resources)
    assert target.read_bytes() == DATA[:length]
    assert (result.size, result.bytes_read, result.durable) == (length, length, True)


async def test_zeros_become_holes(resources: Resources, tmp_path: Path) -> None:
    sparse, full = tmp_path / "sparse.raw", tmp_path / "full.raw"
    await copied(DATA, sparse, resources)
    await copied(DATA, full, resources, sparse=0)
    assert sparse.read_bytes() == full.read_bytes() == DATA
    assert sparse.stat().st_blocks * 512 < 4 * MiB
    assert full.stat().st_blocks * 512 >= len(DATA)


@pytest.mark.parametrize("options", [{"synchronous": 1}, {"request_size": 4 * KiB}, {"connections": 1, "requests": 1}])
async def test_options(resources: Resources, tmp_path: Path, options: dict[str, int]) -> None:
    await copied(DATA, tmp_path / "disk.raw", resources, **options)
    assert (tmp_path / "disk.raw").read_bytes() == DATA


async def test_an_export_that_is_large_enough_keeps_its_tail(resources: Resources) -> None:
    disk = MemoryDisk(b"\xff" * (len(DATA) + 100))
    assert (await copied(DATA, disk, resources)).durable is True
    assert disk.content == DATA + b"\xff" * 100


async def test_an_export_that_is_just_large_enough(resources: Resources) -> None:
    disk = MemoryDisk(bytes(len(DATA)), block_size=512)
    await copied(DATA, disk, resources)
    assert disk.content == DATA


async def test_an_export_that_is_too_small(resources: Resources) -> None:
    with nbdkit("memory", "4M") as server, pytest.raises(NoSpaceError, match=r"is full: it has 4194304 bytes"):
        await copied(DATA, parse_uri(server.uri), resources)


async def test_an_end_within_a_block(resources: Resources) -> None:
    disk = MemoryDisk(bytes(2 * len(DATA)), block_size=512)
    with pytest.raises(TargetError, match="blocks of 512 bytes only"):
        await copied(DATA, disk, resources)


async def test_to_nowhere(resources: Resources) -> None:
    assert (await copied(DATA, None, resources)).size == len(DATA)


async def test_a_stream_that_fails(resources: Resources, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="gone"):
        await copied(Bytes(DATA, SourceError("it is gone")), tmp_path / "disk.raw", resources)


async def test_a_target_that_fails(resources: Resources) -> None:
    disk = MemoryDisk(bytes(len(DATA)))
    disk.bad.add(MiB)
    with pytest.raises(TargetError, match="cannot write"):
        await copied(DATA, disk, resources)


async def test_progress_knows_the_size_at_the_end(resources: Resources) -> None:
    seen: list[Progress] = []
    async with resources.endpoints.growing_target(None) as sink:
        await copy_stream(Bytes(DATA), sink, CopyOptions(), resources, Reporter(seen.append))
    assert [(progress.state, progress.done, progress.size) for progress in seen][-1] == (
        "committing",
        len(DATA),
        len(DATA),
    )


async def test_a_cancelled_copy_gives_everything_back(resources: Resources) -> None:
    disk = MemoryDisk(bytes(len(DATA)))
    disk.gate.clear()
    task = asyncio.create_task(copied(DATA, disk, resources))
    while not resources.pool.in_use:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
