"""Small objects that are remembered."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from sfasync.store.cachefile import cache_directory
from sfasync.store.objectcache import ObjectCache, Remembered

REPOSITORY = b"r" * 16
ONE = Remembered("1", "ab", b"one")
TWO = Remembered("2", "", b"two")


@pytest.fixture
def path() -> Path:
    directory = cache_directory(REPOSITORY)
    assert directory is not None
    return directory / "objects.sqlite"


@pytest.fixture
def cache() -> Iterator[ObjectCache]:
    opened = ObjectCache(REPOSITORY)
    yield opened
    opened.close()
    opened.close()


def again() -> dict[str, Remembered]:
    """What another process finds."""
    opened = ObjectCache(REPOSITORY)
    try:
        return opened.load("")
    finally:
        opened.close()


def test_what_is_remembered(cache: ObjectCache) -> None:
    cache.update({"a/1": ONE, "a/2": TWO, "b/1": TWO}, [])
    assert cache.load("a/") == {"a/1": ONE, "a/2": TWO}
    assert cache.load("c/") == {}
    assert cache.keys_of("ab") == ["a/1"]
    assert cache.keys_of("cd") == []
    cache.update({"a/1": TWO}, ["b/1", "none"])
    cache.update({}, [])
    assert again() == cache.load("") == {"a/1": TWO, "a/2": TWO}
    assert cache.keys_of("ab") == []


def test_threads_share_it(cache: ObjectCache) -> None:
    with ThreadPoolExecutor(8) as threads:
        for number in range(40):
            threads.submit(cache.update, {str(number): ONE}, [])
    assert len(cache.load("")) == 40


@pytest.mark.parametrize("place", ["garbage", "foreign"])
def test_a_damaged_file_is_no_cache_and_goes(place: str, path: Path, cache: ObjectCache) -> None:
    if place == "garbage":
        path.write_bytes(random.Random(1).randbytes(10_000))
    else:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("CREATE TABLE something (x)")
    assert cache.load("") == {}
    cache.update({"a": ONE}, [])
    assert cache.keys_of("ab") == []
    assert not path.exists()
    assert again() == {}
    assert path.exists()


def test_without_a_place_there_is_no_harm(cache: ObjectCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    cache.update({"a": ONE}, [])
    assert cache.load("") == {"a": ONE}
    assert again() == {}


def test_a_file_that_others_keep_busy_is_left_alone(
    cache: ObjectCache, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.update({"a": ONE}, [])
    monkeypatch.setattr("sfasync.store.objectcache._PATIENCE", 0.01)
    other = ObjectCache(REPOSITORY)
    busy = sqlite3.connect(path, isolation_level=None)
    busy.execute("BEGIN EXCLUSIVE")
    other.update({"b": TWO}, [])
    assert other.load("") == {}
    busy.execute("COMMIT")
    busy.close()
    other.close()
    assert again() == {"a": ONE}
