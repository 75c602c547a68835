"""The packs of one class that a session fills: several at a time, each in the hands of one thread at a time.

A thread that appends digests the blob, copies it, and waits for the disk with every two MiB that are full. While it
does so, another one takes the next pack. Packs that are full are closed beside that, two at a time::

    thread 1   append ~~~~ seal       append ~~~~     ~ waits for the disk, with the pack in its hands
    thread 2        append ~~~~ seal       append
    closers                    close ~~~~
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final, NamedTuple

from ..errors import SfasyncError, StateError
from ..interfaces import ObjectStore
from ..units import MiB
from ..workers import Workers
from .packs import TARGET_SIZE, Pack, PackClass, PackWriter
from .seal import BlobKind, Sealed

SLOW: Final = 2 * TARGET_SIZE
"""Bytes in a second: packs that fill faster than this are full within half a second, and `flush` leaves them alone."""

_CLOSINGS: Final = 2

_WORTH: Final = 4 * MiB
"""Bytes that every open pack must have before another one is begun: a small backup makes one pack."""


class _Open(NamedTuple):
    """A pack that is being filled.

    Attributes:
        since: When it was begun.
        writer: It.
    """

    since: float
    writer: PackWriter


class PackLine:
    """Fills packs of one class and closes them. Calls block; any thread may make them.

    Args:
        store: Where the repository is.
        repository: Its id.
        class_: What is put into the packs.
        session: Name of the session.
        most: How many may be open at a time.
        closers: Threads for closing packs. They must not be those that call `append`, which waits for them.
        on_close: Gets each pack when it is durable, in one of those threads.
        on_failure: Gets the reason when a pack cannot be closed; what was in it is lost.
    """

    def __init__(
        self,
        store: ObjectStore,
        repository: bytes,
        class_: PackClass,
        session: str,
        *,
        most: int,
        closers: Workers,
        on_close: Callable[[Pack], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._repository = repository
        self._class = class_
        self._session = session
        self._most = most
        self._closers = closers
        self._on_close = on_close
        self._on_failure = on_failure
        self._changed = threading.Condition()  # of what follows
        self._idle: list[_Open] = []
        self._taken: list[_Open] = []  # each by one thread
        self._due: list[_Open] = []  # of those that are taken: to be closed by their thread
        self._beginning = False  # of one more
        self._ended = False
        self._free = threading.BoundedSemaphore(_CLOSINGS)
        self._closings: set[Future[None]] = set()

    def append(self, kind: BlobKind, blobs: Sequence[Sealed]) -> None:
        """Put blobs into one pack, in one go; waits while too many are being closed.

        Raises:
            StateError: The line has ended.
            StorageError: It could not be written; what was in that pack is lost.
        """
        pack = self._take()
        try:
            full = pack.writer.append(kind, blobs)
        except BaseException:
            try:
                pack.writer.abort()
            finally:
                self._let_go(pack)  # whatever happens: `finish` waits for it
            raise
        if not full and self._give_back(pack):
            return
        self._close(pack)
        self._let_go(pack)

    def flush(self, age: float) -> None:
        """Close the open packs that are older than so many seconds and fill slowly, and wait until they are durable, or
        have failed.
        """
        with self._changed:
            latest = time.monotonic() - age
            old = [pack for pack in (*self._idle, *self._taken) if pack.since <= latest and self._is_slow(pack)]
            ours = [pack for pack in old if pack in self._idle]
            self._due += [pack for pack in old if pack in self._taken]
            self._idle = [pack for pack in self._idle if pack not in ours]
            self._taken += ours
        for pack in ours:
            self._close(pack)
            self._let_go(pack)
        with self._changed:
            self._changed.wait_for(lambda: not self._due)
        if old:
            self._wait()

    def finish(self) -> None:
        """Close what is open and wait until all is durable, or has failed. No blob can be put in any more."""
        for pack in self._end():
            self._close(pack)
        self._wait()

    def abort(self) -> None:
        """Drop what is open and wait for what is being closed."""
        for pack in self._end():
            pack.writer.abort()
        self._wait()

    # --- packs in hands -----------------------------------------------------------------------------------------------

    def _take(self) -> _Open:
        """A pack for this thread alone: of those that are idle the first, so that the others stay small."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._idle or self._may_begin())
            if self._ended:
                raise StateError("the session has ended")
            if self._idle:
                pack = min(self._idle, key=lambda pack: pack.since)
                self._idle.remove(pack)
                self._taken.append(pack)
                return pack
            self._beginning = True
        return self._begin()

    def _may_begin(self) -> bool:
        """Whether another pack is worth it, where all that are open are taken."""
        open_enough = self._beginning or len(self._taken) >= self._most
        return not open_enough and all(pack.writer.size >= _WORTH for pack in self._taken)

    def _begin(self) -> _Open:
        """A new pack for this thread. The others go on meanwhile: its directory may have to be made durable."""
        taken: list[_Open] = []
        try:
            pack = secrets.token_bytes(16)
            writer = PackWriter(self._store, pack, self._repository, self._class, self._session)
            taken.append(_Open(time.monotonic(), writer))
        finally:
            with self._changed:
                self._beginning = False
                self._taken += taken
                self._changed.notify_all()
        return taken[0]

    def _give_back(self, pack: _Open) -> bool:
        """Let another thread have a pack; False if this one is to close it."""
        with self._changed:
            if pack in self._due:
                return False
            self._taken.remove(pack)
            self._idle.append(pack)
            self._changed.notify_all()
        return True

    def _let_go(self, pack: _Open) -> None:
        """Forget a pack that this thread has."""
        with self._changed:
            self._taken.remove(pack)
            if pack in self._due:
                self._due.remove(pack)
            self._changed.notify_all()

    def _is_slow(self, pack: _Open) -> bool:
        together = len(self._idle) + len(self._taken)  # they share what comes
        return pack.writer.size * together < (time.monotonic() - pack.since) * SLOW

    def _end(self) -> list[_Open]:
        """Let no thread take a pack any more; gives those that are open."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._taken or self._beginning))
            left, self._idle = self._idle, []
        return left

    # --- closing ------------------------------------------------------------------------------------------------------

    def _close(self, pack: _Open) -> None:
        """Begin to close a pack; waits while too many are being closed. A failure is told, not raised."""
        self._free.acquire()
        try:
            closing = self._closers.submit(self._make_durable, pack.writer)
        except SfasyncError as error:
            self._free.release()
            pack.writer.abort()
            self._on_failure(error)
            return
        self._closings.add(closing)
        closing.add_done_callback(self._closings.discard)

    def _make_durable(self, writer: PackWriter) -> None:
        try:
            self._on_close(writer.close())
        except BaseException as error:
            self._on_failure(error)
            raise
        finally:
            self._free.release()

    def _wait(self) -> None:
        for closing in list(self._closings):
            closing.exception()  # what failed has been told
