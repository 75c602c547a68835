"""An object store in memory: for tests that need many small repositories, and for faults of the store itself."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable

from sfasync.errors import IntegrityError, ObjectExistsError, ObjectMissingError
from sfasync.interfaces import Buffer

Keys = list[str]
Stamps = list[tuple[str, str | None]]


class MemoryStore:
    """An `ObjectStore`.

    Attributes:
        before: Called with the name of each operation and the key; may raise.
        clock: Tells the time.
    """

    location = "memory"

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects = {} if objects is None else objects
        self.holds: set[str] = set()
        self.times: dict[str, float] = {}
        self.clock: Callable[[], float] = time.time
        self.before: Callable[[str, str], None] = lambda operation, key: None
        self._lock = threading.Lock()

    def put(self, key: str, data: Buffer) -> None:
        self.before("put", key)
        with self._lock:
            if key in self.objects:
                raise ObjectExistsError(f"{key} exists already", path=key)
            self.objects[key] = bytes(data)
            self.times[key] = self.clock()

    def writer(self, key: str) -> MemoryWriter:
        return MemoryWriter(self, key)

    def hold(self, key: str, data: Buffer) -> MemoryHold:
        self.put(key, data)
        self.holds.add(key)
        return MemoryHold(self, key)

    def held(self, key: str) -> bool:
        return key in self.holds

    def get(self, key: str, *, limit: int) -> bytes:
        self.before("get", key)
        data = self._find(key)
        if len(data) > limit:
            raise IntegrityError(f"{key} has {len(data)} bytes", path=key)
        return data

    def read_into(self, key: str, offset: int, buffer: memoryview) -> int:
        self.before("read", key)
        piece = self._find(key)[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    def size(self, key: str) -> int:
        return len(self._find(key))

    def modified(self, key: str) -> float:
        self._find(key)
        return self.times[key]

    def list(self, prefix: str) -> Keys:
        self.before("list", prefix)
        return sorted(key for key in self.objects if key.startswith(prefix))

    def stamps(self, prefix: str) -> Stamps:
        return [(key, hashlib.sha256(self.objects[key]).hexdigest()) for key in self.list(prefix)]

    def delete(self, key: str) -> None:
        self.before("delete", key)
        self.objects.pop(key, None)

    def _find(self, key: str) -> bytes:
        try:
            return self.objects[key]
        except KeyError:
            raise ObjectMissingError(f"{key} is missing", path=key) from None


class MemoryWriter:
    def __init__(self, store: MemoryStore, key: str) -> None:
        self._store = store
        self._key = key
        self._data = bytearray()

    @property
    def position(self) -> int:
        return len(self._data)

    def write(self, data: Buffer) -> None:
        self._store.before("write", self._key)
        self._data += data

    def commit(self) -> None:
        self._store.put(self._key, self._data)

    def abort(self) -> None:
        pass


class MemoryHold:
    def __init__(self, store: MemoryStore, key: str) -> None:
        self._store = store
        self._key = key

    def release(self) -> None:
        self._store.holds.discard(self._key)
