"""Blobs of a session: stored once, packed, indexed; the first failure ends it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sfasync.errors import NoSpaceError, StateError, StorageError
from sfasync.store import intake as module
from sfasync.store import packs
from sfasync.store.blobs import BlobReader
from sfasync.store.intake import Intake
from sfasync.store.locator import Locator
from sfasync.store.names import INDEX, PACKS
from sfasync.store.seal import BlobKind, Sealed
from sfasync.store.tree import content_digest
from sfasync.units import KiB
from sfasync.workers import Workers

from .memory import MemoryStore
from .support import noise
from .test_locator import REPOSITORY


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def locator(store: MemoryStore) -> Iterator[Locator]:
    opened = Locator(store, REPOSITORY)
    yield opened
    opened.close()


@pytest.fixture
def intake(store: MemoryStore, locator: Locator, closers: Workers) -> Intake:
    return Intake(store, REPOSITORY, "session", locator, closers)


def add(intake: Intake, data: bytes) -> bool:
    return bool(intake.add(BlobKind.CHUNK, content_digest(data), data).new)


def count(store: MemoryStore, prefix: str) -> int:
    return len(store.list(prefix))


def test_a_blob_is_stored_once(store: MemoryStore, locator: Locator, closers: Workers, intake: Intake) -> None:
    data = noise(1000)
    assert add(intake, data)
    assert not add(intake, data)
    intake.finish()
    assert intake.relied_on == set()
    assert (count(store, PACKS), count(store, INDEX)) == (1, 1)
    another = Intake(store, REPOSITORY, "another", locator, closers)
    assert not add(another, data)
    assert len(another.relied_on) == 1
    another.finish()
    assert (count(store, PACKS), count(store, INDEX)) == (1, 1)
    assert BlobReader(store, locator).read(BlobKind.CHUNK, content_digest(data), 1000) == data


def test_many_blobs_are_claimed_at_once_and_each_by_one(
    store: MemoryStore, locator: Locator, closers: Workers, intake: Intake
) -> None:
    contents = [noise(1000, seed) for seed in range(20)]
    blobs = [(content_digest(data), len(data)) for data in contents]
    add(intake, contents[3])
    intake.finish()
    another = Intake(store, REPOSITORY, "another", locator, closers)
    add(another, contents[5])
    with another.claim(BlobKind.CHUNK, [*blobs, *blobs]) as claimed:
        assert claimed == set(blobs) - {blobs[3], blobs[5]}
        assert len(another.relied_on) == 1
        with another.claim(BlobKind.CHUNK, blobs) as left:
            assert left == set()
        sealed = [Sealed(content_digest(data), len(data), data) for data in contents[6:]]
        assert another.put(BlobKind.CHUNK, sealed)[:2] == (14, 14_000)
    another.finish()
    assert BlobReader(store, locator).read(BlobKind.CHUNK, blobs[19][0], 1000) == contents[19]


def test_who_claims_and_does_not_store_fails_the_session(store: MemoryStore, intake: Intake) -> None:
    """Others may have met that blob meanwhile, and rely on it."""
    data = noise(1000)
    blob = content_digest(data), len(data)
    with pytest.raises(ZeroDivisionError), intake.claim(BlobKind.CHUNK, [blob]) as claimed:
        assert claimed == {blob}
        assert not add(intake, data)
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        add(intake, noise(2000))
    with pytest.raises(ZeroDivisionError):
        intake.finish()
    assert count(store, INDEX) == 0


def test_one_digest_of_two_lengths_is_two_blobs(store: MemoryStore, locator: Locator, intake: Intake) -> None:
    """See `tree`: zeros of any length have one digest."""
    end = noise(256 * KiB)
    short, long = bytes(256 * KiB) + end, bytes(512 * KiB) + end
    assert content_digest(short) == content_digest(long)
    assert add(intake, short)
    assert add(intake, long)
    intake.finish()
    for data in (short, long):
        assert BlobReader(store, locator).read(BlobKind.CHUNK, content_digest(data), len(data)) == data


def test_data_and_metadata_are_in_packs_of_their_own(store: MemoryStore, intake: Intake) -> None:
    add(intake, noise(1000))
    intake.add(BlobKind.PAGE, b"\x01" * 32, noise(64))
    intake.add(BlobKind.FILE, b"\x02" * 32, b"file")
    intake.finish()
    assert count(store, PACKS) == 2


def test_nothing_is_written_for_nothing(store: MemoryStore, intake: Intake) -> None:
    intake.finish()
    assert store.objects == {}


def test_two_threads_with_the_same_blob_store_it_once(store: MemoryStore, intake: Intake) -> None:
    data = noise(100_000)
    barrier = threading.Barrier(8)

    def both(_: int) -> bool:
        barrier.wait()
        return add(intake, data)

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(both, range(8))) == 1
    intake.finish()


def test_packs_are_closed_and_indexed_on_the_way(
    store: MemoryStore, locator: Locator, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "TARGET_SIZE", 10_000)
    monkeypatch.setattr(module, "INDEX_PACKS", 4)
    contents = [noise(3000, number) for number in range(100)]
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda data: add(intake, data), contents))
    assert count(store, PACKS) >= 20
    assert count(store, INDEX) >= 4
    assert len(intake._own) < 60
    assert not any(add(intake, data) for data in contents)
    intake.finish()
    assert intake._own == set()
    blobs = BlobReader(store, locator)
    for data in contents:
        assert blobs.read(BlobKind.CHUNK, content_digest(data), 3000) == data


def test_many_small_blobs_are_indexed_too(store: MemoryStore, intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "TARGET_BLOBS", 10)
    monkeypatch.setattr(module, "INDEX_BLOBS", 20)
    for number in range(60):
        add(intake, noise(100, number))
    intake.finish()
    assert count(store, INDEX) >= 3


def test_sealing_waits_for_a_slow_store(store: MemoryStore, intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "TARGET_SIZE", 1000)
    go, closing = threading.Event(), threading.Semaphore(0)

    def slow(operation: str, key: str) -> None:
        if operation == "put" and key.startswith(PACKS):
            closing.release()
            go.wait(30)

    store.before = slow
    added = threading.Semaphore(0)

    def work() -> None:
        for number in range(10):
            add(intake, noise(1000, number))
            added.release()

    with ThreadPoolExecutor(1) as threads:
        working = threads.submit(work)
        for _ in range(2):
            assert closing.acquire(timeout=30)
            assert added.acquire(timeout=30)
        assert not added.acquire(timeout=0.2)  # the third pack is full, and two are being closed
        go.set()
        working.result()
    intake.finish()
    assert count(store, PACKS) == 10


@pytest.mark.parametrize("failing", ["write", "put"])
def test_the_first_failure_ends_it(store: MemoryStore, intake: Intake, failing: str) -> None:
    add(intake, noise(1000, 1))

    def full(operation: str, key: str) -> None:
        if operation == failing:
            raise NoSpaceError(f"no space for {key}")

    store.before = full
    with pytest.raises(NoSpaceError):
        add(intake, noise(1000, 2))
        intake.finish()
    store.before = lambda operation, key: None
    with pytest.raises(StorageError):
        add(intake, noise(1000, 3))
    intake.abort()
    assert count(store, INDEX) == 0


def test_a_failure_while_closing_is_told_to_the_next(
    store: MemoryStore, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "TARGET_SIZE", 1000)

    def full(operation: str, key: str) -> None:
        if operation == "put":
            raise NoSpaceError(f"no space for {key}")

    store.before = full
    with pytest.raises(NoSpaceError):
        for number in range(100):
            add(intake, noise(1000, number))
    with pytest.raises(NoSpaceError):
        intake.finish()
    intake.abort()


def test_what_was_durable_before_an_abort_is_found_again(
    store: MemoryStore, locator: Locator, closers: Workers, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "TARGET_SIZE", 1000)
    contents = [noise(1000, number) for number in range(5)] + [b"in the open pack"]
    for data in contents:
        add(intake, data)
    intake.abort()
    with pytest.raises(StateError, match="aborted"):
        add(intake, noise(1000, 9))
    intake.abort()
    another = Intake(store, REPOSITORY, "another", locator, closers)
    assert [add(another, data) for data in contents] == [False] * 5 + [True]
    another.abort()


def test_closed_workers_are_an_error_not_a_hang(
    store: MemoryStore, closers: Workers, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "TARGET_SIZE", 1000)
    closers.close()
    with pytest.raises(StateError, match="closed"):
        for number in range(5):
            add(intake, noise(1000, number))
