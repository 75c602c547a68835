"""The walk of audits: every chunk once, evenly spread, found in order of the disk without looking at each."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.audit import SEEDS, Sample, Stretch, parse_sample
from sfasync.errors import UsageError
from sfasync.units import KiB, TiB


def found(count: int, seed: int, position: int, steps: int) -> list[int]:
    stretch = Stretch(count, seed, position, steps)
    chunks: list[int] = []
    while (chunk := stretch.at_or_after(chunks[-1] + 1 if chunks else 0)) is not None:
        chunks.append(chunk)
    return chunks


@given(st.integers(1, 300), st.integers(0, SEEDS - 1), st.data())
def test_stretches_that_follow_each_other_come_to_each_chunk_once(count: int, seed: int, data: st.DataObject) -> None:
    chunks: list[int] = []
    position = 0
    while position < count:
        steps = data.draw(st.integers(1, count - position))
        some = found(count, seed, position, steps)
        assert (len(some), sorted(some)) == (steps, some)
        chunks += some
        position += steps
    assert sorted(chunks) == list(range(count))


@given(st.integers(1, 300), st.integers(0, SEEDS - 1), st.data())
def test_it_may_be_asked_from_anywhere(count: int, seed: int, data: st.DataObject) -> None:
    position, steps = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, count))
    chunks = found(count, seed, position, steps)
    stretch = Stretch(count, seed, position, steps)
    for start in data.draw(st.lists(st.integers(0, count + 3), max_size=10)):
        assert stretch.at_or_after(start) == next((chunk for chunk in chunks if chunk >= start), None)


@pytest.mark.parametrize("count", [100, 1021, 4096, 16 * TiB // (256 * KiB)])
@pytest.mark.parametrize("steps", [16, 50])
def test_no_gap_is_much_longer_than_the_others(count: int, steps: int) -> None:
    """A region that is wrong is met as soon as a gap between steps is shorter than it."""
    chunks = found(count, 12345, count // 3, steps)
    gaps = [after - before for before, after in zip(chunks, [*chunks[1:], chunks[0] + count], strict=True)]
    assert max(gaps) <= 3 * count / steps


def test_a_huge_disk_takes_no_time_and_no_memory() -> None:
    count = 1 << 45
    assert len(found(count, 7, count - 5, 1000)) == 1000


@pytest.mark.parametrize(
    ("text", "sample"),
    [
        (16, Sample(chunks=16)),
        ("16", Sample(chunks=16)),
        (0, Sample()),
        ("off", Sample()),
        ("5%", Sample(share=5_000_000)),
        ("0.1%", Sample(share=100_000)),
        ("0.000001%", Sample(share=1)),
        ("0%", Sample()),
        ("100%", Sample(share=100_000_000)),
    ],
)
def test_how_much_is_told_as_a_number_or_a_share(text: int | str, sample: Sample) -> None:
    assert parse_sample(text) == sample
    assert bool(sample) == (text not in (0, "off", "0%"))


@pytest.mark.parametrize("text", [-1, "", "on", "%", "101%", "-5%", "1e3", "5 %", "١٦", "9" * 16, True, 1.5])
def test_what_is_neither_is_refused(text: int | str) -> None:
    with pytest.raises(UsageError, match="is none of: a number of chunks"):
        parse_sample(text)


def test_the_walk_is_longer_where_much_is_zero() -> None:
    assert Sample(chunks=16).steps(10_000, 1.0) == 16
    assert Sample(chunks=16).steps(10_000, 0.01) == 1600
    assert Sample(chunks=16).steps(10_000, 0.0) == 10_000
    assert Sample(share=5_000_000).steps(10_001, 0.01) == math.ceil(10_001 / 20)
