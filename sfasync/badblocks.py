"""Blocks that could not be read: backed up as zeros, where the caller allows it, and kept account of.

The list stands beside the disks in the backup, as the file `bad-blocks.json` (docs/format.md): whoever reads the backup
can know what is missing, and the next backup reads these places again, whatever the platform says of changes.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Final

from .errors import BadBlockError, IntegrityError
from .interfaces import BackupStore, SurveyedSource
from .models import Extent, Manifest
from .units import MiB

FILE: Final = "bad-blocks.json"

MOST: Final = MiB
"""Bytes of one disk that may be lost: 2048 sectors, each of which a disk may think about for seconds."""

BadBlocks = Mapping[str, tuple[Extent, ...]]
"""By disk: what could not be read, in order."""


class SalvagedSource:
    """A source whose bad blocks read as zeros.

    Attributes:
        bad: Bytes lost so far, by offset: where a range of bad blocks begins, and its length.
    """

    def __init__(self, source: SurveyedSource) -> None:
        self.size = source.size
        self.block_size = source.block_size
        self.bad: dict[int, int] = {}
        self._source = source

    def extents(self, offset: int = 0, length: int | None = None) -> AsyncIterator[Extent]:
        return self._source.extents(offset, length)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """As of `Source`.

        Raises:
            BadBlockError: More is bad than may be lost.
        """
        for extent in await self._source.read_around(offset, buffer, most=MOST - self.lost):
            self.bad[extent.offset] = extent.length
        if self.lost > MOST:  # several reads found some at the same time
            raise BadBlockError(f"more than {MOST} bytes cannot be read", offset=offset, length=len(buffer))

    def restart(self) -> None:
        """All is read once more: what is bad will be found again."""
        self.bad.clear()

    def touches(self, offset: int, length: int) -> bool:
        """Whether part of a range read as zeros because it could not be read."""
        return any(bad < offset + length and offset < bad + lost for bad, lost in self.bad.items())

    @property
    def lost(self) -> int:
        """Bytes that read as zeros because they could not be read."""
        return sum(self.bad.values())

    @property
    def blocks(self) -> tuple[Extent, ...]:
        """What could not be read, in order; neighbours are one."""
        joined: list[Extent] = []
        for offset, length in sorted(self.bad.items()):
            if joined and joined[-1].end == offset:
                offset, length = joined[-1].offset, joined.pop().length + length
            joined.append(Extent(offset, length))
        return tuple(joined)


def encode(blocks: BadBlocks) -> bytes:
    """The file for these lists; disks without bad blocks are left out."""
    disks = as_lists({disk: bad for disk, bad in blocks.items() if bad})
    return json.dumps(disks, sort_keys=True, separators=(",", ":")).encode()


def decode(data: bytes) -> dict[str, tuple[Extent, ...]]:
    """The lists in a file.

    Raises:
        IntegrityError: It is none.
    """
    try:
        disks = json.loads(data)
        blocks = {disk: tuple(_extents(pairs)) for disk, pairs in disks.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{FILE} of a backup is no list of bad blocks: {error}", path=FILE) from error
    if encode(blocks) != data:
        raise IntegrityError(f"{FILE} of a backup is not written as we write it", path=FILE)
    return blocks


def _extents(pairs: Iterable[tuple[int, int]]) -> Iterable[Extent]:
    position = 0
    for offset, length in pairs:
        if type(offset) is not int or type(length) is not int or offset < position or length < 1:
            raise ValueError("its ranges are not in order")
        position = offset + length
        yield Extent(offset, length)


async def of_backup(store: BackupStore, manifest: Manifest) -> BadBlocks:
    """What a backup is missing.

    Raises:
        IntegrityError: Its list is lost or damaged.
    """
    if all(file.name != FILE for file in manifest.files):
        return {}
    return decode(await store.read_file(manifest, FILE))


def as_lists(blocks: BadBlocks) -> dict[str, list[list[int]]]:
    """The same as plain lists: by disk, [offset, length] of each range."""
    return {disk: [[extent.offset, extent.length] for extent in bad] for disk, bad in blocks.items()}


def describe(disk: str, bad: tuple[Extent, ...]) -> str:
    """One line that says what of a disk is missing."""
    lost = sum(extent.length for extent in bad)
    where = ", ".join(str(extent.offset) for extent in bad[:3]) + (", ..." if len(bad) > 3 else "")
    return f"disk {disk!r}: {lost} bytes could not be read and are zeros in the backup, at offset {where}"
