"""What a caller may name as an end of a copy."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sfasync.endpoints import Pipe, parse_endpoint
from sfasync.errors import UriError, UsageError
from sfasync.models import ExportAddress

from .support.memory import MemoryDisk


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
