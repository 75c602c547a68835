"""Local files and block devices."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sfasync import files
from sfasync.blocking import FileReader
from sfasync.buffers import BufferPool
from sfasync.errors import NoSpaceError, SourceError, TargetError, TargetRefusedError, UsageError
from sfasync.models import Extent
from sfasync.transport.file import FileSink, FileSource, NullSink
from sfasync.units import KiB, MiB
from sfasync.workers import Workers

from ..contracts.sink import SinkCase, SinkContract, noise
from ..contracts.source import SourceCase, SourceContract

ODD = 4 * MiB + 512  # the last page is not whole


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers(4, "test-file")
    yield workers
    workers.close()


def sparse_file(path: Path, *data: tuple[int, bytes], size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, content in data:
            file.seek(offset)
            file.write(content)
    return path


class TestFileSource(SourceContract):
    @pytest.fixture
    async def source_case(self, tmp_path: Path, workers: Workers) -> AsyncIterator[SourceCase]:
        path = sparse_file(
            tmp_path / "disk", (0, noise(MiB)), (2 * MiB, noise(64 * KiB)), (ODD - 9, b"x" * 9), size=ODD
        )
        async with await FileSource.open(path, workers=workers) as source:
            yield SourceCase(source, path.read_bytes())


def reader(path: Path) -> Callable[[], Awaitable[bytes]]:
    async def content() -> bytes:
        return path.read_bytes()

    return content


class TestFileSink(SinkContract):
    @pytest.fixture
    async def sink_case(self, tmp_path: Path, workers: Workers) -> AsyncIterator[SinkCase]:
        async with await FileSink.open(tmp_path / "disk", size=ODD, workers=workers, overwrite=False) as sink:
            yield SinkCase(sink, reader(tmp_path / "disk"))


@contextmanager
def special_file(path: Path, kind: str) -> Iterator[Path]:
    """Something that is no disk."""
    match kind:
        case "directory":
            path.mkdir()
            yield path
        case "pipe":
            os.mkfifo(path)
            yield path
        case "device":
            yield Path("/dev/null")
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
                yield path
        case "orphan":
            yield path / "below" / "nothing"
        case _:
            yield path


# --- sources ---------------------------------------------------------------------------------------------------------


async def test_holes_are_zero_and_data_is_not(tmp_path: Path, workers: Workers) -> None:
    # ----aaaa----
    path = sparse_file(tmp_path / "disk", (MiB, b"a" * MiB), size=3 * MiB)
    async with await FileSource.open(path, workers=workers) as source:
        assert [extent async for extent in source.extents()] == [
            Extent(0, MiB, zero=True, hole=True),
            Extent(MiB, MiB),
            Extent(2 * MiB, MiB, zero=True, hole=True),
        ]


async def test_more_extents_than_fit_in_one_call(tmp_path: Path, workers: Workers) -> None:
    step = 8 * KiB
    count = 3000
    path = sparse_file(tmp_path / "disk", *((i * step, b"x") for i in range(count)), size=count * step)
    async with await FileSource.open(path, workers=workers) as source:
        found = [extent async for extent in source.extents()]
    assert sum(extent.length for extent in found) == count * step
    assert sum(not extent.zero for extent in found) == count


async def test_an_empty_file(tmp_path: Path, workers: Workers) -> None:
    path = sparse_file(tmp_path / "disk", size=0)
    async with await FileSource.open(path, workers=workers) as source:
        assert source.size == 0
        assert [extent async for extent in source.extents()] == []


async def test_a_file_that_becomes_shorter_is_no_hole(tmp_path: Path, workers: Workers) -> None:
    path = sparse_file(tmp_path / "disk", (0, noise(MiB)), size=MiB)
    async with await FileSource.open(path, workers=workers) as source:
        os.truncate(path, 4096)
        with pytest.raises(SourceError, match="became shorter"):
            await source.read_into(0, memoryview(bytearray(8192)))
        with pytest.raises(SourceError, match="became shorter"):
            [extent async for extent in source.extents()]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "No such file"),
        ("directory", "neither a file nor a block device"),
        ("pipe", "neither a file nor a block device"),
        ("device", "neither a file nor a block device"),
        ("socket", "cannot open"),
    ],
)
async def test_sources_that_are_refused(kind: str, message: str, tmp_path: Path, workers: Workers) -> None:
    with special_file(tmp_path / "disk", kind) as path, pytest.raises(SourceError, match=message):
        await FileSource.open(path, workers=workers)


async def test_a_name_cannot_forge_the_message(tmp_path: Path, workers: Workers) -> None:
    with pytest.raises(SourceError) as caught:
        await FileSource.open(tmp_path / "a\nb\x1b[2J", workers=workers)
    assert str(caught.value).isprintable()


async def test_a_read_error_names_the_place(tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sparse_file(tmp_path / "disk", size=MiB)

    def fails(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with await FileSource.open(path, workers=workers) as source:
        monkeypatch.setattr(os, "preadv", fails)
        with pytest.raises(SourceError, match=r"cannot read 4096 bytes at 8192 of .*Input/output error") as caught:
            await source.read_into(8192, memoryview(bytearray(4096)))
        assert (caught.value.offset, caught.value.length, caught.value.path) == (8192, 4096, str(path))


# --- sinks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def sendable(tmp_path: Path, workers: Workers) -> AsyncIterator[FileReader]:
    """Blocks of 64 KiB: data, data after a page of zeros, zeros that are written, data up to an odd end."""
    content = noise(64 * KiB) + bytes(4 * KiB) + noise(60 * KiB) + bytes(64 * KiB) + noise(777)
    path = sparse_file(tmp_path / "disk", (0, content), size=len(content))
    async with await FileSource.open(path, workers=workers) as source, source.readers(1) as (reader,):
        if not isinstance(reader, FileReader):
            pytest.skip("this file system gives no pages of files to pipes")
        yield reader


@pytest.mark.parametrize(
    ("start", "end", "block", "is_sendable"),
    [
        (0, 128 * KiB, 64 * KiB, True),
        (0, 128 * KiB, 16 * KiB, True),
        (0, 192 * KiB, 64 * KiB, False),
        (0, 192 * KiB, 256 * KiB, True),
        (0, 192 * KiB + 777, 0, True),
        (127 * KiB, 129 * KiB, 64 * KiB, False),
        (65 * KiB, 67 * KiB, 64 * KiB, False),  # zeros, as far as they are looked at
        (1, 64 * KiB - 1, 64 * KiB, True),
        (192 * KiB, 192 * KiB + 777, 64 * KiB, True),
        (192 * KiB, 192 * KiB + 777, MiB, True),
        (0, 64 * KiB, 4 * KiB, False),  # so many blocks are not looked at
    ],
)
async def test_what_the_system_may_send_itself(
    start: int, end: int, block: int, is_sendable: bool, sendable: FileReader
) -> None:
    assert sendable.is_sendable(start, memoryview(bytearray(end - start)), block) is is_sendable


async def test_what_is_not_in_memory_is_read(sendable: FileReader) -> None:
    os.fsync(sendable.fileno())
    os.posix_fadvise(sendable.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    content = memoryview(bytearray(64 * KiB))
    assert not sendable.is_sendable(0, content, 64 * KiB)
    sendable.read_into(0, content)
    assert sendable.is_sendable(0, content, 64 * KiB)


async def test_a_file_system_without_pages_to_give(
    tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def splice(*arguments: object, **options: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "splice", splice)
    path = sparse_file(tmp_path / "disk", (0, b"content"), size=7)
    async with await FileSource.open(path, workers=workers) as source, source.readers(2) as readers:
        assert not any(isinstance(reader, FileReader) for reader in readers)


async def test_nothing_is_allocated_for_zeros(tmp_path: Path, workers: Workers) -> None:
    path = tmp_path / "disk"
    size = 1 << 43
    async with await FileSink.open(path, size=size, workers=workers, overwrite=False) as sink:
        await sink.write(1 << 40, b"x" * 4096)
        await sink.zero(0, 1 << 40)
        await sink.zero((1 << 40) + 4096, size - (1 << 40) - 4096)
        assert await sink.flush() is True
    status = path.stat()
    assert status.st_size == size
    assert status.st_blocks * 512 <= 64 * KiB
    assert status.st_mode & 0o777 == 0o600


async def test_zeroing_gives_space_back(tmp_path: Path, workers: Workers) -> None:
    path = tmp_path / "disk"
    async with await FileSink.open(path, size=8 * MiB, workers=workers, overwrite=False) as sink:
        await sink.write(0, noise(8 * MiB))
        await sink.zero(MiB, 6 * MiB)
        await sink.flush()
    assert path.stat().st_blocks * 512 <= 2 * MiB + 64 * KiB
    assert path.read_bytes()[MiB : 7 * MiB] == bytes(6 * MiB)


async def test_zeros_are_written_where_space_cannot_be_given_back(
    tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfasync.transport.file.punch_hole", lambda *_: False)
    path = tmp_path / "disk"
    async with await FileSink.open(path, size=ODD, workers=workers, overwrite=False) as sink:
        await sink.write(0, b"x" * ODD)
        await sink.zero(4096, ODD - 4096)
    assert path.read_bytes() == b"x" * 4096 + bytes(ODD - 4096)


async def test_pool_memory_goes_past_the_page_cache(tmp_path: Path, workers: Workers) -> None:
    path = tmp_path / "disk"
    probe = os.open(sparse_file(tmp_path / "probe", size=0), os.O_RDWR)
    direct = files.reopen_direct(probe)
    os.close(probe)
    if direct is None:
        pytest.skip("the file system of the temporary directory has no O_DIRECT")
    os.close(direct)
    pool = BufferPool(MiB)
    wanted = noise(MiB)
    async with await FileSink.open(path, size=MiB, workers=workers, overwrite=False) as sink:
        slot = await pool.acquire(MiB)
        slot.view[:] = wanted
        filled = slot.filled()
        await sink.write(0, filled.view)
        filled.release()
        assert cached_pages(path) == 0
    assert path.read_bytes() == wanted
    assert pool.in_use == 0
    pool.close()


def cached_pages(path: Path) -> int:
    """Pages of a file that are in the page cache, by fincore(1)."""
    if shutil.which("fincore") is None:
        pytest.skip("fincore is not installed")
    command = ["fincore", "--noheadings", "--output", "PAGES", str(path)]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


async def test_overwriting_empties_the_file(tmp_path: Path, workers: Workers) -> None:
    path = sparse_file(tmp_path / "disk", (0, b"old" * MiB), size=8 * MiB)
    async with await FileSink.open(path, size=MiB, workers=workers, overwrite=True):
        pass
    assert path.read_bytes() == bytes(MiB)


async def test_an_existing_file_is_refused_and_untouched(tmp_path: Path, workers: Workers) -> None:
    path = sparse_file(tmp_path / "disk", (0, b"old"), size=3)
    with pytest.raises(TargetRefusedError, match="exists"):
        await FileSink.open(path, size=MiB, workers=workers, overwrite=False)
    assert path.read_bytes() == b"old"


async def test_a_file_that_is_being_read_is_not_emptied(tmp_path: Path, workers: Workers) -> None:
    path = sparse_file(tmp_path / "disk", (0, b"old"), size=3)
    async with await FileSource.open(path, workers=workers):
        with pytest.raises(TargetRefusedError, match="in use"):
            await FileSink.open(path, size=3, workers=workers, overwrite=True)
    assert path.read_bytes() == b"old"


async def test_what_is_being_written_can_be_read_back(tmp_path: Path, workers: Workers) -> None:
    path = tmp_path / "disk"
    async with await FileSink.open(path, size=8192, workers=workers, overwrite=False) as sink:
        await sink.write(4096, b"x" * 4096)
        async with await FileSource.open(path, workers=workers) as source:
            buffer = bytearray(8192)
            await source.read_into(0, memoryview(buffer))
        assert buffer == bytes(4096) + b"x" * 4096


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("directory", TargetRefusedError, "is a directory"),
        ("pipe", TargetRefusedError, "neither a file nor a block device"),
        ("device", TargetRefusedError, "neither a file nor a block device"),
        ("socket", TargetRefusedError, "neither a file nor a block device"),
        ("orphan", TargetError, "No such file or directory"),
    ],
)
async def test_targets_that_are_refused(
    kind: str, error: type[Exception], message: str, tmp_path: Path, workers: Workers
) -> None:
    with special_file(tmp_path / "disk", kind) as path, pytest.raises(error, match=message):
        await FileSink.open(path, size=MiB, workers=workers, overwrite=True)


async def test_a_file_too_long_for_its_file_system(tmp_path: Path, workers: Workers) -> None:
    with pytest.raises(TargetError, match="bytes long"):
        await FileSink.open(tmp_path / "disk", size=(1 << 63) - 1, workers=workers, overwrite=False)


async def test_writes_keep_to_pages(tmp_path: Path, workers: Workers) -> None:
    async with await FileSink.open(tmp_path / "disk", size=ODD, workers=workers, overwrite=False) as sink:
        for offset, length in ((512, 4096), (0, 512)):
            with pytest.raises(UsageError, match="boundaries"):
                await sink.write(offset, bytes(length))
            with pytest.raises(UsageError, match="boundaries"):
                await sink.zero(offset, length)


async def test_a_full_file_system(tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with await FileSink.open(tmp_path / "disk", size=MiB, workers=workers, overwrite=False) as sink:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(NoSpaceError, match=r"cannot write 4096 bytes at 0 of .*No space left"):
            await sink.write(0, bytes(4096))


async def test_a_failed_flush_is_not_tried_again(
    tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with await FileSink.open(tmp_path / "disk", size=MiB, workers=workers, overwrite=False) as sink:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            with pytest.raises(TargetError, match="durable"):
                await sink.flush()
        with pytest.raises(TargetError, match="durable"):
            await sink.flush()


@pytest.mark.parametrize("turns", range(6))
async def test_opening_can_be_cancelled(turns: int, tmp_path: Path, workers: Workers) -> None:
    """No descriptor is left; the fixture of every test looks."""
    task = asyncio.create_task(FileSink.open(tmp_path / "disk", size=MiB, workers=workers, overwrite=True))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        await task.result().aclose()


async def test_closing_can_be_cancelled(tmp_path: Path) -> None:
    workers = Workers(1)
    sink = await FileSink.open(tmp_path / "disk", size=MiB, workers=workers, overwrite=False)
    task = asyncio.create_task(sink.aclose())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    await workers.run(int)  # comes after the closing in the only thread
    assert "closed" in repr(sink)
    workers.close()


async def test_a_file_grows_with_what_comes(tmp_path: Path, workers: Workers) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"o" * MiB)
    wanted = noise(ODD)
    async with await FileSink.open(path, size=0, workers=workers, overwrite=True) as sink:
        for offset in range(0, ODD, MiB):
            piece = wanted[offset : offset + MiB]
            await sink.grow(offset + len(piece))
            await sink.write(offset, piece)
        await sink.end(ODD)
        assert sink.size == ODD
    assert path.read_bytes() == wanted


async def test_a_file_that_cannot_grow(tmp_path: Path, workers: Workers) -> None:
    async with await FileSink.open(tmp_path / "disk.raw", size=0, workers=workers, overwrite=True) as sink:
        with pytest.raises(TargetError, match=r"cannot make .* bytes long"):
            await sink.grow((1 << 63) - 512 * MiB)
        assert sink.size == 0


async def test_null_takes_everything() -> None:
    sink = NullSink(0)
    await sink.grow(1 << 50)
    await sink.end(1 << 50)
    assert sink.size == 1 << 50
    await sink.write(0, b"x")
    await sink.zero(0, 1 << 50)
    assert await sink.flush() is True


# --- block devices ---------------------------------------------------------------------------------------------------


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[Path]:
    """A loop device of 8 MiB, full of ``o``."""
    image = sparse_file(tmp_path / "image", (0, b"o" * (8 * MiB)), size=8 * MiB)
    made = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    yield device
    subprocess.run(["losetup", "--detach", str(device)], check=True)


async def test_a_block_device_does_not_grow(block_device: Path, workers: Workers) -> None:
    async with await FileSink.open(block_device, size=0, workers=workers, overwrite=True) as sink:
        await sink.grow(8 * MiB)
        with pytest.raises(NoSpaceError, match="is full"):
            await sink.grow(8 * MiB + 1)


async def test_a_block_device(block_device: Path, workers: Workers) -> None:
    wanted = noise(ODD)
    async with await FileSink.open(block_device, size=ODD, workers=workers, overwrite=True) as sink:
        await sink.write(0, wanted)
        await sink.zero(MiB, MiB)
        await sink.flush()
    async with await FileSource.open(block_device, workers=workers) as source:
        assert source.size == 8 * MiB
        assert [extent async for extent in source.extents()] == [Extent(0, 8 * MiB)]
        buffer = bytearray(8 * MiB)
        await source.read_into(0, memoryview(buffer))
    assert buffer == wanted[:MiB] + bytes(MiB) + wanted[2 * MiB :] + b"o" * (8 * MiB - ODD)


async def test_a_block_device_that_cannot_be_a_target(block_device: Path, workers: Workers) -> None:
    with pytest.raises(TargetRefusedError, match="exists"):
        await FileSink.open(block_device, size=MiB, workers=workers, overwrite=False)
    with pytest.raises(TargetRefusedError, match="8388608 bytes, 9437184 are needed"):
        await FileSink.open(block_device, size=9 * MiB, workers=workers, overwrite=True)
    exclusive = os.open(block_device, os.O_RDONLY | os.O_EXCL)  # as if it were mounted
    try:
        with pytest.raises(TargetRefusedError, match="in use"):
            await FileSink.open(block_device, size=MiB, workers=workers, overwrite=True)
    finally:
        os.close(exclusive)
