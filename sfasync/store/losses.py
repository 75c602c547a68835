"""What of a backup has no good copy any more: found before the next backup takes anything over from it.

Nothing is read as long as the index is whole and every blob in it has a good copy, as far as is known. Otherwise the
pages of a disk are read, and its chunks looked up; none is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter

from ..errors import IntegrityError, ObjectMissingError
from ..models import Extent
from .blobs import describe
from .damage import DAMAGE, is_confined
from .locator import Locator
from .names import SESSIONS, parse_session, session_key
from .packs import Blob, PackReader
from .records import Records
from .seal import BlobKind
from .tree import DIGEST, FANOUT, ZERO, Geometry, split_page

_MOST_LOSSES = 65536
"""Lost ranges of one disk that are worth telling apart."""

_MOST_STRAYS = 64

LoadPage = Callable[[bytes, int], bytes]
"""Gives the page of a digest and a length in bytes, checked."""


def may_be_lost(records: Records, locator: Locator) -> bool:
    """Whether backups may need something that has no good copy, as far as is known. Blocks."""
    if locator.impaired():
        return True
    strays = locator.unindexed(_MOST_STRAYS)
    return len(strays) == _MOST_STRAYS or any(_may_be_needed(records, locator, pack) for pack in strays)


def _may_be_needed(records: Records, locator: Locator, pack: bytes) -> bool:
    """Whether a pack that no index has may have lost its index object, and have what nothing else has.

    Killed writers leave such packs too. Whose it was tells nothing: others rely on what an aborted or a forgotten
    backup stored. Only a writer at work is sure to index its packs itself.
    """
    try:
        reader = PackReader(records.store, pack, records.repository)
        place = parse_session(SESSIONS + reader.session)
        if place is not None and records.store.held(session_key(*place)):
            return False
    except ObjectMissingError:
        return False
    except DAMAGE as error:
        if not is_confined(error):
            raise
        return True
    return not all(_have_copies(locator, kind, blobs) for kind, blobs in groupby(reader.blobs, attrgetter("kind")))


def _have_copies(locator: Locator, kind: BlobKind, blobs: Iterable[Blob]) -> bool:
    """Whether blobs of one kind have good copies in packs of the index."""
    wanted = [(blob.name, blob.raw) for blob in blobs]
    some = (wanted[start : start + FANOUT] for start in range(0, len(wanted), FANOUT))
    return all(locator.good(kind, {name for name, _ in part}).issuperset(part) for part in some)


def lost_ranges(locator: Locator, load: LoadPage, geometry: Geometry, root: bytes) -> tuple[Extent, ...]:
    """The ranges of a disk of which no good copy is known, in order, neighbours joined. Blocks.

    Raises:
        IntegrityError: A page of it is lost; or so much that nothing is to be gained from the rest.
    """
    ranges: list[Extent] = []
    for index in _lost_among(locator, load, geometry, geometry.depth, 0, [root]):
        offset, length = index * geometry.chunk_size, geometry.length(0, index)
        if ranges and ranges[-1].end == offset:
            ranges[-1] = Extent(ranges[-1].offset, ranges[-1].length + length)
        else:
            ranges.append(Extent(offset, length))
        if len(ranges) > _MOST_LOSSES:
            raise IntegrityError(f"more than {_MOST_LOSSES} ranges of a disk are lost")
    return tuple(ranges)


def _lost_among(
    locator: Locator, load: LoadPage, geometry: Geometry, level: int, first: int, digests: Sequence[bytes]
) -> Iterator[int]:
    """The lost chunks below adjacent nodes of a level, which are 128 at most.

    Args:
        locator, load, geometry: As of `lost_ranges`.
        level: Of these nodes.
        first: The index of the first of them.
        digests: Their digests.
    """
    kind = BlobKind.PAGE if level else BlobKind.CHUNK
    good = locator.good(kind, [digest for digest in digests if digest != ZERO])
    for index, digest in enumerate(digests, first):
        if digest == ZERO:
            continue
        length = geometry.children(level, index) * DIGEST if level else geometry.length(0, index)
        if (digest, length) in good:
            if level:
                page = split_page(load(digest, length))
                yield from _lost_among(locator, load, geometry, level - 1, index * FANOUT, page)
        elif level:
            raise IntegrityError(f"{describe(kind, digest)} has no good copy")
        else:
            yield index
