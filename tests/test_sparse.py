"""Zeros in data, and targets that take them for what they are. Pictures: letters for data, ``0`` for zeros."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from sfasync.sparse import LARGEST_BLOCK, SparseSink, ZeroedSink, zero_runs

from .support.memory import MemoryDisk


def picture(text: str) -> memoryview:
    return memoryview(text.replace("0", "\0").encode())


def runs(text: str, offset: int = 0, block: int = 4) -> list[str]:
    return [
        "0" * (end - start) if zero else text[start:end] for start, end, zero in zero_runs(picture(text), offset, block)
    ]


@pytest.mark.parametrize(
    ("text", "offset", "expected"),
    [
        ("", 0, []),
        ("aaaa", 0, ["aaaa"]),
        ("0000", 0, ["0000"]),
        ("aaaa0000bbbb", 0, ["aaaa", "0000", "bbbb"]),
        ("aaaa00000000bb", 0, ["aaaa", "00000000", "bb"]),
        ("aa0000bb", 0, ["aa0000bb"]),  # no whole block of the disk
        ("aa0000bb", 2, ["aa", "0000", "bb"]),
        ("00aaaa00", 2, ["00", "aaaa", "00"]),  # what is left of a block counts as one
        ("000a0000", 0, ["000a", "0000"]),
    ],
)
def test_runs(text: str, offset: int, expected: list[str]) -> None:
    assert runs(text, offset) == expected


def test_runs_cover_any_buffer() -> None:
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choice("0a") * rng.randrange(1, 9) for _ in range(rng.randrange(20)))
        found = runs(text, offset=rng.randrange(16), block=2 ** rng.randrange(5))
        assert "".join(found) == text
        assert all(left.strip("0") == "" or right.strip("0") == "" for left, right in itertools.pairwise(found))


class RecordingDisk(MemoryDisk):
    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.calls: list[tuple[str, int, int]] = []

    async def write(self, offset: int, data: Any) -> None:
        self.calls.append(("write", offset, len(data)))
        await super().write(offset, data)

    async def zero(self, offset: int, length: int) -> None:
        self.calls.append(("zero", offset, length))
        await super().zero(offset, length)


async def test_zeros_in_data_are_not_written() -> None:
    disk = RecordingDisk(b"\xff" * 8192)
    data = b"a" * 1024 + bytes(2048) + b"b" * 1024
    await SparseSink(disk, 1024).write(4096, data)
    assert disk.calls == [("write", 4096, 1024), ("zero", 5120, 2048), ("write", 7168, 1024)]
    assert disk.content == b"\xff" * 4096 + data


async def test_a_large_block_of_zeros() -> None:
    disk = RecordingDisk(b"\xff" * (2 * LARGEST_BLOCK))
    await SparseSink(disk, LARGEST_BLOCK).write(0, bytes(2 * LARGEST_BLOCK))
    assert disk.calls == [("zero", 0, 2 * LARGEST_BLOCK)]


async def test_zeros_that_are_there_already() -> None:
    disk = RecordingDisk(bytes(4096))
    sink = SparseSink(ZeroedSink(disk), 1024)
    await sink.write(0, b"a" * 1024 + bytes(3072))
    await sink.zero(1024, 1024)
    assert disk.calls == [("write", 0, 1024)]
    assert await sink.flush() is True
