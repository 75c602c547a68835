"""The copy of the index in SQLite."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sfasync.errors import IntegrityError
from sfasync.store.cache import IndexCache, Location, cache_path
from sfasync.store.index import IndexReader, encode_index
from sfasync.store.packs import Blob, Pack, PackClass
from sfasync.store.seal import BlobKind

REPOSITORY = b"r" * 16


def pack_of(number: int, names: list[bytes]) -> Pack:
    blobs = [Blob(BlobKind.CHUNK, name, 100, 200 + 50 * place, 50) for place, name in enumerate(names)]
    return Pack(number.to_bytes(16, "big"), bytes(32), 10_000, PackClass.DATA, blobs)


def index_of(packs: list[Pack], supersedes: list[bytes] | None = None) -> IndexReader:
    return IndexReader(memoryview(encode_index(packs, supersedes or [])), "index")


def name(number: int) -> bytes:
    return random.Random(number).randbytes(32)


def pack_with(cache: IndexCache, number: int) -> bytes | None:
    """A pack in which deduplication may rely on that blob."""
    blob = name(number), 100
    return cache.usable(BlobKind.CHUNK, [blob]).get(blob)


@pytest.fixture(params=["file", "private"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[IndexCache]:
    opened = IndexCache(tmp_path / "cache" if request.param == "file" else None, REPOSITORY)
    yield opened
    opened.close()


def test_blobs_are_found_by_kind_name_and_length(cache: IndexCache) -> None:
    cache.add(b"i" * 16, index_of([pack_of(1, [name(1), name(2)])]))
    pack = (1).to_bytes(16, "big")
    assert cache.locations(BlobKind.CHUNK, name(2), 100) == [Location(pack, 1, 250, 50)]
    assert pack_with(cache, 2) == pack
    for kind, digest, raw in (
        (BlobKind.PAGE, name(2), 100),
        (BlobKind.CHUNK, name(3), 100),
        (BlobKind.CHUNK, name(2), 99),
    ):
        assert cache.locations(kind, digest, raw) == []
        assert cache.usable(kind, [(digest, raw)]) == {}


def test_many_blobs_are_looked_up_at_once(cache: IndexCache) -> None:
    packs = [pack_of(number, [name(number), name(number + 100)]) for number in range(1, 65)]
    cache.add(b"i" * 16, index_of(packs))
    wanted = [(name(number), raw) for number in range(1, 65) for raw in (100, 99)]
    assert cache.usable(BlobKind.CHUNK, wanted) == {(name(n), 100): packs[n - 1].id for n in range(1, 65)}
    assert cache.usable(BlobKind.CHUNK, []) == cache.usable(BlobKind.PAGE, wanted) == {}


def test_a_blob_may_be_in_several_places_and_usable_ones_come_first(cache: IndexCache) -> None:
    packs = [pack_of(number, [name(1)]) for number in (1, 2, 3)]
    cache.add(b"i" * 16, index_of(packs[:2]))
    cache.add(b"j" * 16, index_of(packs[2:]))
    assert len(cache.locations(BlobKind.CHUNK, name(1), 100)) == 3
    cache.set_usable([packs[1].id])
    assert pack_with(cache, 1) == packs[1].id
    assert cache.locations(BlobKind.CHUNK, name(1), 100)[0].pack == packs[1].id
    cache.set_usable([])
    assert pack_with(cache, 1) is None
    assert len(cache.locations(BlobKind.CHUNK, name(1), 100)) == 3
    cache.set_usable([pack.id for pack in packs])
    assert pack_with(cache, 1) is not None


def test_packs_taken_in_later_are_usable(cache: IndexCache) -> None:
    cache.set_usable([])
    cache.add(b"i" * 16, index_of([pack_of(1, [name(1)])]))
    assert pack_with(cache, 1) is not None


def test_an_index_is_taken_in_once_and_dropped_whole(cache: IndexCache) -> None:
    first, second = b"1" * 16, b"2" * 16
    cache.add(first, index_of([pack_of(1, [name(1)])], [second]))
    cache.add(first, index_of([pack_of(1, [name(1)])], [second]))
    cache.add(second, index_of([pack_of(1, [name(1)]), pack_of(2, [name(2)])]))
    assert cache.loaded() == {first, second}
    assert cache.superseded() == {second}
    assert len(cache.locations(BlobKind.CHUNK, name(1), 100)) == 2
    cache.drop(first)
    cache.drop(first)
    assert cache.loaded() == {second}
    assert cache.superseded() == set()
    assert len(cache.locations(BlobKind.CHUNK, name(1), 100)) == 1
    cache.drop(second)
    assert cache.locations(BlobKind.CHUNK, name(2), 100) == []


def test_of_a_damaged_index_nothing_is_taken_in(cache: IndexCache) -> None:
    payload = bytearray(encode_index([pack_of(1, [name(1), name(2)])]))
    payload[-4:] = bytes(4)
    with pytest.raises(IntegrityError):
        cache.add(b"i" * 16, IndexReader(memoryview(payload), "index"))
    assert cache.loaded() == set()
    assert cache.locations(BlobKind.CHUNK, min(name(1), name(2)), 100) == []
    cache.add(b"i" * 16, index_of([pack_of(1, [name(1), name(2)])]))


def test_a_file_is_shared_and_survives(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    one, two = IndexCache(path, REPOSITORY), IndexCache(path, REPOSITORY)
    try:
        one.add(b"i" * 16, index_of([pack_of(1, [name(1)])]))
        assert two.loaded() == {b"i" * 16}
        with ThreadPoolExecutor(8) as threads:
            for number in range(40):
                reader = index_of([pack_of(number + 2, [name(number + 2)])])
                threads.submit((one, two)[number % 2].add, number.to_bytes(16, "big"), reader)
        assert len(one.loaded()) == len(two.loaded()) == 41
    finally:
        one.close()
        two.close()
    again = IndexCache(path, REPOSITORY)
    assert len(again.loaded()) == 41
    assert all(pack_with(again, number) for number in range(1, 42))
    again.close()


def test_what_is_added_waits_for_the_disk_in_order(tmp_path: Path) -> None:
    """Of a new file as of one that was there, which a loss of power must not leave half."""
    for _ in range(2):
        cache = IndexCache(tmp_path / "cache", REPOSITORY)
        assert cache.rows("PRAGMA synchronous") == [(1,)], "NORMAL"
        assert cache.rows("PRAGMA journal_mode") == [("wal",)]
        cache.close()


def test_what_is_not_this_repositorys_cache_is_refused(tmp_path: Path) -> None:
    IndexCache(tmp_path / "foreign", b"f" * 16).close()
    (tmp_path / "garbage").write_bytes(random.Random(1).randbytes(10_000))
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE something (x)")
    other.commit()
    other.close()
    for file in ("foreign", "garbage", "other", "no/such/directory"):
        with pytest.raises(sqlite3.Error):
            IndexCache(tmp_path / file, REPOSITORY)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE packs SET id = 'text'",
        "UPDATE packs SET id = x'00'",
        "UPDATE blobs SET offset = -1",
        "UPDATE blobs SET offset = 'far'",
        "UPDATE blobs SET length = 0",
        "UPDATE blobs SET length = 101",
        "UPDATE blobs SET offset = 1 << 40",
    ],
)
def test_damaged_cells_are_noticed(cache: IndexCache, damage: str) -> None:
    cache.add(b"i" * 16, index_of([pack_of(1, [name(1)])]))
    cache.execute(damage)
    with pytest.raises(sqlite3.DatabaseError):
        cache.locations(BlobKind.CHUNK, name(1), 100)


def test_the_place_follows_the_xdg_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = cache_path(REPOSITORY)
    assert path == tmp_path / "x/sfasync" / REPOSITORY.hex() / "index.sqlite"
    assert path.parent.is_dir()
    for value in ("relative/path", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_path(REPOSITORY) == tmp_path / "home/.cache/sfasync" / REPOSITORY.hex() / "index.sqlite"
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_path(REPOSITORY) is None
