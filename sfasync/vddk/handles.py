"""The two handles of the kit, a connection and an open disk, and what may be done in which state.

::

    connection   connecting -> connected -> disconnected
    disk         opening    -> open -> closing -> closed
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from enum import StrEnum
from typing import Any, Final

from ..errors import ArgumentError, ExportError, SfasyncError, StateError, StorageError, UsageError, printable
from ..interfaces import Buffer, EndpointResolver, ReleasingResolver
from ..models import EndpointRequest, ExportAddress, Limits, Retry, Timeouts, TransportMode
from ..tasks import finish
from ..transport.export import Export, open_export
from .access import Access
from .journal import Entry, Journal, Registration

_logger = logging.getLogger(__name__)

SECTOR: Final = 512
"""Bytes of a sector, the unit of all offsets and counts of the kit."""

_GIVE_BACK: Final = 10.0
"""Seconds for the resolver and the journal to take note that a disk is closed."""


class State(StrEnum):
    """What may be done with a handle."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Connection:
    """A VM, or a snapshot of one, of which disks can be opened. Belongs to one event loop; made by `vddk.connect`.

    Attributes:
        access: As given.
        mode: What is spoken with its disks.
        vm_id: The VM.
        snapshot_id: The snapshot; None where its disks are opened for writing.
        state: Whether it is connected.
        disks: Its disks that are not closed, by id.
    """

    def __init__(
        self,
        journal: Journal,
        access: Access,
        *,
        mode: TransportMode,
        vm_id: str,
        snapshot_id: str | None,
        server_id: str | None,
        resource_id: str | None,
        limits: Limits,
        timeouts: Timeouts,
        retry: Retry,
    ) -> None:
        self.access = access
        self.mode: TransportMode = mode
        self.vm_id = vm_id
        self.snapshot_id = snapshot_id
        self.state = State.CONNECTING
        self.disks: dict[str, Disk] = {}
        self.journal = journal
        self.limits = limits
        self.timeouts = timeouts
        self.retry = retry
        self._server_id = server_id
        self._resource_id = resource_id
        self._registration: Registration | None = None
        self._resolver: EndpointResolver | None = None
        self._leaving = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Connection to {self}, {self.mode}, {self.state}, {len(self.disks)} disks>"

    def __str__(self) -> str:
        snapshot = f" snapshot '{printable(self.snapshot_id)}'" if self.snapshot_id is not None else ""
        return f"VM '{printable(self.vm_id)}'{snapshot}"

    def require_connected(self, call: str) -> None:
        """Refuse a call in another state.

        Raises:
            StateError: The connection is not connected.
        """
        if self.state is not State.CONNECTED:
            raise StateError(f"{call} needs a connected connection; that to {self} is {self.state}")

    def require_no_disk(self, call: str) -> None:
        """Refuse a call while disks are open.

        Raises:
            StateError: Some are.
        """
        if self.disks:
            states = ", ".join(f"'{printable(disk.id)}' is {disk.state}" for disk in self.disks.values())
            raise StateError(f"{call} needs all disks of {self} closed; {states}")

    def request(self, disk_id: str) -> EndpointRequest:
        """What to ask the resolver for a disk."""
        return EndpointRequest(
            vm_id=self.vm_id,
            disk_id=disk_id,
            snapshot_id=self.snapshot_id,
            server_id=self._server_id,
            resource_id=self._resource_id,
            mode=self.mode,
        )

    def entry(self, disk_id: str | None) -> Entry:
        """What the journal keeps of the connection, or of one of its disks."""
        return Entry(
            pid=os.getpid(),
            scp=self.access.scp,
            hci=self.access.hci,
            vm_id=self.vm_id,
            disk_id=disk_id,
            snapshot_id=self.snapshot_id,
            server_id=self._server_id,
            resource_id=self._resource_id,
            mode=self.mode,
        )

    async def connect(self) -> None:
        """Register; nothing else has to be done before a disk is opened."""
        async with AsyncExitStack() as stack:
            self._resolver = await stack.enter_async_context(self.access.endpoints())
            self._registration = await self.journal.register(self.entry(None))
            self._leaving = stack.pop_all()
        self.state = State.CONNECTED

    async def disconnect(self) -> None:
        """Leave, in every case; see `vddk.disconnect`."""
        self.state = State.DISCONNECTED
        registration, self._registration = self._registration, None
        assert registration is not None, "connected without being registered"
        try:
            await self._leaving.aclose()
        finally:
            await _in_time(self, self.journal.forget(registration))

    @property
    def resolver(self) -> EndpointResolver:
        """Who tells where its disks are served."""
        assert self._resolver is not None, "used before it was connected"
        return self._resolver


class Disk:
    """An open disk. Belongs to the event loop of its connection; made by `vddk.open`.

    Attributes:
        id: Its id within the VM.
        connection: The connection that it was opened on.
        state: Whether it is open.
    """

    def __init__(self, connection: Connection, disk_id: str) -> None:
        self.id = disk_id
        self.connection = connection
        self.state = State.OPENING
        self._registration: Registration | None = None
        self._asked = False
        self._export: Export | None = None
        self._calls = 0  # reads and writes under way
        self._idle: asyncio.Future[None] | None = None
        self._written = False

    def __repr__(self) -> str:
        sectors = f" of {self.sector_count} sectors" if self._export is not None else ""
        return f"<Disk '{printable(self.id)}' of {self.connection}, {self.state}{sectors}, {self._calls} calls>"

    def __str__(self) -> str:
        return f"disk '{printable(self.id)}' of {self.connection}"

    # --- what it is ---

    @property
    def export(self) -> Export:
        assert self._export is not None, "used before it was opened"
        return self._export

    @property
    def size(self) -> int:
        """Bytes."""
        return self.export.size

    @property
    def sector_count(self) -> int:
        """Sectors of 512 bytes."""
        return self.size // SECTOR

    @property
    def read_only(self) -> bool:
        """Whether it is a snapshot's, or its server takes no writes."""
        return self.connection.snapshot_id is not None or self.export.read_only

    @property
    def mode(self) -> TransportMode:
        """What is spoken with its server."""
        return "nbd" if self.export.address.tls is None else "nbdssl"

    # --- opening and closing ---

    async def open(self) -> None:
        """Register, resolve, connect; leaves nothing behind if it fails or is cancelled."""
        connection = self.connection
        try:
            self._registration = await connection.journal.register(connection.entry(self.id))
            address = await self._address()
            self._export = await open_export(
                address,
                connections=connection.limits.connections,
                requests=connection.limits.requests,
                timeouts=connection.timeouts,
                retry=connection.retry,
                contexts=(),
            )
            self._require_whole_sectors()
            self.state = State.OPEN
        except BaseException as error:
            await self._leave(error)
            raise

    async def close(self) -> None:
        """Let calls under way end, flush, leave; see `vddk.close`."""
        self.state = State.CLOSING
        try:
            await self._all_calls()
            await self._flush()
            await self.export.aclose()
        except BaseException as error:
            await self._leave(error)
            raise
        await self._leave()

    async def _address(self) -> ExportAddress:
        connection = self.connection
        self._asked = True  # before it is asked: what it takes has to be given back even if it fails half way
        address = await connection.resolver.resolve(connection.request(self.id))
        found: TransportMode = "nbd" if address.tls is None else "nbdssl"
        if found != connection.mode:
            raise UsageError(
                f"{self} is served at {printable(address.peer)} by {found}, and the connection is of mode "
                f"{connection.mode}; connect with the mode of the address, or correct the address"
            )
        return address

    def _require_whole_sectors(self) -> None:
        if self.size % SECTOR:
            raise ExportError(f"{self} has {self.size} bytes, which are not whole sectors of {SECTOR}")

    async def _all_calls(self) -> None:
        if self._calls:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    async def _flush(self) -> None:
        if self._written and not await self.export.flush():
            _logger.warning("%s: the server has no flush; what was written may not be on stable storage", self)

    async def _leave(self, failure: BaseException | None = None) -> None:
        """Count as closed, whatever happens; what goes wrong after a failure is a note to that."""
        if self._export is not None:
            self._export.abort()
        self.state = State.CLOSED
        self.connection.disks.pop(self.id, None)
        try:
            await _in_time(self, self._give_back())
        except SfasyncError as error:
            if failure is None:
                raise
            failure.add_note(f"also: {type(error).__name__}: {error}")

    async def _give_back(self) -> None:
        registration, self._registration = self._registration, None
        if registration is None:
            return
        journal = self.connection.journal
        try:
            resolver = self.connection.resolver
            if self._asked and isinstance(resolver, ReleasingResolver):
                await resolver.release(self.connection.request(self.id))
        except BaseException:
            journal.let_go(registration)  # whoever cleans up tries again
            raise
        await journal.forget(registration)

    # --- reading and writing ---

    def require_open(self, call: str) -> None:
        """Refuse a call in another state.

        Raises:
            StateError: The disk is not open.
        """
        if self.state is not State.OPEN:
            raise StateError(f"{call} needs an open disk; {self} is {self.state}", disk=self.id)

    @contextmanager
    def _call(self, name: str) -> Iterator[None]:
        """The time of one read or write; its errors name the disk."""
        self.require_open(name)
        self._calls += 1
        try:
            yield
        except SfasyncError as error:
            error.disk = error.disk or self.id
            raise
        finally:
            self._calls -= 1
            if not self._calls and self._idle is not None and not self._idle.done():
                self._idle.set_result(None)

    async def read(self, start_sector: int, sector_count: int) -> bytes:
        """As `vddk.read` without a buffer."""
        with self._call("read"):
            return await self.export.read(*self._range("read", start_sector, sector_count))

    async def read_into(self, start_sector: int, sector_count: int, buffer: bytearray | memoryview) -> None:
        """As `vddk.read` with a buffer."""
        with self._call("read"), _plain_bytes("read", buffer) as view:
            offset, length = self._range("read", start_sector, sector_count)
            if view.readonly:
                raise ArgumentError("read got a buffer that is read-only; it needs one that can be written")
            if len(view) != length:
                raise ArgumentError(
                    f"read of {sector_count} sectors got a buffer of {len(view)} bytes; it needs {length} bytes, such "
                    "as a slice of a memoryview"
                )
            await self.export.read_into(offset, view)

    async def write(self, start_sector: int, buffer: Buffer) -> None:
        """As `vddk.write`."""
        with self._call("write"), _plain_bytes("write", buffer) as view:
            self._require_writable()
            if len(view) % SECTOR:
                raise ArgumentError(f"write got a buffer of {len(view)} bytes; it needs whole sectors of {SECTOR}")
            offset, _ = self._range("write", start_sector, len(view) // SECTOR)
            self._written = True
            await self.export.write(offset, view)

    def _require_writable(self) -> None:
        if self.connection.snapshot_id is not None:
            raise StateError(f"write needs a connection without a snapshot id; {self} is read-only")
        if self.export.read_only:
            raise StateError(f"write needs a server that takes it; {self} is read-only where it is served")

    def _range(self, call: str, start: int, count: int) -> tuple[int, int]:
        """Offset and length in bytes of a range of sectors that is inside the disk."""
        if start < 0 or count < 0 or start + count > self.sector_count:
            raise ArgumentError(
                f"{call} of {count} sectors at sector {start} is not inside the {self.sector_count} sectors of {self}"
            )
        step = max(1, self.export.block_size // SECTOR)
        if start % step or count % step:
            raise ArgumentError(
                f"{call} of {count} sectors at sector {start}: the server of {self} takes multiples of {step} sectors"
            )
        return start * SECTOR, count * SECTOR


@contextmanager
def _plain_bytes(call: str, buffer: Buffer) -> Iterator[memoryview]:
    """A view of a caller's memory as bytes, for the time of one call."""
    with memoryview(buffer) as whole:
        try:
            view = whole.cast("B")
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"{call} got memory of format '{printable(whole.format)}' that is not one row of bytes; it needs "
                "bytes, a bytearray or a contiguous memoryview of one"
            ) from error
        with view:
            yield view


async def _in_time(handle: Connection | Disk, leaving: Coroutine[Any, Any, None]) -> None:
    """Run the end of a handle whatever comes, but not for ever."""
    try:
        await finish(leaving, _GIVE_BACK)
    except TimeoutError as error:
        raise StorageError(f"{handle} is left, but it took more than {_GIVE_BACK:g} s to put that on record") from error
