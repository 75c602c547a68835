import itertools

from hypothesis import given
from hypothesis import strategies as st

from sfasync.nbd.coverage import Coverage

RANGES = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)).map(lambda r: (r[0], r[0] + r[1])), max_size=20)


@given(RANGES, st.integers(0, 30), st.integers(1, 8))
def test_coverage_is_a_set_of_bytes(ranges: list[tuple[int, int]], start: int, length: int) -> None:
    coverage, seen = Coverage(), set[int]()
    for first, last in ranges:
        new = seen.isdisjoint(range(first, last))
        assert coverage.add(first, last) == new
        if new:
            seen.update(range(first, last))
    assert coverage.covers(start, start + length) == seen.issuperset(range(start, start + length))


def test_ranges_that_touch_become_one() -> None:
    coverage = Coverage()
    for start in (0, 8, 4, 16, 12):
        assert coverage.add(start, start + 4)
    assert coverage.covers(0, 20)
    assert not coverage.covers(0, 21)
    assert not coverage.add(19, 30)


@given(RANGES, RANGES, st.integers(0, 30), st.integers(1, 8))
def test_merging_removing_and_what_is_missing(
    merged: list[tuple[int, int]], removed: list[tuple[int, int]], start: int, length: int
) -> None:
    coverage, seen = Coverage(), set[int]()
    for first, last in merged:
        coverage.merge(first, last)
        seen.update(range(first, last))
    for first, last in removed:
        coverage.remove(first, last)
        seen.difference_update(range(first, last))
    assert {byte for first, last in coverage for byte in range(first, last)} == seen
    assert len(coverage) == len(list(coverage))
    assert all(a[1] < b[0] for a, b in itertools.pairwise(coverage))
    gaps = coverage.gaps(start, start + length)
    assert {byte for first, last in gaps for byte in range(first, last)} == set(range(start, start + length)) - seen
    assert gaps == sorted(gaps)


@given(RANGES, st.integers(1, 5))
def test_coarsening_loses_nothing(ranges: list[tuple[int, int]], most: int) -> None:
    coverage, seen = Coverage(), set[int]()
    for first, last in ranges:
        coverage.merge(first, last)
        seen.update(range(first, last))
    count = len(coverage)
    coverage.coarsen(most)
    assert len(coverage) == (count if count <= most else -(-count // 2))
    assert {byte for first, last in coverage for byte in range(first, last)} >= seen
    assert all(a[1] < b[0] for a, b in itertools.pairwise(coverage))
