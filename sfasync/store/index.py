"""Index objects: which blobs the packs hold, and where.

::

    counts      packs 4 | rows 4 | superseded 4
    packs       id 16 | digest 32 | size 8 | class 4
    superseded  ids of index objects that this one replaces, 16 each
    fan-out     256 times 4: rows whose name begins with at most this byte
    rows        name 32 | kind 4 | raw length 4 | pack 4 | ordinal 4 | offset 4 | length 4, sorted as bytes of the
                name and then as numbers

`pack` counts the packs of this object, `ordinal` the blobs of that pack. Rows are of one width and the fan-out tells
where a name must be, so a row can be found by ranged reads of a large object.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..errors import IntegrityError
from ..units import MiB
from .objects import damaged
from .packs import MAX_BLOBS, MAX_SIZE, Pack, PackClass
from .seal import KINDS, MAX_FILE

MAX_INDEX = 64 * MiB
"""Bytes of an index object that a reader accepts: about a million blobs."""

_COUNTS = struct.Struct("<III")
_PACK = struct.Struct("<16s32sQI")
_ID_SIZE = 16
_FANOUT = struct.Struct("<256I")
_ROW = struct.Struct("<32sIIIIII")
_CLASSES = frozenset(PackClass)


class IndexPack(NamedTuple):
    """A pack as an index object describes it; fields as of `Pack`."""

    id: bytes
    digest: bytes
    size: int
    class_: int


class IndexRow(NamedTuple):
    """A blob in an index object.

    Attributes:
        name, kind, raw: Its key.
        pack: Which of the object's packs has it.
        ordinal: Its place in that pack, from 0.
        offset, length: Where it is in the pack, in bytes.
    """

    name: bytes
    kind: int
    raw: int
    pack: int
    ordinal: int
    offset: int
    length: int


def encode_index(packs: Sequence[Pack], supersedes: Sequence[bytes] = ()) -> bytes:
    """The payload of an index object that covers `packs`."""
    rows = sorted(
        (blob.name, blob.kind, blob.raw, number, ordinal, blob.offset, blob.length)
        for number, pack in enumerate(packs)
        for ordinal, blob in enumerate(pack.blobs)
    )
    fanout = [0] * 256
    for row in rows:
        fanout[row[0][0]] += 1
    total = 0
    for first, count in enumerate(fanout):
        total += count
        fanout[first] = total
    return b"".join(
        (
            _COUNTS.pack(len(packs), len(rows), len(supersedes)),
            *(_PACK.pack(pack.id, pack.digest, pack.size, pack.class_) for pack in packs),
            *supersedes,
            _FANOUT.pack(*fanout),
            *(_ROW.pack(*row) for row in rows),
        )
    )


class IndexReader:
    """Takes the payload of an index object apart.

    Args:
        payload: From a frame that was checked.
        key: The object's name, for messages.

    Attributes:
        packs: The packs it covers.
        supersedes: Ids of index objects it replaces.

    Raises:
        IntegrityError: It contradicts itself.
    """

    def __init__(self, payload: memoryview, key: str) -> None:
        self._payload = payload
        self._key = key
        if len(payload) < _COUNTS.size:
            raise self._damaged()
        pack_count, row_count, superseded_count = _COUNTS.unpack_from(payload)
        superseded = _COUNTS.size + pack_count * _PACK.size
        fanout = superseded + superseded_count * _ID_SIZE
        self._rows = fanout + _FANOUT.size
        if self._rows + row_count * _ROW.size != len(payload) or row_count > pack_count * MAX_BLOBS:
            raise self._damaged()
        self.packs = [IndexPack(*fields) for fields in _PACK.iter_unpack(payload[_COUNTS.size : superseded])]
        for pack in self.packs:
            if pack.size > MAX_SIZE or pack.class_ not in _CLASSES:
                raise self._damaged()
        starts = range(superseded, fanout, _ID_SIZE)
        self.supersedes = [bytes(payload[start : start + _ID_SIZE]) for start in starts]
        self._fanout = _FANOUT.unpack_from(payload, fanout)

    def rows(self) -> Iterator[IndexRow]:
        """The rows, in order, each checked.

        Raises:
            IntegrityError: A row is out of bounds or out of order, or the fan-out is wrong.
        """
        last: tuple[bytes, ...] | None = None
        counts = [0] * 256
        for fields in _ROW.iter_unpack(self._payload[self._rows :]):
            row = IndexRow(*fields)
            if (
                (last is not None and fields <= last)
                or row.pack >= len(self.packs)
                or row.ordinal >= MAX_BLOBS
                or row.kind not in KINDS
                or not 0 < row.length <= row.raw <= MAX_FILE
                or row.offset + row.length > self.packs[row.pack].size
            ):
                raise self._damaged()
            last = fields
            counts[row.name[0]] += 1
            yield row
        total = 0
        for first, count in enumerate(counts):
            total += count
            if self._fanout[first] != total:
                raise self._damaged()

    def _damaged(self) -> IntegrityError:
        return damaged(self._key, "contradicts itself")
