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
