"""Digests of a disk without storing it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from sfasync.blocking import BlockingSink
from sfasync.errors import StateError
from sfasync.interfaces import Sink
from sfasync.store.digest import DigestSink
from sfasync.store.tree import ZERO, content_digest, disk_digest
from sfasync.units import TiB
from sfasync.workers import Workers

from .support import CHUNK, text


@pytest.fixture
def workers() -> Iterator[Workers]:
    opened = Workers(2)
    yield opened
    opened.close()


async def test_it_is_the_digest_of_the_content(workers: Workers) -> None:
    content = bytearray(text(140 * CHUNK + 5))
    content[3 * CHUNK : 9 * CHUNK] = bytes(6 * CHUNK)
    sink = DigestSink(len(content), CHUNK, workers)
    assert isinstance(sink, Sink)
    assert sink.block_size == CHUNK
    async with asyncio.TaskGroup() as group:
        group.create_task(sink.write(9 * CHUNK, memoryview(content)[9 * CHUNK :]))
        group.create_task(sink.zero(3 * CHUNK, 6 * CHUNK))
        group.create_task(sink.write(0, content[: 3 * CHUNK]))
    assert await sink.flush() is False
    root = content_digest(content)
    assert sink.finish() == (root.hex(), disk_digest(len(content), root).hex())


async def test_threads_digest_too(workers: Workers) -> None:
    content = text(140 * CHUNK + 5)
    sink = DigestSink(len(content), CHUNK, workers)
    assert isinstance(sink, BlockingSink)
    async with sink.writers(2) as (first, second):
        await asyncio.to_thread(second.write, 100 * CHUNK, content[100 * CHUNK :])
        for offset in range(0, 99 * CHUNK, CHUNK):
            first.write(offset, content[offset : offset + CHUNK])
        first.settle()
        second.settle()
    await sink.write(99 * CHUNK, content[99 * CHUNK : 100 * CHUNK])
    root = content_digest(content)
    assert sink.finish() == (root.hex(), disk_digest(len(content), root).hex())


async def test_zeros_take_no_time(workers: Workers) -> None:
    sink = DigestSink(16 * TiB, CHUNK, workers)
    await sink.zero(0, 16 * TiB)
    await sink.zero(0, 0)
    assert sink.finish()[0] == ZERO.hex()


async def test_all_of_the_disk_is_needed_once(workers: Workers) -> None:
    sink = DigestSink(2 * CHUNK, CHUNK, workers)
    await sink.write(0, bytes(CHUNK))
    with pytest.raises(StateError):
        sink.finish()
    with pytest.raises(StateError):
        await sink.write(0, bytes(CHUNK))
