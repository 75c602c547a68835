"""Index objects: sorted rows with a fan-out."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.errors import IntegrityError
from sfasync.store.index import IndexReader, IndexRow, encode_index
from sfasync.store.packs import Blob, Pack, PackClass

KEY = "domains/default/index/00"
ROW = 56


def packs_of(seed: int, counts: list[int]) -> list[Pack]:
    rng = random.Random(seed)
    packs = []
    for count in counts:
        blobs, offset = [], 100
        for _ in range(count):
            length = rng.randint(1, 1000)
            blobs.append(Blob(rng.randint(1, 3), rng.randbytes(32), rng.randint(length, 2000), offset, length))
            offset += length
        packs.append(Pack(rng.randbytes(16), rng.randbytes(32), offset + 200, PackClass.DATA, blobs))
    return packs


@given(seed=st.integers(0, 10**6), counts=st.lists(st.integers(0, 20), max_size=5), superseded=st.integers(0, 3))
def test_what_is_encoded_is_read(seed: int, counts: list[int], superseded: int) -> None:
    packs = packs_of(seed, counts)
    ids = [bytes([n]) * 16 for n in range(superseded)]
    reader = IndexReader(memoryview(encode_index(packs, ids)), KEY)
    assert reader.supersedes == ids
    assert [tuple(pack) for pack in reader.packs] == [(p.id, p.digest, p.size, p.class_) for p in packs]
    rows = list(reader.rows())
    assert rows == sorted(rows)
    wanted = [
        IndexRow(blob.name, blob.kind, blob.raw, number, ordinal, blob.offset, blob.length)
        for number, pack in enumerate(packs)
        for ordinal, blob in enumerate(pack.blobs)
    ]
    assert sorted(wanted) == rows


def test_the_layout_is_the_documented_one_and_ranged_reads_find_a_row() -> None:
    packs = packs_of(1, [300, 300])
    data = encode_index(packs, [b"s" * 16])
    assert struct.unpack_from("<III", data) == (2, 600, 1)
    assert data[12:28] == packs[0].id
    assert data[28:60] == packs[0].digest
    assert struct.unpack_from("<QI", data, 60) == (packs[0].size, 1)
    fanout = 12 + 2 * 60 + 16
    assert data[fanout - 16 : fanout] == b"s" * 16
    rows = fanout + 1024
    assert len(data) == rows + 600 * ROW
    wanted = packs[1].blobs[7]
    first = wanted.name[0]
    low = struct.unpack_from("<I", data, fanout + 4 * (first - 1))[0] if first else 0
    high = struct.unpack_from("<I", data, fanout + 4 * first)[0]
    found = [struct.unpack_from("<32sIIIIII", data, rows + n * ROW) for n in range(low, high)]
    key = (wanted.name, wanted.kind, wanted.raw)
    assert [row[3:] for row in found if row[:3] == key] == [(1, 7, wanted.offset, wanted.length)]


def test_truncations_and_wrong_counts_are_refused() -> None:
    data = encode_index(packs_of(1, [3]), [bytes(16)])
    for end in range(len(data)):
        with pytest.raises(IntegrityError):
            list(IndexReader(memoryview(data[:end]), KEY).rows())
    for place in range(0, 12, 4):
        for value in (0, 2**32 - 1):
            wrong = bytearray(data)
            wrong[place : place + 4] = value.to_bytes(4, "little")
            with pytest.raises(IntegrityError):
                list(IndexReader(memoryview(wrong), KEY).rows())


@pytest.mark.parametrize(
    ("field", "value"),
    [(32, 0), (32, 9), (36, 2**31), (36, 0), (40, 1), (44, 70000), (48, 2**31), (52, 0), (52, 10**6)],
)
def test_rows_out_of_bounds_are_refused(field: int, value: int) -> None:
    data = bytearray(encode_index(packs_of(1, [1])))
    row = len(data) - ROW
    data[row + field : row + field + 4] = value.to_bytes(4, "little")
    with pytest.raises(IntegrityError):
        list(IndexReader(memoryview(data), KEY).rows())


def test_rows_out_of_order_and_a_wrong_fanout_are_refused() -> None:
    data = encode_index(packs_of(1, [2]))
    swapped = data[: -2 * ROW] + data[-ROW:] + data[-2 * ROW : -ROW]
    with pytest.raises(IntegrityError):
        list(IndexReader(memoryview(swapped), KEY).rows())
    doubled = bytearray(encode_index(packs_of(1, [2])))
    doubled[-ROW:] = doubled[-2 * ROW : -ROW]
    with pytest.raises(IntegrityError):
        list(IndexReader(memoryview(doubled), KEY).rows())
    wrong = bytearray(data)
    wrong[-2 * ROW - 4] ^= 1
    with pytest.raises(IntegrityError):
        list(IndexReader(memoryview(wrong), KEY).rows())


def test_a_pack_that_cannot_be_is_refused() -> None:
    pack = packs_of(1, [1])[0]
    for wrong in (pack._replace(size=2**30), pack._replace(class_=7)):  # type: ignore[arg-type]  # that is the point
        with pytest.raises(IntegrityError):
            IndexReader(memoryview(encode_index([wrong])), KEY)
