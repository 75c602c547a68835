"""Where two backups differ, from their pages alone.

Equal digests of the same length are equal bytes, so subtrees that both have are skipped unread; the time depends on
what differs. The answer is exact to a chunk: a chunk that differs in a byte is told whole. Where one disk ends within a
chunk, the chunk's digest says nothing of its beginning, which is told as different unless both are zeros.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from itertools import islice

from ..errors import IntegrityError
from ..models import Difference, DiskRecord
from ..workers import Workers
from .pages import TreeReader
from .tree import DIGEST, FANOUT, ZERO

_AT_ONCE = 1024  # chunks found in one call in a thread


async def differences(
    disk_id: str,
    first: DiskRecord | None,
    second: DiskRecord | None,
    open_tree: Callable[[DiskRecord], TreeReader],
    workers: Workers,
) -> AsyncGenerator[Difference, None]:
    """The ranges of a disk that two backups have differently, in order; ranges of one kind that touch are joined.

    Args:
        disk_id: Id of the disk.
        first, second: The disk in each backup; None in one that does not have it.
        open_tree: Gives the page tree of either.
        workers: Threads to read pages in.

    Raises:
        ObjectMissingError, IntegrityError: A page is lost or damaged.
        StorageError: The repository cannot be read.
    """
    old, new = (0 if record is None else record.size for record in (first, second))
    if first is not None and second is not None:
        found = changed(open_tree(first), open_tree(second))
        start = end = 0
        while some := await workers.run(_some, found, disk_id):
            for offset, length in some:
                if offset != end:
                    if start < end:
                        yield Difference(disk_id, "changed", start, end - start)
                    start = offset
                end = offset + length
        if start < end:
            yield Difference(disk_id, "changed", start, end - start)
    if old < new:
        yield Difference(disk_id, "added", old, new - old)
    elif new < old:
        yield Difference(disk_id, "removed", new, old - new)


def _some(found: Iterator[tuple[int, int]], disk_id: str) -> list[tuple[int, int]]:
    """The next of them, so few that a cancelled caller does not wait long for the thread."""
    try:
        return list(islice(found, _AT_ONCE))
    except IntegrityError as error:
        error.disk = disk_id
        raise


def changed(first: TreeReader, second: TreeReader) -> Iterator[tuple[int, int]]:
    """Offset and length of each chunk that two disks have differently, up to the end of the smaller one; in order."""
    geometry = min((first.geometry, second.geometry), key=lambda geometry: geometry.size)
    top = geometry.depth

    def below(level: int, index: int, end: int) -> Iterator[tuple[int, int]]:
        """Of the nodes of a level from `index` to before `end`, all in one page."""
        left, right = first.digests(level, index, end), second.digests(level, index, end)
        if left == right and not is_last(level, end):
            return
        for number in range(index, end):
            place = slice((number - index) * DIGEST, (number - index + 1) * DIGEST)
            if left[place] == right[place] and (left[place] == ZERO or same_length(level, number)):
                continue
            if level == 0:
                yield number * geometry.chunk_size, geometry.length(0, number)
            else:
                start = number * FANOUT
                yield from below(level - 1, start, start + geometry.children(level, number))

    def is_last(level: int, end: int) -> bool:
        return end == geometry.count(level)

    def same_length(level: int, number: int) -> bool:
        return first.geometry.length(level, number) == second.geometry.length(level, number)

    if geometry.size:
        yield from below(top, 0, 1)
