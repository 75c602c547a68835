"""What every `ObjectStore` promises."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from sfasync.errors import IntegrityError, ObjectExistsError, ObjectMissingError
from sfasync.interfaces import ObjectStore


@dataclass(frozen=True)
class ObjectStoreCase:
    """Two views of one store, as two processes would have them."""

    store: ObjectStore
    other: ObjectStore


class ObjectStoreContract:
    """Inherit, and bring a fixture `case`."""

    def test_an_object_is_what_was_put(self, case: ObjectStoreCase) -> None:
        case.store.put("a/b/one", b"hello")
        case.store.put("a/b/empty", memoryview(b""))
        assert case.other.get("a/b/one", limit=5) == b"hello"
        assert case.other.get("a/b/empty", limit=0) == b""
        assert case.other.size("a/b/one") == 5

    def test_an_object_is_created_once(self, case: ObjectStoreCase) -> None:
        case.store.put("a/one", b"first")
        for store in (case.store, case.other):
            with pytest.raises(ObjectExistsError) as caught:
                store.put("a/one", b"second")
            assert caught.value.path == "a/one"
        assert case.store.get("a/one", limit=99) == b"first"

    def test_of_many_at_once_one_wins(self, case: ObjectStoreCase) -> None:
        barrier = threading.Barrier(8)

        def put(number: int) -> bool:
            barrier.wait()
            try:
                (case.store, case.other)[number % 2].put("race", bytes([number]))
            except ObjectExistsError:
                return False
            return True

        with ThreadPoolExecutor(8) as threads:
            won = [number for number, result in enumerate(threads.map(put, range(8))) if result]
        assert [case.store.get("race", limit=1)] == [bytes(won)]

    def test_a_written_object_appears_whole_at_commit(self, case: ObjectStoreCase) -> None:
        writer = case.store.writer("w/one")
        writer.write(b"abc")
        writer.write(memoryview(bytearray(b"def")))
        assert writer.position == 6
        assert case.other.list("") == []
        with pytest.raises(ObjectMissingError):
            case.other.get("w/one", limit=9)
        writer.commit()
        assert case.other.get("w/one", limit=9) == b"abcdef"
        writer.abort()
        assert case.other.get("w/one", limit=9) == b"abcdef"

    def test_an_aborted_object_never_appears(self, case: ObjectStoreCase) -> None:
        writer = case.store.writer("w/one")
        writer.write(b"abc")
        writer.abort()
        writer.abort()
        assert case.other.list("") == []

    def test_a_written_object_is_created_once(self, case: ObjectStoreCase) -> None:
        writer = case.store.writer("w/one")
        writer.write(b"late")
        case.other.put("w/one", b"early")
        with pytest.raises(ObjectExistsError):
            writer.commit()
        assert case.store.get("w/one", limit=9) == b"early"
        assert case.store.list("") == ["w/one"]

    def test_a_hold_is_seen_by_others_until_released(self, case: ObjectStoreCase) -> None:
        hold = case.store.hold("s/one", b"me")
        assert case.store.held("s/one")
        assert case.other.held("s/one")
        assert case.other.get("s/one", limit=9) == b"me"
        with pytest.raises(ObjectExistsError):
            case.other.hold("s/one", b"you")
        assert case.other.held("s/one")
        hold.release()
        hold.release()
        assert not case.other.held("s/one")
        assert case.other.get("s/one", limit=9) == b"me"

    def test_what_is_not_there_is_not_held(self, case: ObjectStoreCase) -> None:
        assert not case.store.held("s/none")
        case.store.put("s/one", b"")
        assert not case.store.held("s/one")

    def test_ranges(self, case: ObjectStoreCase) -> None:
        case.store.put("r", bytes(range(100)))
        buffer = bytearray(b"?" * 10)
        assert case.store.read_into("r", 20, memoryview(buffer)) == 10
        assert buffer == bytes(range(20, 30))
        assert case.store.read_into("r", 95, memoryview(buffer)) == 5
        assert buffer[:5] == bytes(range(95, 100))
        assert case.store.read_into("r", 100, memoryview(buffer)) == 0
        assert case.store.read_into("r", 10**9, memoryview(buffer)) == 0

    def test_a_limit_is_a_limit(self, case: ObjectStoreCase) -> None:
        case.store.put("big", bytes(1000))
        with pytest.raises(IntegrityError, match="1000"):
            case.store.get("big", limit=999)

    def test_what_is_missing_is_named(self, case: ObjectStoreCase) -> None:
        for ask in (
            lambda: case.store.get("x/none", limit=1),
            lambda: case.store.size("x/none"),
            lambda: case.store.modified("x/none"),
            lambda: case.store.read_into("x/none", 0, memoryview(bytearray(1))),
        ):
            with pytest.raises(ObjectMissingError, match="x/none") as caught:
                ask()
            assert caught.value.path == "x/none"

    def test_a_store_tells_which_of_two_is_older(self, case: ObjectStoreCase) -> None:
        case.store.put("t/one", b"")
        case.store.put("t/two", b"")
        assert case.other.modified("t/one") <= case.other.modified("t/two")
        assert case.store.modified("t/one") == case.other.modified("t/one")

    def test_lists_are_sorted_and_of_one_prefix(self, case: ObjectStoreCase) -> None:
        for key in ("a/c", "a/b/2", "a/b/1", "d", "ab/x"):
            case.store.put(key, b"")
        assert case.other.list("") == ["a/b/1", "a/b/2", "a/c", "ab/x", "d"]
        assert case.other.list("a/") == ["a/b/1", "a/b/2", "a/c"]
        assert case.other.list("none/") == []

    def test_stamps_are_lists_with_more(self, case: ObjectStoreCase) -> None:
        for key in ("a/c", "a/b/2", "d"):
            case.store.put(key, b"")
        assert [key for key, _ in case.other.stamps("")] == case.other.list("")
        assert [key for key, _ in case.other.stamps("a/")] == ["a/b/2", "a/c"]
        assert list(case.other.stamps("none/")) == []

    def test_deleting_what_is_not_there_is_no_error(self, case: ObjectStoreCase) -> None:
        case.store.put("a/one", b"")
        case.other.delete("a/one")
        case.store.delete("a/one")
        case.store.delete("b/none")
        assert case.store.list("") == []
        case.store.put("a/one", b"again")

    def test_the_location_is_for_messages(self, case: ObjectStoreCase) -> None:
        assert case.store.location
        assert "\n" not in case.store.location
