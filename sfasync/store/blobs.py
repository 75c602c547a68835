"""Reading blobs: found, fetched, unsealed and checked against their digests before anybody sees them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..errors import IntegrityError, ObjectMissingError, StorageError
from ..interfaces import Buffer, ObjectStore
from .cache import Location
from .locator import Locator
from .names import pack_key
from .objects import damaged
from .packs import Blob
from .scratch import Scratch
from .seal import BlobKind, unseal
from .tree import content_digest, page_digest

_sealed = Scratch()
_opened = Scratch()

_Failure = tuple[Location, IntegrityError | StorageError]
OnBad = Callable[[Location, Blob, IntegrityError | StorageError], None]
"""Called with where a copy of a blob is, what it should be, and what is wrong with it."""


class BlobReader:
    """Reads blobs of a repository. Calls block; any thread may make them.

    Args:
        store: Where the packs are.
        locator: Knows where in them.
        on_bad: Told of each copy that could not be read, whether there was another one or not.
    """

    def __init__(
        self, store: ObjectStore, locator: Locator, on_bad: OnBad = lambda location, blob, error: None
    ) -> None:
        self._store = store
        self._locator = locator
        self._on_bad = on_bad

    def read(self, kind: BlobKind, name: bytes, length: int) -> bytes:
        """A blob of `length` bytes.

        Raises:
            ObjectMissingError: No index knows it, or the packs said to have it are gone.
            IntegrityError: Every copy of it is damaged.
        """
        data = bytearray(length)
        self.read_into(kind, name, memoryview(data))
        return bytes(data)

    def read_into(self, kind: BlobKind, name: bytes, buffer: memoryview) -> None:
        """A blob as long as the buffer, into it. After an error the buffer's content is undefined.

        What is not where the cache says may have been moved meanwhile, or the cache may be wrong: the index is looked
        at once more, then read anew, before the blob is given up.

        Raises:
            ObjectMissingError, IntegrityError: As `read`.
            StorageError: No copy could be read.
        """
        used = self._locator.cache
        failures: list[_Failure] = []
        for prepare in (None, self._locator.sync, partial(self._locator.rebuild_once, used)):
            if prepare is not None and prepare() is False:
                break  # the index was read anew before what was tried: it would say the same
            is_read, bad = self._try_all(kind, name, buffer)
            failures += bad
            if is_read:
                break
        for location, error in bad:
            self._on_bad(location, Blob(kind, name, len(buffer), location.offset, location.length), error)
        if is_read:
            return
        if not failures:
            raise ObjectMissingError(f"{describe(kind, name)} is in no pack of {self._store.location}")
        raise failures[0][1]

    def _try_all(self, kind: BlobKind, name: bytes, buffer: memoryview) -> tuple[bool, list[_Failure]]:
        """Try one copy after the other; tells whether one was read, and which were not."""
        failures: list[_Failure] = []
        for location in self._locator.locations(kind, name, len(buffer)):
            try:
                self._read_at(location, kind, name, buffer)
            except (IntegrityError, StorageError) as error:
                failures.append((location, error))
            else:
                return True, failures
        return False, failures

    def _read_at(self, location: Location, kind: BlobKind, name: bytes, buffer: memoryview) -> None:
        key = pack_key(location.pack)
        if location.length == len(buffer):
            self._fetch(key, location.offset, buffer)
            check(kind, name, buffer, key)
            return
        sealed = _sealed.take(location.length)
        self._fetch(key, location.offset, sealed)
        open_blob(kind, name, sealed, buffer, key)

    def _fetch(self, key: str, offset: int, buffer: memoryview) -> None:
        if self._store.read_into(key, offset, buffer) != len(buffer):
            raise damaged(key, "is shorter than the index says")


def open_blob(kind: int, name: bytes, sealed: Buffer, buffer: memoryview, key: str) -> None:
    """Fill the buffer with the bytes of a blob, unsealed and checked.

    Args:
        kind, name: Which blob; it is as long as the buffer.
        sealed: Its sealed bytes.
        buffer: Its content is undefined after an error.
        key: The pack they come from, for messages.

    Raises:
        IntegrityError: They are not that blob.
    """
    try:
        unseal(sealed, buffer)
    except IntegrityError as error:
        raise IntegrityError(f"{describe(kind, name)} in {key} is damaged: {error}", path=key) from error
    check(kind, name, buffer, key)


def check_sealed(kind: int, name: bytes, length: int, sealed: Buffer, key: str) -> None:
    """See that sealed bytes are those of a blob of `length` bytes; otherwise as `open_blob`."""
    if len(sealed) == length:
        check(kind, name, sealed, key)
    else:
        open_blob(kind, name, sealed, _opened.take(length), key)


def check(kind: int, name: bytes, data: Buffer, key: str) -> None:
    """See that bytes have the digest that names them.

    Raises:
        IntegrityError: They have another.
    """
    found = page_digest(data) if kind == BlobKind.PAGE else content_digest(data)
    if found != name:
        raise IntegrityError(f"{describe(kind, name)} in {key} is damaged: its bytes have another digest", path=key)


def describe(kind: int, name: bytes) -> str:
    """A blob, for messages: ``chunk 1f00…``."""
    return f"{BlobKind(kind).name.lower()} {name.hex()}"
