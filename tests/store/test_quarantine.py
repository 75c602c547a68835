"""Records of damage."""

from __future__ import annotations

import pytest

from sfasync.errors import IntegrityError
from sfasync.store.codec import MAX_RECORD, encode_record
from sfasync.store.names import QUARANTINE, pack_key, parse_quarantine, quarantine_key
from sfasync.store.objects import ObjectKind, encode
from sfasync.store.quarantine import (
    BadBlob,
    BadObject,
    QuarantineRecord,
    lift_quarantine,
    put_quarantine,
    read_quarantine,
)

from .memory import MemoryStore

REPOSITORY = b"r" * 16
KEY = pack_key(b"p" * 16)
BLOB = BadBlob(kind=1, name="ab" * 32, raw=100)


def ids(store: MemoryStore) -> list[bytes]:
    return list(filter(None, map(parse_quarantine, store.list(QUARANTINE))))


def records(store: MemoryStore) -> list[QuarantineRecord]:
    return [read_quarantine(store, REPOSITORY, record) for record in ids(store)]


def test_what_is_written_reads_back() -> None:
    store = MemoryStore()
    bad = [
        BadObject(key=KEY, blobs=(BLOB,), reason="a flip\nand a line"),
        BadObject(key=pack_key(b"q" * 16), blobs=None, reason="it is missing"),
        BadObject(key=pack_key(b"s" * 16), blobs=(), reason="its end"),
    ]
    put_quarantine(store, REPOSITORY, bad)
    (record,) = records(store)
    assert [(one.key, one.blobs) for one in record.objects] == [(one.key, one.blobs) for one in bad]
    assert "\n" not in record.objects[0].reason


def test_nothing_is_written_for_nothing() -> None:
    store = MemoryStore()
    put_quarantine(store, REPOSITORY, [])
    assert store.objects == {}


def test_much_damage_takes_several_records_none_too_large() -> None:
    store = MemoryStore()
    blobs = tuple(BadBlob(kind=1, name=f"{n:064x}", raw=n + 1) for n in range(3000))
    whole = [BadObject(key=pack_key(n.to_bytes(16, "big")), blobs=None, reason="x" * 400) for n in range(500)]
    put_quarantine(store, REPOSITORY, [BadObject(key=KEY, blobs=blobs, reason="a flip"), *whole])
    found = [one for record in records(store) for one in record.objects]
    assert {blob for one in found if one.key == KEY for blob in one.blobs or ()} == set(blobs)
    assert [one.key for one in found if one.blobs is None] != []
    assert {one.key for one in found} == {KEY, *(one.key for one in whole)}
    assert all(len(data) < MAX_RECORD + 1024 for data in store.objects.values())


@pytest.mark.parametrize(
    "blob",
    [
        BadBlob(kind=9, name="ab" * 32, raw=100),
        BadBlob(kind=1, name="ab" * 31, raw=100),
        BadBlob(kind=1, name="ab" * 32, raw=0),
        BadBlob(kind=1, name="ab" * 32, raw=1 << 40),
    ],
)
def test_blobs_that_cannot_be_are_refused(blob: BadBlob) -> None:
    store = MemoryStore()
    key = quarantine_key(b"k" * 16)
    record = QuarantineRecord(created=1.0, objects=(BadObject(key=KEY, blobs=(blob,), reason="x"),))
    store.put(key, encode(ObjectKind.QUARANTINE, key, REPOSITORY, encode_record(record)))
    with pytest.raises(IntegrityError, match="names a blob that cannot be"):
        read_quarantine(store, REPOSITORY, b"k" * 16)


def test_what_is_good_again_is_let_out_and_the_rest_stays() -> None:
    store = MemoryStore()
    other = pack_key(b"q" * 16)
    put_quarantine(store, REPOSITORY, [BadObject(key=key, blobs=None, reason="gone") for key in (KEY, other)])
    before = store.list(QUARANTINE)
    lift_quarantine(store, REPOSITORY, ids(store), lambda key: False)
    assert store.list(QUARANTINE) == before
    lift_quarantine(store, REPOSITORY, ids(store), lambda key: key == KEY)
    assert [[one.key for one in record.objects] for record in records(store)] == [[other]]
    lift_quarantine(store, REPOSITORY, ids(store), lambda key: True)
    assert store.objects == {}


def test_what_was_found_bad_meanwhile_stays() -> None:
    store = MemoryStore()
    put_quarantine(store, REPOSITORY, [BadObject(key=KEY, blobs=None, reason="gone")])
    known = ids(store)
    put_quarantine(store, REPOSITORY, [BadObject(key=KEY, blobs=None, reason="gone again")])
    lift_quarantine(store, REPOSITORY, known, lambda key: True)
    assert [[one.reason for one in record.objects] for record in records(store)] == [["gone again"]]


def test_a_record_that_cannot_be_read_stays() -> None:
    store = MemoryStore({quarantine_key(b"k" * 16): b"rubbish"})
    lift_quarantine(store, REPOSITORY, ids(store), lambda key: True)
    assert len(store.objects) == 1
