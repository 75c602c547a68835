"""Frames put together by hand are what any zstd opens."""

from __future__ import annotations

import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sfasync.store.frames import between_zeros
from sfasync.store.seal import seal, unseal
from sfasync.units import KiB, MiB

from .support import noise, text

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LENGTHS = [1, 2, 255, 256, 257, 64 * KiB, 128 * KiB, 128 * KiB + 1, 300_000]
ZEROS = [0, 1, 100, 128 * KiB - 1, 128 * KiB, 128 * KiB + 1, MiB]


def content(kind: str, length: int) -> bytes:
    """Bytes for each kind of block that a compressor writes."""
    return {"noise": noise(length), "text": text(length), "zeros": bytes(length), "one byte": b"x" * length}[kind]


@given(
    st.sampled_from(["noise", "text", "zeros", "one byte"]),
    st.sampled_from(LENGTHS) | st.integers(1, 20_000),
    st.sampled_from(ZEROS),
    st.sampled_from(ZEROS),
)
@example("text", 300_000, MiB, MiB)
def test_data_between_zeros(kind: str, length: int, before: int, after: int) -> None:
    data = content(kind, length)
    for window in (10, 20):
        options: dict[int, int] = {zstd.CompressionParameter.window_log: window}
        frame = between_zeros(zstd.compress(data, options=options), length, before, after)
        assert zstd.get_frame_info(frame).decompressed_size == before + length + after
        assert zstd.decompress(frame) == bytes(before) + data + bytes(after)


@pytest.mark.parametrize("kind", ["noise", "text"])
@pytest.mark.parametrize("before, after", [(0, 0), (0, 1), (MiB, 0), (256 * KiB, 512 * KiB), (100, 100)])
def test_a_blob_is_sealed_without_its_outer_zeros(kind: str, before: int, after: int) -> None:
    data = content(kind, 256 * KiB)
    sealed = seal(data, before=before, after=after)
    whole = bytes(before) + data + bytes(after)
    assert len(sealed) <= len(whole)
    assert len(sealed) <= len(seal(data)) + 100 + len(whole) // 32
    buffer = bytearray(len(whole))
    unseal(sealed, memoryview(buffer))
    assert buffer == whole
