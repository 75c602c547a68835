"""What this process has connected to, written down, so that a later one can clean up if this one crashes.

Each connection and each open disk is a file of its own in ``$XDG_STATE_HOME/sfasync/vddk``, for its owner alone. It is
durable before anything happens at a server, locked while its process lives, and removed in the end. A file that is not
locked was left by a process that is dead, whatever has become of its process id since.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from ..errors import IntegrityError, ObjectMissingError, printable
from ..files import storage_error
from ..interfaces import Hold
from ..models import EndpointRequest, TransportMode
from ..state import private, state_directory
from ..store.local import LocalStore
from ..tasks import finish
from ..workers import Workers, settled
from .access import Access

_logger = logging.getLogger(__name__)

_KEY = re.compile(r"[0-9a-f]{32}\.json")
_ENTRY_LIMIT = 64 << 10
_FORGET = 10.0
"""Seconds in which an entry must be gone that was made for a caller who no longer waits."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A connection, or a disk of one. Holds no credentials.

    Attributes:
        version: Of this format.
        pid: The process, for people; whether it lives is told by its lock.
        scp, hci: As in its access.
        vm_id, snapshot_id, server_id, resource_id, mode: As in its connection.
        disk_id: The disk; None for the connection.
    """

    version: Literal[1] = 1
    pid: int
    scp: str | None
    hci: str | None
    vm_id: str
    disk_id: str | None
    snapshot_id: str | None
    server_id: str | None
    resource_id: str | None
    mode: TransportMode

    @property
    def request(self) -> EndpointRequest | None:
        """What the resolver was asked for the disk; None for a connection."""
        if self.disk_id is None:
            return None
        return EndpointRequest(
            vm_id=self.vm_id,
            disk_id=self.disk_id,
            snapshot_id=self.snapshot_id,
            server_id=self.server_id,
            resource_id=self.resource_id,
            mode=self.mode,
        )

    def belongs_to(self, access: Access) -> bool:
        return (self.scp, self.hci) == (access.scp, access.hci)


@dataclass(frozen=True, slots=True)
class Registration:
    """An entry of this process."""

    key: str
    hold: Hold


@dataclass(frozen=True, slots=True)
class Leftover:
    """An entry of a process that is dead."""

    key: str
    entry: Entry


class Journal:
    """The entries of all processes of this user. Files are read and written in a thread of its own."""

    def __init__(self) -> None:
        self._workers = Workers(1, "sfasync-vddk")

    def close(self) -> None:
        """Take no more calls."""
        self._workers.close()

    async def register(self, entry: Entry) -> Registration:
        """Write an entry down, durably. Cancelling leaves none behind.

        Raises:
            StorageError: It could not be written.
        """
        future = self._workers.submit(_create, entry)
        try:
            return await settled(future)
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None:
                await finish(self.forget(future.result()), _FORGET)
            raise

    async def forget(self, registration: Registration) -> None:
        """Remove an entry of this process. Cancelling only ends the wait for it.

        Raises:
            StorageError: It could not be removed; it counts as left over.
        """
        await asyncio.shield(asyncio.wrap_future(self._workers.submit(_remove, registration)))

    def let_go(self, registration: Registration) -> None:
        """Leave an entry to be cleaned up later."""
        registration.hold.release()

    async def leftovers(self, access: Access) -> list[Leftover]:
        """The entries that dead processes left, of one access.

        Raises:
            StorageError: The journal cannot be read.
        """
        return await self._workers.run(_leftovers, access)

    async def drop(self, leftover: Leftover) -> None:
        """Remove an entry of a dead process.

        Raises:
            StorageError: It could not be removed.
        """
        await self._workers.run(_delete, leftover.key)


# --- in the thread ---------------------------------------------------------------------------------------------------


def directory() -> Path:
    """Where the journal is.

    Raises:
        StorageError: There is no such place.
    """
    return state_directory("vddk")


def _create(entry: Entry) -> Registration:
    key = f"{secrets.token_hex(16)}.json"
    with closing(_store(private(directory()))) as store:
        return Registration(key, store.hold(key, msgspec.json.encode(entry)))


def _remove(registration: Registration) -> None:
    try:
        _delete(registration.key)
    finally:
        registration.hold.release()


def _delete(key: str) -> None:
    with closing(_store(directory())) as store:
        store.delete(key)


def _leftovers(access: Access) -> list[Leftover]:
    place = directory()
    if not place.exists():
        return []
    found = []
    with closing(_store(private(place))) as store:
        for key in store.list(""):
            entry = _left_over(store, key) if _KEY.fullmatch(key) else None
            if entry is not None and entry.belongs_to(access):
                found.append(Leftover(key, entry))
    return found


def _left_over(store: LocalStore, key: str) -> Entry | None:
    """An entry of a dead process; None for one of a living process, and for a file that is no entry we understand."""
    try:
        if store.held(key):
            return None
        return msgspec.json.decode(store.get(key, limit=_ENTRY_LIMIT), type=Entry)
    except ObjectMissingError:  # another process has just cleaned it up
        return None
    except (IntegrityError, msgspec.DecodeError) as error:
        _logger.warning(
            "%s/%s is left alone, it is no entry of this version: %s", store.location, key, printable(str(error))
        )
        return None


def _store(place: Path) -> LocalStore:
    try:
        return LocalStore(place)
    except OSError as error:
        raise storage_error(error, "open", str(place)) from error
