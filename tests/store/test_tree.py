"""The content tree, against a slow and obvious version of it."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from sfasync.store.tree import (
    CHUNK_SIZES,
    DISK_CONTEXT,
    FANOUT,
    LEAF,
    LEAF_CONTEXT,
    NODE_CONTEXT,
    ZERO,
    Geometry,
    content_digest,
    disk_digest,
    is_zero,
    join,
    page_digest,
    runs,
    sparse_digest,
)
from sfasync.units import KiB, MiB, TiB

from .support import noise


def slow_leaf(piece: bytes) -> bytes:
    return blake3(piece, derive_key_context=LEAF_CONTEXT).digest() if any(piece) else ZERO


def slow_join(digests: list[bytes]) -> bytes:
    """Left-full: the left child has the largest power of two of leaves that leaves something for the right one."""
    if len(digests) == 1:
        return digests[0]
    left = 1
    while left * 2 < len(digests):
        left *= 2
    children = slow_join(digests[:left]) + slow_join(digests[left:])
    return blake3(children, derive_key_context=NODE_CONTEXT).digest() if any(children) else ZERO


def slow_root(content: bytes) -> bytes:
    leaves = [slow_leaf(content[start : start + LEAF]) for start in range(0, len(content), LEAF)]
    return slow_join(leaves) if leaves else ZERO


_DIGESTS = [ZERO, b"\x01" * 32, b"\x02" * 32, b"\x03" + bytes(31), bytes(31) + b"\x04"]


@given(st.lists(st.sampled_from(_DIGESTS), min_size=1, max_size=70))
def test_joining_level_by_level_gives_the_left_full_tree(digests: list[bytes]) -> None:
    nodes = {index: digest for index, digest in enumerate(digests) if digest != ZERO}
    assert join(nodes, len(digests)) == slow_join(digests) == page_digest(b"".join(digests))


def test_a_page_of_one_child_is_the_node_over_it_and_zeros() -> None:
    for place in range(FANOUT):
        digests = [ZERO] * FANOUT
        digests[place] = _DIGESTS[place % 5] if place % 5 else b"\x05" * 32
        assert page_digest(b"".join(digests)) == slow_join(digests)


@pytest.mark.parametrize("size", [0, 1, LEAF - 1, LEAF, LEAF + 1, MiB, 3 * LEAF + 5, 9 * LEAF + 77])
def test_the_root_does_not_depend_on_the_chunk_size(size: int) -> None:
    content = bytearray(noise(size))
    content[LEAF : 2 * LEAF] = bytes(len(content[LEAF : 2 * LEAF]))
    wanted = slow_root(bytes(content))
    assert content_digest(content) == wanted
    for chunk_size in CHUNK_SIZES:
        starts = range(0, size, chunk_size)
        level = [content_digest(memoryview(content)[start : start + chunk_size]) for start in starts]
        while len(level) > 1:
            level = [page_digest(b"".join(level[n : n + FANOUT])) for n in range(0, len(level), FANOUT)]
        assert (level[0] if level else ZERO) == wanted


def test_pages_are_nodes_of_the_tree() -> None:
    digests = [random.Random(n).randbytes(32) for n in range(300)]
    pages = [page_digest(b"".join(digests[n : n + FANOUT])) for n in range(0, 300, FANOUT)]
    assert page_digest(b"".join(pages)) == slow_join(digests)


@given(
    length=st.sampled_from([1, LEAF - 1, LEAF, LEAF + 1, MiB, 2 * MiB + 77]),
    cuts=st.lists(st.integers(0, 2 * MiB), max_size=12),
    fill=st.sampled_from([b"x", b"\0"]),
)
def test_zeros_between_parts_need_not_be_there(length: int, cuts: list[int], fill: bytes) -> None:
    bounds = sorted({min(cut, length) for cut in cuts})
    content, parts = bytearray(length), []
    for number, (start, end) in enumerate(pairwise(bounds)):
        if number % 3 != 1:  # some parts touch
            content[start:end] = (fill if number % 2 else b"y") * (end - start)
            parts.append((start, memoryview(bytes(content[start:end]))))
    assert sparse_digest(length, parts) == content_digest(content)


def test_zeros_of_any_length_are_zero() -> None:
    for size in (1, LEAF - 1, LEAF, MiB + 1, 4 * MiB):
        assert content_digest(bytes(size)) == ZERO
    assert content_digest(bytes(MiB) + b"\x01") != ZERO


def test_one_digest_may_name_contents_of_two_lengths() -> None:
    """The reason why a blob's length is part of its key."""
    data = noise(LEAF)
    assert content_digest(bytes(LEAF) + data) == content_digest(bytes(2 * LEAF) + data)
    assert content_digest(data + bytes(100)) == content_digest(data + bytes(200))
    assert page_digest(ZERO + b"\x01" * 32) == page_digest(ZERO * 2 + b"\x01" * 32)


def test_the_tree_digest_includes_the_size() -> None:
    root = content_digest(noise(100))
    assert disk_digest(100, root) != disk_digest(101, root)
    wanted = blake3((100).to_bytes(8, "little") + root, derive_key_context=DISK_CONTEXT).digest()
    assert disk_digest(100, root) == wanted


@pytest.mark.parametrize("where", [0, 1, 4095, MiB - 1])
def test_one_bit_is_not_zero(where: int) -> None:
    content = bytearray(MiB)
    assert is_zero(memoryview(content))
    content[where] = 1
    assert not is_zero(memoryview(content))


@given(size=st.integers(0, 2**63 - 1), chunk_size=st.sampled_from(CHUNK_SIZES))
def test_geometry(size: int, chunk_size: int) -> None:
    geometry = Geometry(size, chunk_size)
    depth = geometry.depth
    chunks = -(-size // chunk_size)
    assert geometry.count(0) == chunks
    assert FANOUT**depth >= chunks
    assert depth == 0 or FANOUT ** (depth - 1) < chunks
    assert geometry.count(depth) == min(1, chunks)
    if size:
        assert geometry.length(depth, 0) == size
        last = chunks - 1
        assert geometry.length(0, last) == size - last * chunk_size
        for level in range(1, depth + 1):
            last //= FANOUT
            assert 1 <= geometry.children(level, last) <= FANOUT
            assert last * FANOUT + geometry.children(level, last) == geometry.count(level - 1)


def test_geometry_of_a_large_disk() -> None:
    geometry = Geometry(16 * TiB + 512, MiB)
    assert geometry.depth == 4
    assert [geometry.count(level) for level in range(5)] == [2**24 + 1, 2**17 + 1, 1025, 9, 1]
    assert geometry.length(0, 2**24) == 512
    assert geometry.children(1, 2**17) == 1
    assert Geometry(256 * KiB, 256 * KiB).depth == 0


@given(st.lists(st.booleans(), max_size=50))
def test_runs(zeros: list[bool]) -> None:
    found = list(runs(ZERO if zero else b"\x01" * 32 for zero in zeros))
    assert [zero for zero, count in found for _ in range(count)] == zeros
    assert all(a[0] != b[0] for a, b in pairwise(found))
