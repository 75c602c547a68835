"""Disks of a backup under construction."""

from __future__ import annotations

import asyncio
import mmap
import random
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from sfasync.errors import StateError, UsageError
from sfasync.interfaces import Buffer, Sink, SparseChunk
from sfasync.models import DiskRecord
from sfasync.store import writer as module
from sfasync.store.repository import Repository
from sfasync.store.tree import LEAF, content_digest, disk_digest
from sfasync.units import TiB

from .support import CHUNK, back_up, manifest_of, noise, read_disk, text, write_disk


@pytest.mark.parametrize("size", [0, 1, 511, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 512, 130 * CHUNK + 5])
async def test_what_is_written_is_read(repository: Repository, size: int) -> None:
    content = bytearray(text(size))
    content[2 * CHUNK : 4 * CHUNK] = bytes(len(content[2 * CHUNK : 4 * CHUNK]))
    manifest = await back_up(repository, "web-01", {"vda": bytes(content)})
    record = manifest.disks[0]
    assert record.root == content_digest(content).hex()
    assert record.tree == disk_digest(size, content_digest(content)).hex()
    assert await read_disk(repository, manifest, "vda") == content


@pytest.mark.parametrize("size", [1, 4 * CHUNK + 5, 7 * CHUNK, 300 * CHUNK + 5])
@pytest.mark.parametrize("step", [CHUNK, 4 * CHUNK])
async def test_chunks_without_their_zeros(tmp_path: Path, step: int, size: int) -> None:
    content, data = memoryview(bytearray(size)), text(6000)
    places = random.Random(size).choices(range(size), k=200)
    sparse = []
    for start in range(0, size, step):
        length = min(step, size - start)
        offsets = sorted({place for place in places if start <= place < start + length})
        parts = [
            (offset, memoryview(data)[: min(end - offset, 3000 + offset % 3000)])
            for offset, end in pairwise([*offsets, start + length])
        ]
        for offset, part in parts:
            content[offset : offset + len(part)] = part
        sparse.append(SparseChunk(start, length, parts))
    async with await Repository.init(tmp_path / "repository", chunk_size=step) as repository:
        session = await repository.begin("web-01")
        writer = session.disk("vda", size)
        async with asyncio.TaskGroup() as group:
            for first in range(0, len(sparse), 7):
                group.create_task(writer.write_sparse(sparse[first : first + 7]))
        root, tree = await writer.finish()
        assert root == content_digest(content).hex()
        counted = writer.statistics
        assert counted.bytes_new + counted.bytes_duplicate + counted.bytes_zero == size
        record = DiskRecord(id="vda", size=size, root=root, tree=tree, mode="full")
        manifest = await session.commit(manifest_of(session, "web-01", [record]))
        assert await read_disk(repository, manifest, "vda") == content
        assert (await repository.verify(data=True)).ok


async def test_equal_and_empty_chunks_without_their_zeros(repository: Repository) -> None:
    session = await repository.begin("web-01")
    writer = session.disk("vda", 6 * CHUNK)
    data = memoryview(noise(512))
    sparse = [SparseChunk(n * CHUNK, CHUNK, [(n * CHUNK + 512, data)]) for n in range(3)]
    sparse += [SparseChunk(3 * CHUNK, CHUNK, [(3 * CHUNK, memoryview(bytes(512)))]), SparseChunk(4 * CHUNK, CHUNK, [])]
    await writer.write_sparse(sparse)
    await writer.write(5 * CHUNK, bytes(512) + data + bytes(CHUNK - 1024))
    root, _ = await writer.finish()
    chunk = bytes(512) + data + bytes(CHUNK - 1024)
    assert root == content_digest(chunk * 3 + bytes(2 * CHUNK) + chunk).hex()
    counted = writer.statistics
    assert (counted.bytes_new, counted.bytes_duplicate, counted.bytes_zero) == (CHUNK, 3 * CHUNK, 2 * CHUNK)
    with pytest.raises(UsageError, match="not whole chunks"):
        await writer.write_sparse([SparseChunk(512, CHUNK, [])])
    await session.abort()


async def test_zeros_between_chunks_go_with_them(repository: Repository) -> None:
    data = memoryview(noise(512))
    session = await repository.begin("web-01")
    writer = session.disk("vda", 600 * CHUNK)
    sparse = [
        SparseChunk(0, 5 * CHUNK, []),
        SparseChunk(5 * CHUNK, CHUNK, [(6 * CHUNK - 512, data)]),
        SparseChunk(6 * CHUNK, 394 * CHUNK, []),
        SparseChunk(500 * CHUNK, CHUNK, [(500 * CHUNK, data)]),  # after a gap
        SparseChunk(501 * CHUNK, 99 * CHUNK, []),
    ]
    await writer.write_sparse(sparse)
    await writer.zero(400 * CHUNK, 100 * CHUNK)
    root, _ = await writer.finish()
    content = bytes(6 * CHUNK - 512) + data + bytes(494 * CHUNK) + data + bytes(100 * CHUNK - 512)
    assert root == content_digest(content).hex()
    counted = writer.statistics
    assert (counted.bytes_new, counted.bytes_zero) == (2 * CHUNK, 598 * CHUNK)
    await session.abort()


async def test_what_is_counted(repository: Repository) -> None:
    session = await repository.begin("web-01")
    writer = session.disk("vda", 10 * CHUNK + 100)
    assert isinstance(writer, Sink)
    assert (writer.size, writer.chunk_size, writer.block_size) == (10 * CHUNK + 100, CHUNK, CHUNK)
    await writer.write(0, noise(2 * CHUNK))
    await writer.write(2 * CHUNK, noise(CHUNK))
    await writer.write(3 * CHUNK, bytes(CHUNK))
    await writer.zero(4 * CHUNK, 6 * CHUNK)
    await writer.write(10 * CHUNK, b"x" * 100)
    assert await writer.flush() is False
    await writer.finish()
    counted = writer.statistics
    assert (counted.bytes_new, counted.bytes_duplicate, counted.bytes_zero) == (2 * CHUNK + 100, CHUNK, 7 * CHUNK)
    assert 2 * CHUNK < counted.bytes_stored < 2 * CHUNK + 1000
    assert set(counted.seconds) == {"seal", "store"}
    assert all(seconds >= 0 for seconds in counted.seconds.values())
    assert (counted.bytes_read, counted.bytes_skipped) == (0, 0)
    await session.abort()


async def test_any_order_and_many_chunks_at_once(repository: Repository) -> None:
    content = text(301 * CHUNK + 17)
    session = await repository.begin("web-01")
    writer = session.disk("vda", len(content))
    cuts = sorted({0, len(content), *(random.Random(1).randrange(302) * CHUNK for _ in range(60))})
    parts = list(pairwise(cuts))
    random.Random(2).shuffle(parts)
    async with asyncio.TaskGroup() as group:
        for start, end in parts:
            group.create_task(writer.write(start, memoryview(content)[start:end]))
    root, tree = await writer.finish()
    assert root == content_digest(content).hex()
    record = DiskRecord(id="vda", size=len(content), root=root, tree=tree, mode="full")
    manifest = await session.commit(manifest_of(session, "web-01", [record]))
    assert await read_disk(repository, manifest, "vda") == content


async def test_unchanged_chunks_are_kept_unread(repository: Repository) -> None:
    old = bytearray(noise(300 * CHUNK + 50))
    first = await back_up(repository, "web-01", {"vda": bytes(old)})
    new = bytearray(old)
    new[7 * CHUNK : 8 * CHUNK] = noise(CHUNK, 5)
    session = await repository.begin("web-01")
    assert session.parent == first
    writer = session.disk("vda", len(new), parent=first.disks[0])
    await writer.keep(0, 7 * CHUNK)
    await writer.write(7 * CHUNK, new[7 * CHUNK : 8 * CHUNK])
    await writer.keep(8 * CHUNK, len(new) - 8 * CHUNK)
    root, tree = await writer.finish()
    assert root == content_digest(new).hex()
    assert writer.statistics.bytes_skipped == len(new) - CHUNK
    assert writer.statistics.bytes_new == CHUNK
    assert writer.statistics.bytes_stored < CHUNK + 10_000
    record = DiskRecord(id="vda", size=len(new), root=root, tree=tree, mode="incremental")
    manifest = await session.commit(manifest_of(session, "web-01", [record]))
    assert await read_disk(repository, manifest, "vda") == new
    assert (await repository.verify(data=True)).ok


async def test_a_grown_disk_keeps_whole_chunks_only(repository: Repository) -> None:
    old = noise(3 * CHUNK + 50)
    first = await back_up(repository, "web-01", {"vda": old})
    session = await repository.begin("web-01")
    writer = session.disk("vda", 5 * CHUNK, parent=first.disks[0])
    await writer.keep(0, 3 * CHUNK)
    with pytest.raises(StateError, match="another length"):
        await writer.keep(3 * CHUNK, CHUNK)
    await session.abort()


async def test_ranges_that_are_not_whole_chunks_are_refused(repository: Repository) -> None:
    session = await repository.begin("web-01")
    writer = session.disk("vda", 3 * CHUNK + 10)
    writes: list[tuple[int, int]] = [(1, CHUNK), (0, CHUNK - 1), (3 * CHUNK, 9), (3 * CHUNK, 11), (-CHUNK, CHUNK)]
    for offset, length in [*writes, (4 * CHUNK, CHUNK)]:
        with pytest.raises(UsageError, match="not whole chunks"):
            await writer.write(offset, bytes(length))
        with pytest.raises(UsageError, match="not whole chunks"):
            await writer.zero(offset, length)
    with pytest.raises(StateError, match="no parent"):
        await writer.keep(0, CHUNK)
    await session.abort()


async def test_a_range_is_written_once_and_all_of_the_disk(repository: Repository) -> None:
    session = await repository.begin("web-01")
    writer = session.disk("vda", 3 * CHUNK)
    await writer.write(0, noise(CHUNK))
    with pytest.raises(StateError, match="twice"):
        await writer.write(0, noise(CHUNK))
    with pytest.raises(StateError, match="not written completely"):
        await writer.finish()
    await writer.zero(CHUNK, 2 * CHUNK)
    await writer.finish()
    await session.abort()


async def test_a_large_sparse_disk_takes_no_time(repository: Repository) -> None:
    size = 16 * TiB
    session = await repository.begin("web-01")
    writer = session.disk("vda", size)
    async with asyncio.timeout(5):
        await writer.write(0, noise(CHUNK))
        await writer.zero(CHUNK, size - 2 * CHUNK)
        await writer.write(size - CHUNK, noise(CHUNK))
        root, tree = await writer.finish()
        record = DiskRecord(id="vda", size=size, root=root, tree=tree, mode="full")
        manifest = await session.commit(manifest_of(session, "web-01", [record]))
        source = repository.open_disk(manifest, "vda")
        extents = [extent async for extent in source.extents()]
    assert [(extent.offset, extent.length, extent.zero) for extent in extents] == [
        (0, CHUNK, False),
        (CHUNK, size - 2 * CHUNK, True),
        (size - CHUNK, CHUNK, False),
    ]
    assert (await repository.verify(data=True)).ok


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_the_buffer_is_free_after_the_call(repository: Repository, kind: Callable[[bytes], Buffer]) -> None:
    content = noise(4 * CHUNK)
    session = await repository.begin("web-01")
    writer = session.disk("vda", len(content))
    buffer = bytearray(CHUNK)
    for offset in range(0, len(content), CHUNK):
        buffer[:] = content[offset : offset + CHUNK]
        await writer.write(offset, kind(bytes(buffer)) if kind is bytes else memoryview(buffer))
        buffer[:] = b"?" * CHUNK
    root, _ = await writer.finish()
    assert root == content_digest(content).hex()
    await session.abort()


async def test_a_cancelled_write_waits_for_the_thread(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, leave = threading.Event(), threading.Event()
    seen: list[bytes] = []

    def slow(view: memoryview) -> bool:
        entered.set()
        leave.wait(30)
        seen.append(bytes(view))
        return not any(view)

    monkeypatch.setattr(module, "is_zero", slow)
    session = await repository.begin("web-01")
    writer = session.disk("vda", 2 * CHUNK)
    memory = mmap.mmap(-1, CHUNK)
    memory[:] = noise(CHUNK)
    view = memoryview(memory)
    task = asyncio.create_task(writer.write(0, view))
    await asyncio.get_running_loop().run_in_executor(None, entered.wait)
    task.cancel()
    await asyncio.wait({task}, timeout=0.1)
    assert not task.done()
    leave.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert seen == [noise(CHUNK)]
    view.release()
    memory.close()  # fails while anybody looks at it
    await asyncio.get_running_loop().shutdown_default_executor()
    await session.abort()


async def test_cancelling_writes_anywhere_leaves_a_session_that_can_be_aborted(repository: Repository) -> None:
    for turns in range(6):
        session = await repository.begin("web-01")
        tasks = [asyncio.create_task(write_disk(session, f"d{n}", noise(6 * CHUNK, n))) for n in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await session.abort()
    assert await repository.backups() == []
    assert (await repository.verify(data=True)).ok


async def test_chunks_of_one_digest_and_two_lengths(tmp_path: Path) -> None:
    """See `tree`: a chunk that ends in zeros has the digest of a longer one."""
    data = noise(LEAF)
    contents = {"a": data + bytes(100), "b": data + bytes(200)}
    async with await Repository.init(tmp_path / "large", chunk_size=2 * LEAF) as repository:
        manifest = await back_up(repository, "web-01", contents)
        assert manifest.disks[0].root == manifest.disks[1].root
        assert manifest.disks[0].tree != manifest.disks[1].tree
        for disk_id, content in contents.items():
            assert await read_disk(repository, manifest, disk_id) == content
        assert (await repository.verify(data=True)).ok
