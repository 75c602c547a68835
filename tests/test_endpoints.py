"""What a caller may name as an end of a copy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sfasync.endpoints import Endpoints, Pipe, parse_endpoint
from sfasync.errors import CbtError, UriError, UsageError
from sfasync.models import NO_RETRY, ExportAddress, Extent, Limits, MetadataContext, Timeouts
from sfasync.nbd.uri import parse_uri
from sfasync.units import KiB
from sfasync.workers import Workers

from .support.memory import MemoryDisk
from .support.servers import qemu_nbd


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    return path


def test_names() -> None:
    assert parse_endpoint("nbd://host/disk", standard=0) == ExportAddress(host="host", export="disk")
    assert parse_endpoint("disk.raw", standard=0) == Path("disk.raw")
    assert parse_endpoint("./-", standard=0) == parse_endpoint(Path("-"), standard=0) == Path("-")
    assert parse_endpoint("null:", standard=1) is None


async def test_objects_stay_what_they_are() -> None:
    disk = MemoryDisk(b"")
    assert parse_endpoint(disk, standard=0) is disk


@pytest.mark.parametrize(("name", "error"), [("", UsageError), ("ftp://host/disk", UriError), ("nbd:disk", UriError)])
def test_what_is_no_end(name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_endpoint(name, standard=0)


def test_a_pipe() -> None:
    reader, writer = os.pipe()
    try:
        assert parse_endpoint("-", standard=writer) == Pipe(writer, "standard output")
    finally:
        os.close(reader)
        os.close(writer)


def test_a_file_at_its_beginning(file: Path) -> None:
    with opened(file, os.O_WRONLY) as fd:
        assert parse_endpoint("-", standard=fd) == file


def test_a_file_further_on(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        os.lseek(fd, 5, os.SEEK_SET)
        assert isinstance(parse_endpoint("-", standard=fd), Pipe)


def test_a_file_that_is_appended_to(file: Path) -> None:
    with opened(file, os.O_WRONLY | os.O_APPEND) as fd:
        assert isinstance(parse_endpoint("-", standard=fd), Pipe)


def test_a_file_without_a_name(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        file.unlink()
        assert isinstance(parse_endpoint("-", standard=fd), Pipe)


def test_a_file_whose_name_is_another_ones(file: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        file.unlink()
        file.with_name(f"{file.name} (deleted)").write_bytes(b"another")
        assert isinstance(parse_endpoint("-", standard=fd), Pipe)


def test_a_terminal() -> None:
    outer, terminal = os.openpty()
    try:
        with pytest.raises(UsageError, match="standard output is a terminal"):
            parse_endpoint("-", standard=terminal)
    finally:
        os.close(outer)
        os.close(terminal)


def test_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(file, os.O_RDWR) as fd:
        closed = os.dup(fd)
    os.close(closed)
    with pytest.raises(UsageError, match="standard output cannot be used"):
        parse_endpoint("-", standard=closed)
    monkeypatch.setattr(sys, "__stdin__", None)  # what Python makes of a closed one
    with pytest.raises(UsageError, match="standard input is closed"):
        parse_endpoint("-", standard=0)


@pytest.fixture
def endpoints() -> Iterator[Endpoints]:
    workers = Workers(1, "endpoints")
    yield Endpoints(Limits(), Timeouts(), workers, NO_RETRY)
    workers.close()


async def test_changes_are_read_where_a_server_has_them(endpoints: Endpoints, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    commands: list[list[str | Path]] = [
        ["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"],
        ["qemu-img", "bitmap", "--add", image, "base"],
        ["qemu-io", "-c", "write 128k 64k", "-c", "write -z 512k 128k", image],
    ]
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with qemu_nbd(image, "--bitmap=base", fmt="qcow2", writable=False) as server:
        address = parse_uri(server.uri)
        async with endpoints.changes(MetadataContext(address, "qemu:dirty-bitmap:base")) as changed:
            assert changed is not None
            found = [(extent.offset, extent.length) async for extent in changed]
        async with endpoints.changes(MetadataContext(address, "qemu:dirty-bitmap:base")) as changed:
            assert changed is not None
            assert await anext(changed) == Extent(128 * KiB, 64 * KiB)
        with pytest.raises(CbtError, match="no metadata context 'qemu:dirty-bitmap:other'"):
            async with endpoints.changes(MetadataContext(address, "qemu:dirty-bitmap:other")):
                pytest.fail("there is none")
    assert found == [(128 * KiB, 64 * KiB), (512 * KiB, 128 * KiB)]


async def test_other_changes_stay_what_they_are(endpoints: Endpoints) -> None:
    async def ranges() -> AsyncIterator[Extent]:
        yield Extent(0, 1)

    for said in (None, ranges()):
        async with endpoints.changes(said) as changed:
            assert changed is said
