"""Audits: some of the chunks that are called unchanged are read again, to see whether they are.

Which ones says a walk that comes to every chunk of the disk once before it comes to any again. Each backup looks at the
next stretch of it, so what one audit leaves out a later one sees. Neighbours on the walk lie far apart (a step is the
golden section of the disk), so a stretch of any length is spread evenly: a region that is wrong is met by the first
stretch with a few more steps than the disk has regions of that size.

::

    disk of 10 chunks   0123456789
    first 3 steps       x.....x.x.       then   .xx.x.....   and so on

Nothing here grows with the disk.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from .errors import UsageError, printable
from .models import AuditRecord, DiskRecord

_GOLDEN = 0x9E3779B97F4A7C15  # of 2^64
_SHARE = re.compile(r"([0-9]{1,3})(?:\.([0-9]{1,6}))?%")
_ALL = 10**8  # shares are whole numbers of millionths of a percent: fractions take longer to import than to use
_COUNT = re.compile(r"[0-9]{1,15}")

SEEDS = 1 << 32
"""How many different walks there are on a large disk."""


class Sample(NamedTuple):
    """How much to audit: about so many chunks, or a share of all, in millionths of a percent; neither for none."""

    chunks: int = 0
    share: int = 0

    def __bool__(self) -> bool:
        return bool(self.chunks or self.share)

    def steps(self, count: int, held: float) -> int:
        """How far to walk on a disk, to come to so much that is worth reading.

        Args:
            count: Chunks of the disk.
            held: Which part of them is not known to be zero, about: 0 to 1.
        """
        if self.share:
            return -(-count * self.share // _ALL)
        return count if held <= 0 else min(count, math.ceil(self.chunks / held))


NONE = Sample()


def parse_sample(text: int | str) -> Sample:
    """``16``, ``5%`` or ``off``.

    Raises:
        UsageError: It is none of these.
    """
    if text == "off":
        return NONE
    if _COUNT.fullmatch(str(text)):
        return Sample(chunks=int(text))
    found = _SHARE.fullmatch(str(text))
    share = int(found[1] + (found[2] or "").ljust(6, "0")) if found else _ALL + 1
    if share > _ALL:
        raise UsageError(f"audit {printable(str(text))!r} is none of: a number of chunks, a percentage such as 5%, off")
    return Sample(share=share)


class Stretch:
    """Adjacent steps of a walk, asked for in order of the disk.

    Args:
        count: Chunks of the disk, at least one.
        seed: Which walk, 0 to `SEEDS` - 1.
        position: The first step, 0 to `count` - 1.
        steps: How many, 0 to `count`.
    """

    def __init__(self, count: int, seed: int, position: int, steps: int) -> None:
        stride = max(1, count * _GOLDEN >> 64)
        while math.gcd(stride, count) != 1:
            stride += 1
        self._count = count
        self._start = seed + position * stride  # the chunk of the first step
        self._inverse = pow(stride, -1, count)
        self._steps = steps
        self._asked, self._found = 0, -1  # for chunks from the one to the other, the other is the answer

    def at_or_after(self, chunk: int) -> int | None:
        """The first chunk from `chunk` on that one of the steps comes to, or None.

        Called with growing numbers it costs nothing until the chunk that it found last is passed.
        """
        if not self._asked <= chunk <= self._found:
            self._asked, self._found = chunk, self._search(chunk)
        return self._found if self._found < self._count else None

    def _search(self, chunk: int) -> int:
        if self._steps < 1 or chunk >= self._count:
            return max(chunk, self._count)
        step = (chunk - self._start) * self._inverse % self._count  # at which the walk comes to it
        found = chunk
        if step >= self._steps:
            found += first_within(self._inverse, self._count, self._count - step, self._count - step + self._steps - 1)
        return found


def stretch_of(
    record: DiskRecord, size: int, chunk: int, sample: Sample
) -> tuple[Callable[[int], int | None] | None, AuditRecord | None]:
    """What the next backup of a disk audits, and how far that comes.

    Args:
        record: The disk in the backup that it builds on.
        size: Bytes of the disk now.
        chunk: Bytes of a chunk.
        sample: How much to audit.

    Returns:
        `Stretch.at_or_after`, or None for no audit; and the record of it, without the chunks that will be counted.
    """
    count = -(-size // chunk)
    if not sample or not count:
        return None, record.audit
    # Who comes again, because this backup fails, looks at the same places.
    before = record.audit or AuditRecord(seed=int(record.tree, 16) % SEEDS, position=0, chunks=0)
    told = record.statistics
    read = told.bytes_read + told.bytes_skipped, record.size - told.bytes_zero
    steps = sample.steps(count, max(read) / record.size if record.size else 0.0)
    stretch = Stretch(count, before.seed, before.position % count, steps)
    return stretch.at_or_after, replace(before, position=(before.position + steps) % count)


def first_within(factor: int, modulus: int, low: int, high: int) -> int:
    """The smallest number, 0 or more, of which `factor` times it modulo `modulus` lies within `low` and `high`.

    There is one: `factor` and `modulus` have no common divisor, and 0 < low <= high < modulus. As Euclid's algorithm,
    it takes as many steps as the modulus has digits.
    """
    factor %= modulus
    found = -(-low // factor)
    if found * factor <= high:
        return found
    # low <= factor * x - modulus * y <= high: find the smallest y first, modulo the factor, then its x.
    turns = first_within(modulus, factor, -high % factor, -low % factor)
    return -(-(low + modulus * turns) // factor)
