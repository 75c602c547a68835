"""Blobs are checked before anybody sees them, and looked for thoroughly before they are given up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sfasync.errors import IntegrityError, ObjectMissingError
from sfasync.store.blobs import BlobReader, describe, open_blob
from sfasync.store.locator import Locator
from sfasync.store.names import INDEX, pack_key
from sfasync.store.packs import Pack, PackClass, PackWriter
from sfasync.store.seal import BlobKind, Sealed, seal
from sfasync.store.tree import ZERO, content_digest, page_digest
from sfasync.units import KiB

from .memory import MemoryStore
from .support import noise, text
from .test_locator import REPOSITORY, put_index

CONTENTS = [(BlobKind.CHUNK, noise(300 * KiB)), (BlobKind.CHUNK, text(300 * KiB)), (BlobKind.FILE, b"file")]
PAGE = noise(64, 9) + ZERO


def digest(kind: BlobKind, data: bytes) -> bytes:
    return page_digest(data) if kind == BlobKind.PAGE else content_digest(data)


def write(store: MemoryStore, number: int) -> Pack:
    writer = PackWriter(store, number.to_bytes(16, "big"), REPOSITORY, PackClass.DATA, "s")
    for kind, data in [*CONTENTS, (BlobKind.PAGE, PAGE)]:
        writer.append(kind, [Sealed(digest(kind, data), len(data), seal(data))])
    return writer.close()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def blobs(store: MemoryStore) -> Iterator[BlobReader]:
    locator = Locator(store, REPOSITORY)
    yield BlobReader(store, locator)
    locator.close()


def test_every_kind_is_read(store: MemoryStore, blobs: BlobReader) -> None:
    put_index(store, [write(store, 1)])
    for kind, data in [*CONTENTS, (BlobKind.PAGE, PAGE)]:
        assert blobs.read(kind, digest(kind, data), len(data)) == data
        buffer = bytearray(len(data))
        blobs.read_into(kind, digest(kind, data), memoryview(buffer))
        assert buffer == data


def test_a_blob_unknown_to_every_index_is_missed(store: MemoryStore, blobs: BlobReader) -> None:
    put_index(store, [write(store, 1)])
    with pytest.raises(ObjectMissingError, match="page 0101"):
        blobs.read(BlobKind.PAGE, b"\x01" * 32, 64)
    kind, data = CONTENTS[0]
    with pytest.raises(ObjectMissingError):
        blobs.read(kind, digest(kind, data), len(data) - 1)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_damage_is_found_and_another_copy_serves(store: MemoryStore, blobs: BlobReader, number: int) -> None:
    pack = write(store, 1)
    put_index(store, [pack])
    kind, data = [*CONTENTS, (BlobKind.PAGE, PAGE)][number]
    key = pack_key(pack.id)
    content = bytearray(store.objects[key])
    content[pack.blobs[number].offset + pack.blobs[number].length // 2] ^= 0x10
    store.objects[key] = bytes(content)
    with pytest.raises(IntegrityError, match=rf"{describe(kind, digest(kind, data))} in {key} is damaged") as caught:
        blobs.read(kind, digest(kind, data), len(data))
    assert caught.value.path == key
    put_index(store, [write(store, 2)])
    assert blobs.read(kind, digest(kind, data), len(data)) == data


def test_a_moved_blob_is_found_after_one_more_look_at_the_index(store: MemoryStore, blobs: BlobReader) -> None:
    old = put_index(store, [write(store, 1)])
    kind, data = CONTENTS[1]
    blobs.read(kind, digest(kind, data), len(data))
    put_index(store, [write(store, 2)], [old])
    store.delete(pack_key((1).to_bytes(16, "big")))
    assert blobs.read(kind, digest(kind, data), len(data)) == data


def test_a_lost_pack_is_named(store: MemoryStore, blobs: BlobReader) -> None:
    pack = write(store, 1)
    put_index(store, [pack])
    store.delete(pack_key(pack.id))
    kind, data = CONTENTS[1]
    with pytest.raises(ObjectMissingError, match=pack_key(pack.id)):
        blobs.read(kind, digest(kind, data), len(data))


def test_a_truncated_pack_is_named(store: MemoryStore, blobs: BlobReader) -> None:
    pack = write(store, 1)
    put_index(store, [pack])
    key = pack_key(pack.id)
    store.objects[key] = store.objects[key][: pack.blobs[1].offset + 5]
    kind, data = CONTENTS[1]
    with pytest.raises(IntegrityError, match="shorter than the index says"):
        blobs.read(kind, digest(kind, data), len(data))


def test_a_cache_that_lies_is_made_anew(store: MemoryStore) -> None:
    put_index(store, [write(store, 1)])
    locator = Locator(store, REPOSITORY)
    locator.sync()
    locator.cache.execute("UPDATE blobs SET offset = offset + 1")
    kind, data = CONTENTS[1]
    assert BlobReader(store, locator).read(kind, digest(kind, data), len(data)) == data
    locator.close()


def test_two_whom_a_cache_lies_to_at_the_same_time_both_read(store: MemoryStore) -> None:
    """The second has looked twice where there is nothing when the first makes the cache anew."""
    put_index(store, [write(store, 1)])
    locator = Locator(store, REPOSITORY)
    locator.sync()
    locator.cache.execute("UPDATE blobs SET offset = offset + 1")
    bad: list[str] = []
    blobs = BlobReader(store, locator, lambda location, blob, error: bad.append(str(error)))
    kind, data = CONTENTS[1]
    looks: list[str] = []
    first: list[bytes] = []

    def look(operation: str, key: str) -> None:
        if operation == "read":
            looks.append(key)
            if len(looks) == 2:
                first.append(blobs.read(kind, digest(kind, data), len(data)))

    store.before = look
    assert blobs.read(kind, digest(kind, data), len(data)) == data
    assert first == [data]
    assert len(looks) == 6
    assert bad == []
    locator.close()


def test_the_index_is_not_read_for_a_blob_that_is_where_it_should_be(store: MemoryStore, blobs: BlobReader) -> None:
    put_index(store, [write(store, 1)])
    kind, data = CONTENTS[1]
    blobs.read(kind, digest(kind, data), len(data))
    seen: list[tuple[str, str]] = []
    store.before = lambda operation, key: seen.append((operation, key))
    blobs.read(kind, digest(kind, data), len(data))
    assert [key for _, key in seen if key.startswith(INDEX)] == []
    assert len(seen) == 1


def test_opening_tells_what_is_wrong() -> None:
    data = text(5000)
    sealed = seal(data)
    buffer = memoryview(bytearray(5000))
    open_blob(BlobKind.CHUNK, content_digest(data), sealed, buffer, "pack")
    assert buffer == data
    with pytest.raises(IntegrityError, match="another digest"):
        open_blob(BlobKind.CHUNK, bytes(32), sealed, buffer, "pack")
    with pytest.raises(IntegrityError, match=r"chunk .* in pack is damaged"):
        open_blob(BlobKind.CHUNK, content_digest(data), sealed, buffer[:4999], "pack")


def test_what_is_damaged_is_read_no_more_often_than_the_index(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A private locator reads the index when it is first asked, and need not make its cache anew."""
    pack = write(store, 1)
    put_index(store, [pack])
    kind, data = CONTENTS[0]
    key = pack_key(pack.id)
    store.objects[key] = bytes(len(store.objects[key]))
    reads = []
    read_into = store.read_into

    def counting(key: str, offset: int, buffer: memoryview) -> int:
        reads.append(key)
        return read_into(key, offset, buffer)

    monkeypatch.setattr(store, "read_into", counting)
    locator = Locator(store, REPOSITORY, private=True)
    with pytest.raises(IntegrityError):
        BlobReader(store, locator).read(kind, digest(kind, data), len(data))
    locator.close()
    assert reads == [key]
