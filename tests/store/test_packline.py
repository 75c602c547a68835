"""Packs in the hands of threads: how many there are, and that none is lost, hung or committed after a failure."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from sfasync.errors import NoSpaceError, StateError
from sfasync.interfaces import Buffer
from sfasync.store import packline
from sfasync.store.names import PACKS
from sfasync.store.packline import PackLine
from sfasync.store.packs import Pack, PackClass, PackWriter
from sfasync.store.seal import BlobKind, Sealed
from sfasync.workers import Workers

from .memory import MemoryStore
from .support import noise
from .test_locator import REPOSITORY

SLOW_BLOB = b"slow"
BAD_BLOB = b"bad"


class Line:
    """A line of at most two packs, over a disk that holds up who writes `SLOW_BLOB` until `go`, and fails `BAD_BLOB`.

    Attributes:
        packs: Those that are durable.
        failures: Those that are told.
        creating, created: Where there is the first, a new pack tells it, and waits for the second.
    """

    def __init__(self, store: MemoryStore, closers: Workers, threads: ThreadPoolExecutor) -> None:
        self.packs: list[Pack] = []
        self.failures: list[BaseException] = []
        self.go = threading.Event()
        self.creating: threading.Semaphore | None = None
        self.created = threading.Event()
        self.line = PackLine(
            store,
            REPOSITORY,
            PackClass.DATA,
            "session",
            most=2,
            closers=closers,
            on_close=self.packs.append,
            on_failure=self.failures.append,
        )
        self._held_up = threading.Semaphore(0)
        self._threads = threads

    def append(self, blob: bytes) -> None:
        self.line.append(BlobKind.CHUNK, [Sealed(noise(32), len(blob), blob)])

    def begin(self, blob: bytes = b"blob") -> Future[None]:
        return self._threads.submit(self.append, blob)

    def hold_up(self) -> Future[None]:
        """Let a thread wait for the disk with a pack in its hands."""
        appending = self.begin(SLOW_BLOB)
        assert self._held_up.acquire(timeout=30)
        return appending

    def blobs(self) -> list[int]:
        """How many are in each pack that is durable."""
        return sorted(len(pack.blobs) for pack in self.packs)

    def create(self) -> None:
        """What the disk does with a new pack."""
        if self.creating is not None:
            self.creating.release()
            assert self.created.wait(30)

    def write(self, blob: Buffer) -> None:
        """What it does with a blob."""
        if blob == SLOW_BLOB:
            self._held_up.release()
            assert self.go.wait(30)
        elif blob == BAD_BLOB:
            raise NoSpaceError("the disk is full")


@pytest.fixture
def line(closers: Workers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    monkeypatch.setattr(packline, "_WORTH", 0)
    with ThreadPoolExecutor(4) as threads:
        made = Line(MemoryStore(), closers, threads)

        class Writer(PackWriter):
            def __init__(self, *arguments: Any) -> None:
                made.create()
                super().__init__(*arguments)

            def append(self, kind: BlobKind, blobs: Sequence[Sealed]) -> bool:
                made.write(blobs[0].data)
                return super().append(kind, blobs)

        monkeypatch.setattr(packline, "PackWriter", Writer)
        yield made
        made.go.set()
        made.created.set()


def test_one_thread_fills_one_pack(line: Line) -> None:
    for _ in range(10):
        line.append(b"blob")
    line.line.finish()
    assert line.blobs() == [10]


def test_another_pack_is_begun_while_one_waits_for_the_disk(line: Line) -> None:
    held_up = line.hold_up()
    line.append(b"blob")
    line.append(b"blob")
    line.go.set()
    held_up.result(30)
    line.line.finish()
    assert line.blobs() == [1, 2]


def test_and_none_while_that_one_is_small(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packline, "_WORTH", 1 << 20)
    held_up = line.hold_up()
    waiting = line.begin()
    with pytest.raises(TimeoutError):
        waiting.result(0.2)
    line.go.set()
    waiting.result(30)
    held_up.result(30)
    line.line.finish()
    assert line.blobs() == [2]


def test_who_begins_a_pack_holds_up_nobody(line: Line) -> None:
    held_up = line.hold_up()
    line.creating = threading.Semaphore(0)
    beginning = line.begin()
    assert line.creating.acquire(timeout=30)
    line.go.set()
    held_up.result(30)
    line.begin().result(30)  # into the first one, which is idle now
    with ThreadPoolExecutor(1) as another:
        ending = another.submit(line.line.finish)
        with pytest.raises(TimeoutError):
            ending.result(0.2)
        line.created.set()
        ending.result(30)
    beginning.result(30)
    assert line.blobs() == [1, 2]


def test_a_pack_that_cannot_be_begun_leaves_the_place_to_another(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        full.setattr(line, "create", lambda: line.write(BAD_BLOB))
        with pytest.raises(NoSpaceError):
            line.append(b"blob")
    line.append(b"blob")
    line.line.finish()
    assert line.blobs() == [1]


def test_there_are_never_more_than_so_many(line: Line) -> None:
    held_up = [line.hold_up(), line.hold_up()]
    waiting = [line.begin(), line.begin()]
    with pytest.raises(TimeoutError):
        waiting[0].result(0.2)
    line.go.set()
    for appending in (*held_up, *waiting):
        appending.result(30)
    line.line.finish()
    assert len(line.packs) == 2
    assert sum(line.blobs()) == 4


def test_a_pack_that_could_not_be_written_is_dropped(line: Line) -> None:
    held_up = line.hold_up()
    line.append(b"blob")
    with pytest.raises(NoSpaceError):
        line.append(BAD_BLOB)
    line.go.set()
    held_up.result(30)
    line.line.finish()
    assert line.blobs() == [1], "the other pack alone"
    assert line.failures == [], "who appends is told by the error"


def test_a_checkpoint_waits_for_who_has_the_pack(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packline, "SLOW", 1 << 40)
    held_up = line.hold_up()
    line.append(b"blob")  # into another one
    with ThreadPoolExecutor(1) as scribe:
        flushing = scribe.submit(line.line.flush, 0.0)
        with pytest.raises(TimeoutError):
            flushing.result(0.2)
        line.go.set()
        flushing.result(30)
    held_up.result(30)
    assert line.blobs() == [1, 1]
    line.line.finish()
    assert len(line.packs) == 2


def test_packs_share_what_comes(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is half as fast because there are two is not slow."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(packline, "SLOW", 1000)
    held_up = line.hold_up()
    line.append(bytes(700))
    line.go.set()
    held_up.result(30)  # an empty one, but for its header
    now += 1.0
    line.line.flush(0.0)
    assert line.blobs() == [1], "the one with 700 bytes is left to fill"
    now += 1.0
    line.line.flush(0.0)
    assert line.blobs() == [1, 1]


def test_the_end_waits_for_who_has_a_pack(line: Line) -> None:
    held_up = line.hold_up()
    line.append(b"blob")
    with ThreadPoolExecutor(1) as another:
        ending = another.submit(line.line.abort)
        with pytest.raises(TimeoutError):
            ending.result(0.2)
        with pytest.raises(StateError, match="ended"):
            line.append(b"blob")
        line.go.set()
        ending.result(30)
    held_up.result(30)
    assert line.packs == []


def test_who_waits_for_a_pack_is_told_of_the_end(line: Line) -> None:
    held_up = [line.hold_up(), line.hold_up()]
    waiting = line.begin()
    with ThreadPoolExecutor(1) as another:
        ending = another.submit(line.line.finish)
        with pytest.raises(StateError, match="ended"):
            waiting.result(30)
        line.go.set()
        ending.result(30)
    assert [appending.result(30) for appending in held_up] == [None, None]
    assert line.blobs() == [1, 1]


def test_closers_that_are_gone_are_told(line: Line, closers: Workers) -> None:
    line.append(b"blob")
    closers.close()
    line.line.finish()
    assert [str(error) for error in line.failures] == ["what this belongs to is closed; open it again"]
    assert line.packs == []


def test_no_blob_is_lost_between_many_threads(closers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packline, "_WORTH", 100)
    monkeypatch.setattr("sfasync.store.packs.TARGET_SIZE", 2000)
    monkeypatch.setattr(packline, "SLOW", 1 << 40)
    store = MemoryStore()
    with ThreadPoolExecutor(8) as threads:
        line = Line(store, closers, threads)
        appending = [line.begin(noise(100, number)) for number in range(500)]
        while not all(future.done() for future in appending):
            line.line.flush(0.0)
        for future in appending:
            future.result()
        line.line.finish()
    assert sum(line.blobs()) == 500
    assert line.failures == []
    assert len(store.list(PACKS)) == len(line.packs)


def test_nobody_waits_for_a_pack_that_cannot_be_dropped(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(writer: PackWriter) -> None:
        raise NoSpaceError("not even that")

    with monkeypatch.context() as patch, pytest.raises(NoSpaceError, match="not even that"):
        patch.setattr(PackWriter, "abort", fail)
        line.append(BAD_BLOB)
    line.line.finish()
    assert line.packs == []
