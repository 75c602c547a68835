"""What verifications read, and when."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sfasync.errors import IntegrityError
from sfasync.store.checks import Check, Checks, Scope, decode_check, encode_check
from sfasync.store.locator import Locator
from sfasync.store.names import CHECKS, check_key

from .memory import MemoryStore
from .test_cache import name, pack_of
from .test_locator import REPOSITORY, put_index

PACKS = [number.to_bytes(16, "big") for number in (1, 2, 3)]
NOW = 1_000_000.0


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    put_index(store, [pack_of(number, [name(number)]) for number in (1, 2, 3)])
    return store


@pytest.fixture
def locator(store: MemoryStore) -> Iterator[Locator]:
    locator = Locator(store, REPOSITORY, private=True)
    locator.sync()
    yield locator
    locator.close()


def check(time: float, packs: list[bytes], scope: Scope = Scope.SOME) -> Check:
    return Check(time, scope, 0, packs, {"ab" * 16: 7})


def test_what_is_written_reads_back() -> None:
    payload = encode_check(Check(12.5, Scope.EVERYTHING, 3, {PACKS[1], PACKS[0]}, {"cd" * 16: 1, "ab" * 16: 7}))
    decoded = decode_check(memoryview(payload), "key")
    assert decoded == Check(12.5, Scope.EVERYTHING, 3, PACKS[:2], {"ab" * 16: 7, "cd" * 16: 1})


def test_payloads_that_contradict_themselves_are_refused() -> None:
    payload = encode_check(check(NOW, PACKS))
    for broken in (
        payload[:10],
        payload[:-1],
        payload + b"\0",
        payload[:8] + b"\x09" + payload[9:],
        payload[:-8] + bytes(8),
        payload[:16] + b"\xff\xff\xff\xff" + payload[20:],
    ):
        with pytest.raises(IntegrityError):
            decode_check(memoryview(broken), "key")


def test_what_is_longest_unread_comes_first(store: MemoryStore, locator: Locator) -> None:
    checks = Checks(store, REPOSITORY, locator.cache, NOW)
    checks.note([PACKS[0], PACKS[2]], NOW - 50)
    checks.note([PACKS[0]], NOW - 100)
    checks.note([PACKS[2]], NOW - 10)
    assert [(pack.id, time) for pack, time in checks.longest_unread()] == [
        (PACKS[1], 0),
        (PACKS[0], NOW - 50),
        (PACKS[2], NOW - 10),
    ]


def run(store: MemoryStore, locator: Locator, made: Check) -> set[float]:
    """Load all checks and put one; the times of those that are left."""
    locator.cache.execute("DROP TABLE IF EXISTS reads")
    checks = Checks(store, REPOSITORY, locator.cache, made.time)
    for key in store.list(CHECKS):
        checks.load(key)
    checks.put(made)
    return {checks.load(key).time for key in store.list(CHECKS)}


def test_checks_that_tell_nothing_more_are_removed(store: MemoryStore, locator: Locator) -> None:
    assert run(store, locator, check(NOW, [])) == {NOW}
    assert run(store, locator, check(NOW + 1, PACKS[:2])) == {NOW + 1}
    assert run(store, locator, check(NOW + 2, [])) == {NOW + 1, NOW + 2}
    assert run(store, locator, check(NOW + 3, PACKS[1:])) == {NOW + 1, NOW + 3}
    assert run(store, locator, check(NOW + 4, [PACKS[0], b"gone" * 4])) == {NOW + 3, NOW + 4}
    assert run(store, locator, check(NOW + 5, PACKS)) == {NOW + 5}


def test_a_check_from_the_future_is_not_believed_and_removed(store: MemoryStore, locator: Locator) -> None:
    assert run(store, locator, check(NOW + 1e6, PACKS)) == {NOW + 1e6}
    locator.cache.execute("DROP TABLE reads")
    checks = Checks(store, REPOSITORY, locator.cache, NOW)
    (key,) = store.list(CHECKS)
    checks.load(key)
    assert [time for _, time in checks.longest_unread()] == [0, 0, 0]
    checks.put(check(NOW, PACKS[:1]))
    assert {checks.load(key).time for key in store.list(CHECKS)} == {NOW}


def test_the_check_of_another_verification_that_has_just_ended_stays(store: MemoryStore, locator: Locator) -> None:
    checks = Checks(store, REPOSITORY, locator.cache, NOW)
    checks.put(check(NOW + 1, []))
    checks.put(check(NOW, []))
    assert {checks.load(key).time for key in store.list(CHECKS)} == {NOW, NOW + 1}


def test_a_damaged_check_stays(store: MemoryStore, locator: Locator) -> None:
    store.objects[check_key(b"k" * 16)] = b"rubbish"
    checks = Checks(store, REPOSITORY, locator.cache, NOW)
    checks.put(check(NOW, PACKS))
    assert len(store.list(CHECKS)) == 2
