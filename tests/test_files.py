"""Files made durable."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync import files
from sfasync.errors import NoSpaceError, StorageError, TargetRefusedError
from sfasync.units import KiB, MiB

PIECE = 2 * MiB  # of a new file, that is written at once
GRAIN = 4 * KiB  # blocks of the file system below the temporary directory


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    yield fd
    os.close(fd)


def failing(code: int) -> Callable[..., int]:
    def fail(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(
    ("inodes", "needed", "message"),
    [
        ((100, 0), 9, "No space left on device; it has no free inodes: remove files, or make it anew with more"),
        ((100, 7), 9000, "No space left on device; at least 808 bytes are missing"),
        ((0, 0), 9000, "No space left on device; at least 808 bytes are missing"),
        ((100, 7), 8192, "No space left on device"),
    ],
)
def test_what_a_full_file_system_lacks(
    file: int, monkeypatch: pytest.MonkeyPatch, inodes: tuple[int, int], needed: int, message: str
) -> None:
    # f_bsize, f_frsize, f_blocks, f_bfree, f_bavail, f_files, f_ffree, f_favail, f_flag, f_namemax
    found = os.statvfs_result((4096, 4096, 10, 4, 2, inodes[0], inodes[1], inodes[1], 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda fd: found)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(files.storage_error(full, "write", "a", file_system=file, needed=needed)) == f"cannot write a: {message}"
    monkeypatch.setattr(os, "fstatvfs", failing(errno.EIO))
    told = str(files.storage_error(full, "write", "a", file_system=file, needed=needed))
    assert told == "cannot write a: No space left on device"


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, NoSpaceError), (errno.EDQUOT, NoSpaceError), (errno.EIO, StorageError)]
)
def test_storage_error(code: int, kind: type[StorageError]) -> None:
    error = files.storage_error(OSError(code, os.strerror(code)), "write", "a\nb")
    assert type(error) is kind
    assert str(error) == f"cannot write a\\nb: {os.strerror(code)}"
    assert error.path == "a\nb"


def test_short_writes_and_reads_go_on(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(10_000)
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:999], offset))
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: preadv(fd, [views[0][:777]], offset))
    files.write_at(file, 5, content)
    files.write_at(file, 0, b"first")
    buffer = bytearray(10_010)
    assert files.read_at(file, 0, memoryview(buffer)) == 10_005
    assert buffer == b"first" + content + bytes(5)


@pytest.mark.parametrize("sizes", [[0], [5], [5, PIECE], [PIECE], [PIECE - 1, 1, 1], [3 * PIECE + 7, 0, PIECE, 9]])
@pytest.mark.parametrize("direct", [True, False])
def test_a_file_in_any_pieces(file: int, sizes: list[int], direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not direct:
        monkeypatch.setattr(files, "reopen_direct", lambda fd: None)
    writer = files.FileWriter(file)
    content = b""
    for size in sizes:
        piece = os.urandom(size)
        writer.write(piece)
        content += piece
        assert writer.position == len(content)
    assert 0 <= writer.missing() <= PIECE
    writer.flush()
    assert writer.missing() == 0
    writer.close()
    writer.close()
    assert os.pread(file, len(content) + 1, 0) == content


def test_memory_is_used_again_and_not_hoarded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spares: list[mmap.mmap] = []
    monkeypatch.setattr(files, "_spares", spares)
    for _ in range(2):
        with ExitStack() as opened:
            writers = []
            for number in range(6):
                file = opened.enter_context((tmp_path / str(number)).open("wb"))
                writers.append(files.FileWriter(file.fileno()))
                writers[-1].write(bytes([number]) * (PIECE + number))
            for writer in writers:
                writer.flush()
                writer.close()
                writer.close()
                with pytest.raises(ValueError, match="released"):
                    writer.write(b"too late")
                with pytest.raises(ValueError, match="released"):
                    writer.flush()
        assert len(spares) == 4
        for number in range(6):
            assert (tmp_path / str(number)).read_bytes() == bytes([number]) * (PIECE + number)


def test_whole_pieces_of_a_new_file_go_past_the_page_cache(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if (direct := files.reopen_direct(file)) is None:
        pytest.skip("this file system has no direct writes")
    os.close(direct)
    pwrite = os.pwrite
    lengths = {True: 0, False: 0}  # by whether they go through the page cache

    def counting(fd: int, data: memoryview, offset: int) -> int:
        lengths[fd == file] += len(data)
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", counting)
    writer = files.FileWriter(file)
    writer.write(bytes(2 * MiB + 5))
    writer.flush()
    writer.close()
    assert lengths == {True: 5, False: 2 * MiB}


def test_a_file_writer_tells_what_a_full_disk_lacks(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite

    def full(fd: int, data: memoryview, offset: int) -> int:
        if offset:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data[:4096], offset)

    writer = files.FileWriter(file)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        writer.write(bytes(3 * MiB))
    assert writer.missing() == 3 * MiB - 4096
    writer.close()


def test_what_cannot_go_past_the_page_cache_goes_through_it(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A direct write that takes one page and then refuses: the rest is written all the same."""
    pwrite = os.pwrite
    taken: list[int] = []

    def direct_takes_one_page(fd: int, data: memoryview, offset: int) -> int:
        if fd != file:
            if taken:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            taken.append(offset)
            data = data[: files.PAGE]
        return pwrite(file, data, offset)

    monkeypatch.setattr(os, "pwrite", direct_takes_one_page)
    content = os.urandom(3 * files.PAGE + 7)
    files.write_at(file, files.PAGE, content, direct=file + 1000)
    assert taken == [files.PAGE]
    assert os.pread(file, len(content) + 1, files.PAGE) == content


def test_a_direct_write_that_fails_is_a_failure(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        files.write_at(file, 0, bytes(files.PAGE), direct=file)


def test_no_direct_writing_without_proc(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", failing(errno.ENOENT))
    assert files.reopen_direct(file) is None


@given(picture=st.text("a-", min_size=1, max_size=24), start=st.integers(0, 30), limit=st.integers(1, 5))
def test_data_ranges(tmp_path_factory: pytest.TempPathFactory, picture: str, start: int, limit: int) -> None:
    # letters for data, - for a hole
    path = tmp_path_factory.mktemp("ranges") / "file"
    end = len(picture)
    start = min(start, end)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(fd, end * GRAIN)
        for block in (block for block, letter in enumerate(picture) if letter == "a"):
            os.pwrite(fd, b"a" * GRAIN, block * GRAIN)
        found = []
        position = start * GRAIN
        while position < end * GRAIN:
            ranges = files.data_ranges(fd, position, end * GRAIN, limit=limit)
            assert 0 < len(ranges) <= limit + 1
            found += ranges
            position = found[-1][0] + found[-1][1]
    finally:
        os.close(fd)
    drawn = "".join(("a" if data else "-") * (length // GRAIN) for _, length, data in found)
    assert drawn == picture[start:]


def test_all_is_data_where_nobody_knows(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    os.ftruncate(file, 10 * GRAIN)
    monkeypatch.setattr(os, "lseek", failing(errno.EINVAL))
    assert files.data_ranges(file, GRAIN, 10 * GRAIN, limit=1) == [(GRAIN, 9 * GRAIN, True)]


def test_other_failures_to_seek_are_failures(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "lseek", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        files.data_ranges(file, 0, GRAIN, limit=1)


def test_punch_hole(file: int) -> None:
    os.pwrite(file, b"a" * (8 * GRAIN), 0)
    os.fsync(file)
    if not files.punch_hole(file, GRAIN, 6 * GRAIN):
        pytest.skip("the file system of the temporary directory has no holes")
    assert os.pread(file, 8 * GRAIN, 0) == b"a" * GRAIN + bytes(6 * GRAIN) + b"a" * GRAIN
    assert os.fstat(file).st_blocks * 512 < 8 * GRAIN


def test_punch_hole_is_not_offered_by_a_pipe() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(OSError, match="seek"):
            files.punch_hole(writing, 0, 1)
    finally:
        os.close(reading)
        os.close(writing)


def test_publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(fd).st_mode) and (tmp_path / "disk").exists())
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watched)
    (tmp_path / ".part").write_bytes(b"new")
    files.publish(tmp_path / ".part", tmp_path / "disk", replace=False)
    assert synced == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


def test_publish_does_not_take_a_name(tmp_path: Path) -> None:
    (tmp_path / ".part").write_bytes(b"new")
    (tmp_path / "disk").write_bytes(b"old")
    with pytest.raises(TargetRefusedError, match="exists"):
        files.publish(tmp_path / ".part", tmp_path / "disk", replace=False)
    assert (tmp_path / "disk").read_bytes() == b"old"
    assert (tmp_path / ".part").exists()
    files.publish(tmp_path / ".part", tmp_path / "disk", replace=True)
    assert (tmp_path / "disk").read_bytes() == b"new"
    assert not (tmp_path / ".part").exists()


def test_publish_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    (tmp_path / ".part").write_bytes(b"new")
    files.publish(tmp_path / ".part", tmp_path / "disk", replace=False)
    assert (tmp_path / "disk").read_bytes() == b"new"
    (tmp_path / ".part").write_bytes(b"newer")
    with pytest.raises(TargetRefusedError, match="exists"):
        files.publish(tmp_path / ".part", tmp_path / "disk", replace=False)


def test_publish_that_fails(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot create .*disk: No such file"):
        files.publish(tmp_path / ".part", tmp_path / "disk", replace=True)


def test_a_directory_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    files.sync_directory(tmp_path)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        files.sync_directory(tmp_path)
