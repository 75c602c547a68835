"""A range of a disk, and what is known of it."""

from __future__ import annotations

from typing import NamedTuple


class Extent(NamedTuple):
    """A range of a disk and what its server says of it.

    Attributes:
        offset: First byte.
        length: Bytes, more than 0.
        zero: Reads as zeros; only this lets a read be skipped.
        hole: Not allocated; says nothing about content.
    """

    offset: int
    length: int
    zero: bool = False
    hole: bool = False

    @property
    def end(self) -> int:
        return self.offset + self.length
