"""Sealing gives back what it was given; unsealing believes nothing."""

from __future__ import annotations

import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.errors import IntegrityError
from sfasync.interfaces import Buffer
from sfasync.store import seal as module
from sfasync.store.compression import Portable
from sfasync.store.seal import seal
from sfasync.units import KiB, MiB

from .support import noise, text

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def unseal(sealed: Buffer, length: int) -> bytes:
    buffer = bytearray(length)
    module.unseal(sealed, memoryview(buffer))
    return bytes(buffer)


@given(st.binary(min_size=1, max_size=5000))
def test_what_is_sealed_is_unsealed(data: bytes) -> None:
    sealed = seal(data)
    assert len(sealed) <= len(data)
    assert unseal(sealed, len(data)) == data


@pytest.mark.parametrize("size", [1, 4096, 256 * KiB, MiB, 4 * MiB, 16 * MiB])
def test_sizes_that_occur(size: int) -> None:
    for data in (text(size), noise(size), b"\x01" * size):
        sealed = seal(memoryview(bytearray(data)))
        assert unseal(sealed, size) == data


def test_what_does_not_shrink_is_kept_as_it_is() -> None:
    data = noise(MiB)
    view = memoryview(data)
    assert seal(view) is view
    almost = noise(MiB * 63 // 64) + bytes(MiB // 64)
    assert seal(almost) is almost
    worth = noise(MiB * 15 // 16) + bytes(MiB // 16)
    assert len(seal(worth)) < len(worth)


def test_threads_do_not_share_a_compressor() -> None:
    pieces = [text(200 * KiB, seed) for seed in range(16)]
    with ThreadPoolExecutor(8) as threads:
        for data, sealed in zip(pieces, threads.map(lambda piece: bytes(seal(piece)), pieces), strict=True):
            assert unseal(sealed, len(data)) == data


def test_a_broken_compressor_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Portable):
        def compress(self, data: Buffer) -> Buffer:
            damaged = bytearray(data)
            damaged[1000] ^= 1
            return super().compress(damaged)

    monkeypatch.setattr(module, "_codec", lambda: Broken({}))
    with pytest.raises(IntegrityError, match="zstd gave back other bytes"):
        seal(text(MiB))


@pytest.mark.parametrize("claimed", [64 * KiB, 64 * MiB])
def test_a_frame_of_another_size_is_refused_before_it_is_unpacked(claimed: int) -> None:
    bomb = zstd.compress(bytes(claimed), 1)
    with pytest.raises(IntegrityError, match=f"says that it has {claimed}"):
        unseal(bomb, MiB)


def test_a_frame_that_lies_about_its_size_is_bounded() -> None:
    """A header that claims the expected size before blocks that hold much more."""
    bomb = bytearray(zstd.compress(bytes(256 * MiB), 1))
    honest = zstd.compress(noise(MiB), 1)
    # frame header of the honest one (magic, descriptor, 4-byte size: RFC 8878, 3.1.1.1), blocks of the bomb
    assert zstd.get_frame_info(honest).decompressed_size == MiB
    start = 4 + 1 + 1 + 4
    lying = honest[: 4 + 1 + 4] + bytes(bomb[start:])
    tracemalloc.start()
    with pytest.raises(IntegrityError):
        unseal(lying, MiB)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * MiB


def test_a_frame_that_does_not_tell_its_size_is_refused() -> None:
    options: dict[int, int] = {zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)
    frame = compressor.compress(text(MiB)) + compressor.flush()
    with pytest.raises(IntegrityError):
        unseal(frame, MiB)


@given(st.binary(max_size=300), st.integers(1, 5000))
def test_garbage_gives_only_the_typed_error(garbage: bytes, length: int) -> None:
    magic = bytes.fromhex("28b52ffd")
    for data in (garbage, magic + garbage):
        if len(data) != length:
            with pytest.raises(IntegrityError):
                unseal(data, length)


def test_every_truncation_is_refused() -> None:
    data = text(3000)
    sealed = bytes(seal(data))
    for end in range(len(sealed)):
        with pytest.raises(IntegrityError):
            unseal(sealed[:end], len(data))
    with pytest.raises(IntegrityError):
        unseal(sealed + b"x", len(data))
    with pytest.raises(IntegrityError):
        unseal(sealed + sealed, len(data))
