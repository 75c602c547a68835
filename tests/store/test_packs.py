"""Packs: written once, read from the first byte to the last."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from sfasync.errors import IntegrityError, ObjectMissingError, RepositoryVersionError, StorageError
from sfasync.store import packs
from sfasync.store.names import pack_key
from sfasync.store.packs import Blob, Pack, PackClass, PackReader, PackWriter
from sfasync.store.seal import BlobKind, Sealed

from .memory import MemoryStore
from .support import noise

ID = bytes(range(16))
OTHER = bytes(16)
REPOSITORY = b"r" * 16
KEY = pack_key(ID)


def write(store: MemoryStore, contents: list[bytes], pack: bytes = ID) -> Pack:
    writer = PackWriter(store, pack, REPOSITORY, PackClass.DATA, "session")
    for number, content in enumerate(contents):
        writer.append(BlobKind.CHUNK, [Sealed(bytes([number]) * 32, len(content), content)])
    return writer.close()


def read(store: MemoryStore, pack: bytes = ID) -> list[bytes]:
    return [bytes(sealed) for _, sealed in PackReader(store, pack, REPOSITORY).read_all()]


def test_blobs_that_come_together_are_as_those_that_come_one_by_one() -> None:
    contents = [b"a", b"bb" * 1000, noise(5000), b"c"]
    single, together = MemoryStore(), MemoryStore()
    pack = write(single, contents)
    writer = PackWriter(together, ID, REPOSITORY, PackClass.DATA, "session")
    sealed = [Sealed(bytes([number]) * 32, len(content), content) for number, content in enumerate(contents)]
    writer.append(BlobKind.CHUNK, sealed[:1])
    writer.append(BlobKind.CHUNK, sealed[1:])
    assert writer.close() == pack
    assert together.objects == single.objects


@pytest.mark.parametrize("contents", [[], [b"a"], [b"a", b"bb" * 1000, noise(5000), b"c"]])
def test_what_is_written_is_read(contents: list[bytes]) -> None:
    store = MemoryStore()
    pack = write(store, contents)
    assert pack.size == len(store.objects[KEY])
    reader = PackReader(store, ID, REPOSITORY)
    assert (reader.size, reader.digest, reader.class_) == (pack.size, pack.digest, PackClass.DATA)
    assert reader.blobs == pack.blobs
    assert read(store) == contents
    for blob, content in zip(pack.blobs, contents, strict=True):
        assert store.objects[KEY][blob.offset : blob.offset + blob.length] == content


def test_the_layout_is_the_documented_one() -> None:
    store = MemoryStore()
    pack = write(store, [b"first", b"second"])
    data = store.objects[KEY]
    start = 38 + len(KEY)
    assert data[start : start + 4] == b"\x01\x00\x00\x00"
    assert data[start + 4 : start + 22] == bytes(18)
    assert data[start + 22 : start + 31] == b"\x07\x00session"
    blobs = start + 31
    assert data[blobs : blobs + 11] == b"firstsecond"
    row = bytes(32) + b"".join(n.to_bytes(4, "little") for n in (1, 5, blobs, 5))
    assert data[blobs + 11 : blobs + 11 + 48] == row
    footer = blobs + 11 + 96
    assert data[footer : footer + 8] == (blobs + 11).to_bytes(8, "little")
    assert data[footer + 8 : footer + 12] == (2).to_bytes(4, "little")
    assert data[footer + 12 : footer + 20] == len(data).to_bytes(8, "little")
    assert data[footer + 20 :] == pack.digest
    assert len(data) == footer + 52


def test_every_flipped_bit_is_found() -> None:
    store = MemoryStore()
    write(store, [b"first", b"second"])
    data = store.objects[KEY]
    for offset in range(len(data)):
        damaged = bytearray(data)
        damaged[offset] ^= 1 << offset % 8
        store.objects[KEY] = bytes(damaged)
        with pytest.raises((IntegrityError, RepositoryVersionError)):
            read(store)


def test_every_truncation_and_extension_is_found() -> None:
    store = MemoryStore()
    write(store, [b"first", b"second"])
    data = store.objects[KEY]
    for end in range(len(data)):
        store.objects[KEY] = data[:end]
        with pytest.raises(IntegrityError):
            read(store)
    store.objects[KEY] = data + b"\x00"
    with pytest.raises(IntegrityError):
        read(store)


def test_a_pack_under_another_name_is_refused() -> None:
    store = MemoryStore()
    write(store, [b"first"])
    store.objects[pack_key(OTHER)] = store.objects[KEY]
    with pytest.raises(IntegrityError, match="says that it is"):
        read(store, OTHER)
    with pytest.raises(IntegrityError, match="another repository"):
        PackReader(store, ID, bytes(16))


def test_a_missing_pack_is_missed() -> None:
    with pytest.raises(ObjectMissingError):
        read(MemoryStore())


def test_garbage_gives_only_typed_errors() -> None:
    store = MemoryStore()
    write(store, [b"first", b"second"])
    data = store.objects[KEY]
    for seed in range(200):
        garbage = bytearray(data)
        for place in noise(4, seed):
            at = place % len(garbage)
            garbage[at : at + 8] = noise(8, seed + place)
        store.objects[KEY] = bytes(garbage)
        with pytest.raises((IntegrityError, RepositoryVersionError)):
            read(store)


def test_threads_append_without_gaps_or_overlaps() -> None:
    store = MemoryStore()
    writer = PackWriter(store, ID, REPOSITORY, PackClass.META, "session")
    contents = [noise(100 + n, n) for n in range(200)]

    def append(number: int) -> None:
        writer.append(BlobKind.FILE, [Sealed(number.to_bytes(32, "big"), len(contents[number]), contents[number])])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(append, range(len(contents))))
    pack = writer.close()
    assert pack.class_ == PackClass.META
    found = {
        int.from_bytes(blob.name, "big"): bytes(sealed) for blob, sealed in PackReader(store, ID, REPOSITORY).read_all()
    }
    assert found == dict(enumerate(contents))


def test_a_pack_tells_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "TARGET_SIZE", 5000)
    monkeypatch.setattr(packs, "TARGET_BLOBS", 4)
    store = MemoryStore()
    writer = PackWriter(store, ID, REPOSITORY, PackClass.DATA, "session")
    assert not writer.append(BlobKind.CHUNK, [Sealed(bytes(32), 3000, bytes(3000))])
    assert writer.append(BlobKind.CHUNK, [Sealed(bytes(32), 3000, bytes(3000))])
    small = PackWriter(store, OTHER, REPOSITORY, PackClass.DATA, "session")
    assert [small.append(BlobKind.CHUNK, [Sealed(bytes(32), 1, b"x")]) for _ in range(4)] == [False, False, False, True]


def test_a_pack_that_cannot_be_written_is_never_seen() -> None:
    store = MemoryStore()
    writer = PackWriter(store, ID, REPOSITORY, PackClass.DATA, "session")
    writer.append(BlobKind.CHUNK, [Sealed(bytes(32), 1, b"x")])

    def fail(operation: str, key: str) -> None:
        raise StorageError("full")

    store.before = fail
    with pytest.raises(StorageError):
        writer.close()
    assert store.objects == {}


def test_rows_that_claim_too_much_are_refused() -> None:
    store = MemoryStore()
    writer = PackWriter(store, ID, REPOSITORY, PackClass.DATA, "session")
    writer.append(BlobKind.CHUNK, [Sealed(bytes(32), 2**31, b"x")])
    writer.close()
    with pytest.raises(IntegrityError, match="trailer"):
        PackReader(store, ID, REPOSITORY)


def test_blobs_are_plain_records() -> None:
    assert Blob(1, bytes(32), 5, 100, 5).offset == 100
