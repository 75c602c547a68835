"""Pipes as one end of a copy."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfasync.errors import NoSpaceError, SourceError, TargetError
from sfasync.transport.pipe import PipeSink, PipeSource
from sfasync.workers import Workers

MiB = 1 << 20


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:  # by the test itself
            continue


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers(2)
    yield workers
    workers.close()


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def write_and_close(fd: int, data: bytes) -> threading.Thread:
    def work() -> None:
        with open(fd, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def collect(fd: int) -> tuple[threading.Thread, list[bytes]]:
    found: list[bytes] = []

    def work() -> None:
        with open(fd, "rb") as file:
            found.append(file.read())

    thread = threading.Thread(target=work)
    thread.start()
    return thread, found


async def joined(thread: threading.Thread) -> None:
    await asyncio.to_thread(thread.join)


async def read_all(source: PipeSource, piece: int) -> list[bytes]:
    found = []
    while True:
        buffer = bytearray(piece)
        count = await source.read_into(memoryview(buffer))
        found.append(bytes(buffer[:count]))
        if count < piece:
            return found


async def test_whole_pieces_until_the_end(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    data = noise(3 * MiB + 17)
    thread = write_and_close(writer, data)
    with PipeSource(reader, "standard input") as source:
        pieces = await read_all(source, MiB)
    await joined(thread)
    assert b"".join(pieces) == data
    assert [len(piece) for piece in pieces] == [MiB, MiB, MiB, 17]


async def test_a_socket_is_as_good(workers: Workers) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = write_and_close(os.dup(theirs.fileno()), b"abc")
        with PipeSource(ours.fileno(), "standard input") as source:
            buffer = bytearray(3)
            assert await source.read_into(memoryview(buffer)) == 3
            assert not os.get_blocking(ours.fileno())
        assert os.get_blocking(ours.fileno()), "as it was found"
        await joined(thread)
        with PipeSink(ours.fileno(), "standard output", size=3, workers=workers) as sink:
            await sink.write(0, b"xyz")
        assert theirs.recv(16) == b"xyz"


async def test_what_others_see_of_a_pipe_stays(pipe: tuple[int, int]) -> None:
    with PipeSource(pipe[0], "standard input"):
        assert os.get_blocking(pipe[0])


async def test_a_source_that_cannot_be_read(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with PipeSource(directory, "standard input") as source, pytest.raises(SourceError, match="standard input"):
            await source.read_into(memoryview(bytearray(1)))
    finally:
        os.close(directory)


async def test_calls_in_any_turn_come_out_in_order(pipe: tuple[int, int], workers: Workers) -> None:
    reader, writer = pipe
    data = noise(2 * MiB) + bytes(3 * MiB) + b"end"
    thread, found = collect(reader)
    with PipeSink(writer, "standard output", size=len(data), workers=workers) as sink:
        os.close(writer)
        async with asyncio.TaskGroup() as group:
            group.create_task(sink.write(5 * MiB, b"end"))
            group.create_task(sink.zero(2 * MiB, 3 * MiB))
            group.create_task(sink.write(MiB, data[MiB : 2 * MiB]))
            group.create_task(sink.write(0, bytearray(data[:MiB])))
        assert await sink.flush() is False, "nobody but the reader knows"
    await joined(thread)
    assert found == [data]


async def test_a_reader_that_stops_does_not_hold_up_a_cancellation(pipe: tuple[int, int], workers: Workers) -> None:
    with PipeSink(pipe[1], "standard output", size=8 * MiB, workers=workers) as sink:
        task = asyncio.create_task(sink.write(0, bytes(8 * MiB)))
        done, _ = await asyncio.wait({task}, timeout=0.1)
        assert not done
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_writer_that_stops_does_not_hold_up_a_cancellation(pipe: tuple[int, int]) -> None:
    with PipeSource(pipe[0], "standard input") as source:
        task = asyncio.create_task(source.read_into(memoryview(bytearray(8))))
        done, _ = await asyncio.wait({task}, timeout=0.05)
        assert not done
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_reader_that_has_gone(pipe: tuple[int, int], workers: Workers) -> None:
    os.close(pipe[0])
    gone = pytest.raises(TargetError, match="cannot write to standard output: Broken pipe")
    with PipeSink(pipe[1], "standard output", size=8, workers=workers) as sink, gone:
        await sink.write(0, bytes(8))


async def test_a_full_device(workers: Workers) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with PipeSink(full, "standard output", size=8, workers=workers) as sink, pytest.raises(NoSpaceError):
            await sink.write(0, bytes(8))
    finally:
        os.close(full)


async def test_the_end_of_a_file(tmp_path: Path, workers: Workers) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        with PipeSink(file, "standard output", size=5, workers=workers) as sink:
            await sink.write(0, b"after")
            assert await sink.flush() is True
    finally:
        os.close(file)
    assert path.read_bytes() == b"beforeafter"
