"""Page trees: built in any order, read back, taken over from a parent; in constant memory."""

from __future__ import annotations

import random
import time
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.errors import ObjectMissingError, StateError
from sfasync.store.pages import MAX_OPEN, PageBuilder, TreeReader
from sfasync.store.tree import FANOUT, ZERO, Geometry, page_digest
from sfasync.units import KiB, MiB, TiB

CHUNK = 256 * KiB


class Pages:
    """Pages by digest and length, as a repository keeps them."""

    def __init__(self) -> None:
        self.stored: dict[tuple[bytes, int], bytes] = {}
        self.loads = 0

    def store(self, page: bytes, digest: bytes) -> None:
        assert page_digest(page) == digest != ZERO
        assert any(page)
        self.stored[digest, len(page)] = page

    def load(self, digest: bytes, length: int) -> bytes:
        self.loads += 1
        try:
            return self.stored[digest, length]
        except KeyError:
            raise ObjectMissingError("page") from None

    def builder(self, geometry: Geometry) -> PageBuilder:
        return PageBuilder(geometry, self.store)

    def reader(self, geometry: Geometry, root: bytes) -> TreeReader:
        return TreeReader(geometry, root, self.load)


def digests(count: int, seed: int, zeros: float = 0.3) -> list[bytes]:
    rng = random.Random(seed)
    return [ZERO if rng.random() < zeros else rng.randbytes(32) for _ in range(count)]


def build(pages: Pages, geometry: Geometry, chunks: list[bytes]) -> bytes:
    builder = pages.builder(geometry)
    for index, digest in enumerate(chunks):
        builder.put(index, digest)
    return builder.root()


SIZES = st.sampled_from([1, 2, 127, 128, 129, 255, 256, 257, 128 * 128 - 1, 128 * 128, 128 * 128 + 1])


@given(count=st.one_of(SIZES, st.integers(1, 600)), seed=st.integers(0, 10**6))
def test_any_order_gives_the_root_of_the_content_tree(count: int, seed: int) -> None:
    chunks = digests(count, seed)
    pages = Pages()
    geometry = Geometry(count * CHUNK - 7, CHUNK)
    builder = pages.builder(geometry)
    order = list(range(count))
    random.Random(seed).shuffle(order)
    for index in order:
        builder.put(index, chunks[index])
    root = builder.root()
    assert root == page_digest(b"".join(chunks))
    reader = pages.reader(geometry, root)
    for index in random.Random(seed).sample(range(count), min(count, 40)):
        assert reader.digest(0, index) == chunks[index]


@given(count=st.integers(1, 600), seed=st.integers(0, 10**6), data=st.data())
def test_runs_say_what_the_chunks_are(count: int, seed: int, data: st.DataObject) -> None:
    chunks = digests(count, seed, zeros=data.draw(st.sampled_from([0.0, 0.1, 0.9, 1.0])))
    pages = Pages()
    geometry = Geometry(count * CHUNK, CHUNK)
    reader = pages.reader(geometry, build(pages, geometry, chunks))
    first = data.draw(st.integers(0, count))
    end = data.draw(st.integers(first, count))
    found = [zero for zero, length in reader.runs(first, end) for _ in range(length)]
    assert found == [digest == ZERO for digest in chunks[first:end]]


@given(count=st.integers(1, 600), seed=st.integers(0, 10**6), data=st.data())
def test_ranges_of_zeros_and_kept_chunks_equal_single_ones(count: int, seed: int, data: st.DataObject) -> None:
    """Cut the disk anywhere; put each part one by one or at once, zero or keep it, in any order."""
    pages = Pages()
    parent_count = data.draw(st.sampled_from([count, max(1, count - 1), max(1, count // 2), count + 1, count * 2]))
    parent_chunks = digests(parent_count, seed + 1)
    parent_geometry = Geometry(parent_count * CHUNK, CHUNK)
    parent = pages.reader(parent_geometry, build(pages, parent_geometry, parent_chunks))
    cuts = sorted({0, count, *data.draw(st.lists(st.integers(0, count), max_size=6))})
    parts = list(pairwise(cuts))
    random.Random(seed).shuffle(parts)
    wanted = digests(count, seed)
    builder = pages.builder(Geometry(count * CHUNK, CHUNK))
    for first, end in parts:
        how = data.draw(st.sampled_from(["put", "zero", "keep", "sparse"]))
        if how == "keep" and end <= parent_count:
            builder.put_kept(first, end - first, parent)
            wanted[first:end] = parent_chunks[first:end]
        elif how == "zero":
            builder.put_zeros(first, end - first)
            wanted[first:end] = [ZERO] * (end - first)
        elif how == "sparse":
            some = [(index, wanted[index]) for index in range(first, end) if wanted[index] != ZERO]
            builder.put_sparse(first, end - first, some)
        else:
            for index in range(first, end):
                builder.put(index, wanted[index])
    root = builder.root()
    assert root == page_digest(b"".join(wanted))
    reader = pages.reader(Geometry(count * CHUNK, CHUNK), root)
    assert reader.digests(0, 0, count) == b"".join(wanted)


@pytest.mark.parametrize("first", [0, 1, 127, 128, 300, 128 * 128 - 1])
@pytest.mark.parametrize("end", [128 * 128 + 1, 3 * 128 * 128 - 5, 3 * 128 * 128 + 300])
def test_scattered_chunks_between_zeros_at_every_height(first: int, end: int) -> None:
    count = 3 * 128 * 128 + 300
    wanted = [ZERO] * count
    for index in random.Random(first + end).sample(range(count), 40):
        wanted[index] = index.to_bytes(32, "big")
    pages, geometry = Pages(), Geometry(count * CHUNK - 5, CHUNK)
    builder = pages.builder(geometry)
    for start, stop in ((end, count), (first, end), (0, first)):
        builder.put_sparse(start, stop - start, [(n, wanted[n]) for n in range(start, stop) if wanted[n] != ZERO])
    single = Pages()
    assert builder.root() == build(single, geometry, wanted)
    assert pages.stored == single.stored


def test_a_range_that_was_set_before_is_not_set_again() -> None:
    builder = Pages().builder(Geometry(300 * CHUNK, CHUNK))
    builder.put_sparse(5, 250, [(7, b"\x01" * 32)])
    with pytest.raises(StateError, match="twice"):
        builder.put_sparse(254, 46, [])


def test_kept_pages_are_not_read() -> None:
    count = 128 * 128
    pages = Pages()
    geometry = Geometry(count * CHUNK, CHUNK)
    root = build(pages, geometry, digests(count, 1, zeros=0.0))
    pages.loads = 0
    builder = pages.builder(geometry)
    builder.put_kept(0, count, pages.reader(geometry, root))
    assert builder.root() == root
    assert pages.loads == 0
    builder = pages.builder(geometry)
    builder.put_kept(0, 5000, pages.reader(geometry, root))
    builder.put(5000, b"\x01" * 32)
    builder.put_kept(5001, count - 5001, pages.reader(geometry, root))
    assert builder.root() != root
    assert pages.loads <= 4


def test_a_chunk_of_another_length_cannot_be_kept() -> None:
    pages = Pages()
    old = Geometry(3 * CHUNK - 100, CHUNK)
    parent = pages.reader(old, build(pages, old, digests(3, 1)))
    builder = pages.builder(Geometry(4 * CHUNK, CHUNK))
    builder.put_kept(0, 2, parent)
    for index in (2, 3):
        with pytest.raises(StateError, match="another length"):
            builder.put_kept(index, 1, parent)


def test_an_incomplete_disk_has_no_root() -> None:
    pages = Pages()
    builder = pages.builder(Geometry(300 * CHUNK, CHUNK))
    for index in range(299):
        builder.put(index, ZERO)
    with pytest.raises(StateError, match="not written completely"):
        builder.root()
    builder.put(299, ZERO)
    assert builder.root() == ZERO
    assert pages.stored == {}


@pytest.mark.parametrize("count", [1, 5, 200])
def test_a_chunk_has_one_digest(count: int) -> None:
    builder = Pages().builder(Geometry(count * CHUNK, CHUNK))
    builder.put(0, ZERO)
    with pytest.raises(StateError, match="twice"):
        builder.put(0, ZERO)


def test_a_disk_without_bytes_is_zero() -> None:
    pages = Pages()
    geometry = Geometry(0, CHUNK)
    assert pages.builder(geometry).root() == ZERO
    assert list(pages.reader(geometry, ZERO).runs(0, 0)) == []


def test_chunks_too_far_apart_are_refused() -> None:
    builder = Pages().builder(Geometry(16 * TiB, MiB))
    with pytest.raises(StateError, match="too many places"):
        for number in range(MAX_OPEN + 1):
            builder.put(number * FANOUT, ZERO)


def test_a_large_sparse_disk_takes_no_time_and_no_memory() -> None:
    pages = Pages()
    geometry = Geometry(16 * TiB, MiB)
    last = geometry.count(0) - 1
    tracemalloc.start()
    began = time.perf_counter()
    builder = pages.builder(geometry)
    builder.put(0, b"\x01" * 32)
    builder.put_zeros(1, last // 2)
    builder.put_zeros(1 + last // 2, last - last // 2 - 1)
    builder.put(last, b"\x02" * 32)
    root = builder.root()
    found = list(pages.reader(geometry, root).runs(0, last + 1))
    seconds = time.perf_counter() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(count for _, count in found) == last + 1
    assert [count for zero, count in found if not zero] == [1, 1]
    assert len(pages.stored) == 7
    assert seconds < 1
    assert peak < 2 * MiB


def test_a_lost_page_is_missed() -> None:
    pages = Pages()
    geometry = Geometry(300 * CHUNK, CHUNK)
    root = build(pages, geometry, digests(300, 1))
    pages.stored.clear()
    reader = pages.reader(geometry, root)
    with pytest.raises(ObjectMissingError):
        reader.digest(0, 0)
    with pytest.raises(ObjectMissingError):
        list(reader.runs(0, 300))
    builder = pages.builder(geometry)
    with pytest.raises(ObjectMissingError):
        builder.put_kept(0, 5, reader)
