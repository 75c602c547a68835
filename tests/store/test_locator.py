"""The cache follows the index, and is replaced when it is damaged, foreign, gone or cannot be written."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from sfasync.errors import RepositoryVersionError, StateError
from sfasync.store.cache import IndexCache, NameAndLength, cache_path
from sfasync.store.index import IndexReader, encode_index
from sfasync.store.locator import Locator
from sfasync.store.names import INDEX, TOMBSTONES, index_key, pack_key
from sfasync.store.objects import ObjectKind, encode
from sfasync.store.packs import Pack
from sfasync.store.seal import BlobKind

from .memory import MemoryStore
from .test_cache import name, pack_of

REPOSITORY = b"r" * 16


def put_index(store: MemoryStore, packs: list[Pack], supersedes: list[bytes] | None = None) -> bytes:
    index = secrets.token_bytes(16)
    key = index_key(index)
    store.put(key, encode(ObjectKind.INDEX, key, REPOSITORY, encode_index(packs, supersedes or [])))
    for pack in packs:
        store.objects.setdefault(pack_key(pack.id), bytes(pack.size))
    return index


def pack_with(locator: Locator, number: int) -> bytes | None:
    """A pack in which deduplication may rely on that blob."""
    blob = name(number), 100
    return locator.usable(BlobKind.CHUNK, [blob]).get(blob)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def locator(store: MemoryStore) -> Iterator[Locator]:
    opened = Locator(store, REPOSITORY)
    yield opened
    opened.close()
    opened.close()


def known(locator: Locator, number: int) -> bool:
    return bool(locator.locations(BlobKind.CHUNK, name(number), 100))


@pytest.mark.parametrize("used", [False, True])
def test_who_comes_too_late_makes_no_cache(store: MemoryStore, caplog: pytest.LogCaptureFixture, used: bool) -> None:
    """A cancelled caller may leave a thread behind that still looks something up."""
    locator = Locator(store, REPOSITORY)
    if used:
        locator.sync()
    locator.close()
    with pytest.raises(StateError, match="closed"):
        known(locator, 1)
    assert caplog.messages == []


def test_nothing_is_opened_before_it_is_needed(store: MemoryStore) -> None:
    Locator(store, REPOSITORY).close()
    path = cache_path(REPOSITORY)
    assert path is not None
    assert not path.exists()


def test_new_index_objects_are_taken_in_and_lost_ones_dropped(store: MemoryStore, locator: Locator) -> None:
    first = put_index(store, [pack_of(1, [name(1)])])
    assert locator.sync() == []
    put_index(store, [pack_of(2, [name(2)])])
    assert (known(locator, 1), known(locator, 2)) == (True, False)
    locator.sync()
    assert (known(locator, 1), known(locator, 2)) == (True, True)
    store.delete(index_key(first))
    locator.sync()
    assert (known(locator, 1), known(locator, 2)) == (False, True)


def test_known_index_objects_are_not_read_again(store: MemoryStore, locator: Locator) -> None:
    put_index(store, [pack_of(1, [name(1)])])
    locator.sync()
    reads: list[str] = []
    store.before = lambda operation, key: reads.append(key) if operation == "get" else None
    locator.sync()
    assert reads == []


def test_superseded_index_objects_are_left_alone(store: MemoryStore, locator: Locator) -> None:
    old = put_index(store, [pack_of(1, [name(1)]), pack_of(2, [name(2)])])
    locator.sync()
    put_index(store, [pack_of(1, [name(1)])], [old])
    for _ in range(2):
        locator.sync()
        assert (known(locator, 1), known(locator, 2)) == (True, False)
    fresh = Locator(store, REPOSITORY, private=True)
    fresh.sync()
    assert (known(fresh, 1), known(fresh, 2)) == (True, False)
    fresh.close()


def test_damaged_and_newer_index_objects_are_left_out_and_told(store: MemoryStore, locator: Locator) -> None:
    put_index(store, [pack_of(1, [name(1)])])
    damaged = index_key(put_index(store, [pack_of(2, [name(2)])]))
    store.objects[damaged] = store.objects[damaged][:-1] + b"?"
    store.objects[index_key(bytes(16))] = b"garbage"
    store.objects["domains/default/index/foreign"] = b"garbage"
    problems = locator.sync()
    assert sorted(problem.path or "" for problem in problems) == sorted([damaged, index_key(bytes(16))])
    assert (known(locator, 1), known(locator, 2)) == (True, False)
    assert not any(isinstance(problem, RepositoryVersionError) for problem in problems)


def test_only_packs_that_stay_are_relied_on(store: MemoryStore, locator: Locator) -> None:
    packs = [pack_of(number, [name(number)]) for number in (1, 2, 3)]
    put_index(store, packs)
    store.delete(pack_key(packs[1].id))
    store.put(TOMBSTONES + packs[2].id.hex(), b"")
    locator.sync()
    locator.set_usable()
    assert pack_with(locator, 1) == packs[0].id
    assert pack_with(locator, 2) is None
    assert pack_with(locator, 3) is None
    assert known(locator, 3)


def test_nothing_is_looked_for_where_nothing_can_be_relied_on(
    store: MemoryStore, locator: Locator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[BlobKind] = []
    usable = IndexCache.usable

    def counting(self: IndexCache, kind: BlobKind, blobs: Collection[NameAndLength]) -> dict[NameAndLength, bytes]:
        asked.append(kind)
        return usable(self, kind, blobs)

    monkeypatch.setattr(IndexCache, "usable", counting)
    locator.sync()
    locator.set_usable()
    assert pack_with(locator, 1) is None
    assert asked == []
    pack = pack_of(1, [name(1)])
    index = put_index(store, [pack])
    locator.add(index, locator.read(index))
    assert pack_with(locator, 1) == pack.id, "what this session has stored itself"
    store.put(TOMBSTONES + pack.id.hex(), b"")
    locator.set_usable()
    assert pack_with(locator, 1) is None
    assert len(asked) == 1
    locator.rebuild_once(locator.cache)
    assert pack_with(locator, 1) is None


def fail(locator: Locator) -> None:
    locator.cache.close()


def distrust(locator: Locator) -> None:
    assert locator.rebuild_once(locator.cache)


@pytest.mark.parametrize("make_anew", [fail, distrust])
def test_a_cache_made_anew_meanwhile_relies_on_no_other_packs(
    store: MemoryStore, locator: Locator, make_anew: Callable[[Locator], None]
) -> None:
    packs = [pack_of(number, [name(number)]) for number in (1, 2)]
    put_index(store, packs)
    store.put(TOMBSTONES + packs[1].id.hex(), b"")
    locator.sync()
    locator.set_usable()
    make_anew(locator)
    assert pack_with(locator, 1) == packs[0].id
    assert pack_with(locator, 2) is None


def test_a_pack_that_was_cut_short_is_not_relied_on(
    store: MemoryStore, locator: Locator, caplog: pytest.LogCaptureFixture
) -> None:
    short, lost, whole = packs = [pack_of(number, [name(number), name(9)]) for number in (1, 2, 3)]
    put_index(store, packs)
    locator.sync()
    locator.set_usable()
    store.objects[pack_key(short.id)] = bytes(short.size - 1)
    store.delete(pack_key(lost.id))
    assert pack_with(locator, 1) is None
    assert pack_with(locator, 2) is None
    assert pack_with(locator, 9) == whole.id
    for record, pack in zip(caplog.records, (short, lost), strict=True):
        assert pack_key(pack.id) in record.message

    store.objects[pack_key(short.id)] = bytes(short.size)
    locator.set_usable()
    assert pack_with(locator, 1) == short.id


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database " * 1000)


def foreign(path: Path) -> None:
    path.unlink()
    IndexCache(path, b"f" * 16).close()


def newer(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.mark.parametrize("damage", [truncate, garbage, foreign, newer, Path.unlink])
def test_a_damaged_cache_is_made_anew(store: MemoryStore, damage: Callable[[Path], None]) -> None:
    put_index(store, [pack_of(number, [name(number)]) for number in range(200)])
    first = Locator(store, REPOSITORY)
    first.sync()
    first.close()
    path = cache_path(REPOSITORY)
    assert path is not None
    damage(path)
    again = Locator(store, REPOSITORY)
    again.sync()
    assert all(known(again, number) for number in range(200))
    again.close()
    last = Locator(store, REPOSITORY)
    assert known(last, 1)
    last.close()


def test_a_cache_overwritten_under_our_hands_is_made_anew(store: MemoryStore, locator: Locator) -> None:
    put_index(store, [pack_of(number, [name(number)]) for number in range(2000)])
    locator.sync()
    path = cache_path(REPOSITORY)
    assert path is not None
    locator.cache.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    locator.cache.execute("PRAGMA cache_size = 0")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    assert all(known(locator, number) for number in range(0, 2000, 100))


def test_a_cache_removed_under_our_hands_does_no_harm(store: MemoryStore, locator: Locator) -> None:
    put_index(store, [pack_of(1, [name(1)])])
    locator.sync()
    path = cache_path(REPOSITORY)
    assert path is not None
    for file in path.parent.iterdir():
        file.unlink()
    put_index(store, [pack_of(2, [name(2)])])
    locator.sync()
    assert (known(locator, 1), known(locator, 2)) == (True, True)


def test_without_a_place_a_private_cache_does(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    put_index(store, [pack_of(1, [name(1)])])
    locator = Locator(store, REPOSITORY)
    locator.sync()
    assert known(locator, 1)
    locator.close()


def test_a_full_place_is_left_for_a_private_cache(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put_index(store, [pack_of(1, [name(1)])])
    locator = Locator(store, REPOSITORY)
    original = IndexCache.add

    def full(cache: IndexCache, index: bytes, reader: IndexReader) -> None:
        if locator._path is not None:
            raise sqlite3.OperationalError("database or disk is full")
        original(cache, index, reader)

    monkeypatch.setattr(IndexCache, "add", full)
    locator.sync()
    assert known(locator, 1)
    locator.close()


def test_a_cache_is_made_anew_once_on_request(store: MemoryStore, locator: Locator) -> None:
    put_index(store, [pack_of(1, [name(1)])])
    locator.sync()
    locator.cache.execute("DELETE FROM blobs")
    assert not known(locator, 1)
    assert locator.rebuild_once(locator.cache)
    assert known(locator, 1)
    assert not locator.rebuild_once(locator.cache)


def test_who_used_a_cache_that_was_made_anew_meanwhile_has_all_of_the_new_one(
    store: MemoryStore, locator: Locator
) -> None:
    """Also while the thread that makes it anew has not taken in anything."""
    put_index(store, [pack_of(1, [name(1)])])
    locator.sync()
    used = locator.cache
    found: list[bool] = []

    def look(operation: str, key: str) -> None:
        if (operation, key) == ("list", INDEX):
            store.before = lambda operation, key: None
            found.extend([known(locator, 1), locator.rebuild_once(used), known(locator, 1)])

    store.before = look
    assert locator.rebuild_once(used)
    assert found == [False, True, True]
    assert not locator.rebuild_once(locator.cache)


def test_who_is_in_a_cache_that_another_makes_anew_takes_the_new_one(
    store: MemoryStore, locator: Locator, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is wrong with it then, and nothing said."""
    locator.sync()
    put_index(store, [pack_of(1, [name(1)])])
    rebuilt: list[bool] = []

    def rebuild(operation: str, key: str) -> None:
        store.before = lambda operation, key: None
        rebuilt.append(locator.rebuild_once(locator.cache))

    store.before = rebuild
    locator.sync()
    assert rebuilt == [True]
    assert known(locator, 1)
    assert caplog.messages == []


def test_a_private_cache_leaves_nothing(store: MemoryStore, tmp_path: Path) -> None:
    put_index(store, [pack_of(1, [name(1)])])
    locator = Locator(store, REPOSITORY, private=True)
    locator.sync()
    assert not locator.rebuild_once(locator.cache)
    locator.close()
    path = cache_path(REPOSITORY)
    assert path is not None
    assert list(path.parent.iterdir()) == []
