"""Numbers that must have been there."""

from __future__ import annotations

import pytest

from sfasync.store.gaps import Gap, find_gaps
from sfasync.store.names import Numbered


@pytest.mark.parametrize(
    ("known", "highest", "gaps"),
    [
        ([], 0, []),
        ([1, 2, 3], 0, []),
        ([1, 2, 3], 3, []),
        ([3, 1, 2], 2, []),
        ([2, 3], 0, [(1, 1)]),
        ([1, 4, 6], 0, [(2, 3), (5, 5)]),
        ([1], 3, [(2, 3)]),
        ([], 2, [(1, 2)]),
        ([1], 2**52, [(2, 2**52)]),
    ],
)
def test_what_is_missing(known: list[int], highest: int, gaps: list[tuple[int, int]]) -> None:
    remembered = {"a": highest} if highest else {}
    assert list(find_gaps([Numbered("a", seq) for seq in known], remembered)) == [Gap("a", *gap) for gap in gaps]


def test_each_vm_has_its_own_numbers() -> None:
    assert list(find_gaps([Numbered("a", 1), Numbered("b", 2)], {"c": 1})) == [Gap("b", 1, 1), Gap("c", 1, 1)]
