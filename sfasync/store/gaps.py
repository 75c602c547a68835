"""Numbers of backups that must have been there: what is missing between others was removed, and not by us."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from .names import Numbered


class Gap(NamedTuple):
    """Numbers of a VM that have neither a manifest nor anything in the place of one.

    Attributes:
        vm: The VM's name in keys.
        first, last: The numbers, both included.
    """

    vm: str
    first: int
    last: int


def find_gaps(known: Iterable[Numbered], highest: Mapping[str, int]) -> Iterator[Gap]:
    """What is missing. A number is used once, and who gives up leaves a void, so each number up to the last is known.

    Args:
        known: Places that have a manifest, a void, a session, or an annotation that tells what became of it.
        highest: By VM, the highest number that was ever seen, as far as somebody remembers.
    """
    numbers: defaultdict[str, set[int]] = defaultdict(set)
    for vm, seq in known:
        numbers[vm].add(seq)
    for vm in sorted(numbers.keys() | highest.keys()):
        before = 0
        end = {highest[vm] + 1} if vm in highest else set()
        for seq in sorted(numbers[vm] | end):
            if seq > before + 1:
                yield Gap(vm, before + 1, seq - 1)
            before = max(before, seq)
