"""Takes in the blobs of one session: deduplicates them, packs them, makes packs and index durable.

A blob is stored unless the index knows it in a usable pack, or this session has stored it. Packs are filled and closed
beside the sealing (`packline`): when the store is slower, `add` waits. Every so many packs an index object is written,
so that what is remembered here stays bounded; `flush` does so before that, for those who want to rely on what is there.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from ..errors import SfasyncError, StateError
from ..interfaces import Buffer, ObjectStore
from ..workers import Workers
from .cache import NameAndLength
from .index import IndexReader, encode_index
from .locator import Locator
from .names import index_key
from .objects import ObjectKind, encode
from .packline import PackLine
from .packs import Pack, PackClass
from .seal import BlobKind, Sealed, seal

INDEX_PACKS = 64
INDEX_BLOBS = 16384
"""An index object is written when so many packs, or so many blobs, are durable and in no index."""

_OPEN = {PackClass.DATA: max(2, len(os.sched_getaffinity(0)) // 2), PackClass.META: 1}
"""Packs that are filled at a time: a thread that seals has one in its hands for a fifth of the time."""

_Key = tuple[int, bytes, int]


class Stored(NamedTuple):
    """What became of blobs.

    Attributes:
        new: How many the repository did not have.
        length: Bytes written for them.
        seconds: Spent in writing and in waiting for packs to be closed.
    """

    new: int
    length: int
    seconds: float


NOTHING_STORED = Stored(0, 0, 0.0)


class Intake:
    """Where the new blobs of a session go. Calls block; any thread may make them, but for `finish` and `abort`.

    Args:
        store: Where the repository is.
        repository: Its id.
        session: Name of the session.
        locator: Knows the blobs that are there.
        closers: Threads for closing packs. They must not be those that call `add`, which waits for them.

    Attributes:
        relied_on: Packs of other sessions that blobs were found in.
    """

    def __init__(self, store: ObjectStore, repository: bytes, session: str, locator: Locator, closers: Workers) -> None:
        self._store = store
        self._repository = repository
        self._locator = locator
        self._lock = threading.Lock()
        self._own: set[_Key] = set()  # stored by this session, and not yet in the locator
        self._unindexed: list[Pack] = []
        self._failure: BaseException | None = None
        self._lines = {
            class_: PackLine(
                store,
                repository,
                class_,
                session,
                most=_OPEN[class_],
                closers=closers,
                on_close=self._closed,
                on_failure=self.fail,
            )
            for class_ in PackClass
        }
        self._relied_on_meta: set[_Key] = set()
        self.relied_on: set[bytes] = set()

    def add(self, kind: BlobKind, name: bytes, data: Buffer) -> Stored:
        """Store a blob, unless it is there.

        Args:
            kind: What it is.
            name: Its digest.
            data: Its bytes; not touched after the return.

        Raises:
            StorageError: It could not be written. The session has failed: nothing more can be stored in it.
        """
        with self.claim(kind, [(name, len(data))]) as new:
            return self.put(kind, [Sealed(name, len(data), seal(data))]) if new else NOTHING_STORED

    @contextmanager
    def claim(self, kind: BlobKind, blobs: Sequence[NameAndLength]) -> Iterator[set[NameAndLength]]:
        """Of those blobs, at most 128, the ones that are not there. The block has to `put` each of them, as who meets
        them from now on does not store them: if it raises, the session has failed.

        Raises:
            StorageError: As of `add`.
        """
        found = self._locator.usable(kind, blobs) if blobs else {}
        with self._lock:
            self._check()
            new = {blob for blob in blobs if (int(kind), *blob) not in self._own}
            relied_on = new & found.keys()
            self.relied_on.update(found[blob] for blob in relied_on)
            if kind != BlobKind.CHUNK:
                self._relied_on_meta.update((int(kind), *blob) for blob in relied_on)
            new -= relied_on
            self._own.update((int(kind), *blob) for blob in new)
        try:
            yield new
        except BaseException as error:
            self.fail(error)
            raise

    def put(self, kind: BlobKind, blobs: Sequence[Sealed]) -> Stored:
        """Store blobs that were claimed, within the block of `claim`; errors as of `add`."""
        if not blobs:
            return NOTHING_STORED
        began = time.perf_counter()
        self._lines[PackClass.DATA if kind == BlobKind.CHUNK else PackClass.META].append(kind, blobs)
        return Stored(len(blobs), sum(len(blob.data) for blob in blobs), time.perf_counter() - began)

    def rely_on(self, kind: BlobKind, name: bytes, raw: int) -> bool:
        """Whether the repository has a blob in a usable pack, on which this session relies from now on."""
        found = self._locator.usable(kind, [(name, raw)])
        with self._lock:
            self.relied_on.update(found.values())
        return bool(found)

    def may_rely_on(self, kind: BlobKind, name: bytes, raw: int) -> bool:
        """Whether a blob may be one of those that were found in `relied_on`: of chunks that is not kept."""
        with self._lock:
            return kind == BlobKind.CHUNK or (int(kind), name, raw) in self._relied_on_meta

    def is_indexed(self, kind: BlobKind, name: bytes, raw: int) -> bool:
        """Whether a blob that was added is durable and in the index by now."""
        with self._lock:
            return (int(kind), name, raw) not in self._own

    def flush(self, age: float) -> None:
        """Make chunks that were added durable, and the index: open packs are closed if they are older than `age`
        seconds and fill slowly.

        Raises:
            StorageError: Something could not be made durable. The session has failed.
        """
        self._lines[PackClass.DATA].flush(age)
        try:
            self._write_index(1, 1)
        except BaseException as error:
            self.fail(error)
            raise

    def finish(self) -> None:
        """Make everything durable: packs, then the index.

        Raises:
            StorageError: Something could not be.
        """
        for line in self._lines.values():
            line.finish()
        with self._lock:
            self._check()
        self._write_index(1, 1)

    def abort(self, *, keep: bool = False) -> None:
        """Drop the packs under construction. What is durable already gets its index, as far as that can be done, so
        that the next backup finds it; nobody else ever looks for it.

        Args:
            keep: Make the chunks taken in durable before, unless something failed in the repository.
        """
        with self._lock:
            keep = keep and self._failure is None
        self.fail(StateError("the session was aborted"))
        for class_, line in self._lines.items():
            if keep and class_ == PackClass.DATA:
                line.finish()
            else:
                line.abort()
        with suppress(SfasyncError):  # then these packs are left-overs
            self._write_index(1, 1)

    def fail(self, error: BaseException) -> None:
        """Let nothing more be stored; the first failure is the one that is told."""
        with self._lock:
            self._failure = self._failure or error

    def _closed(self, pack: Pack) -> None:
        """A pack is durable."""
        with self._lock:
            self._unindexed.append(pack)
        self._write_index(INDEX_PACKS, INDEX_BLOBS)

    def _write_index(self, packs: int, blobs: int) -> None:
        """Write an index object, if there are as many packs or blobs that need one."""
        with self._lock:
            waiting = sum(len(pack.blobs) for pack in self._unindexed)
            if len(self._unindexed) < packs and waiting < blobs:
                return
            covered, self._unindexed = self._unindexed, []
        index = secrets.token_bytes(16)
        key = index_key(index)
        payload = encode_index(covered)
        self._store.put(key, encode(ObjectKind.INDEX, key, self._repository, payload))
        self._locator.add(index, IndexReader(memoryview(payload), key))
        with self._lock:
            self._own.difference_update((blob.kind, blob.name, blob.raw) for pack in covered for blob in pack.blobs)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
