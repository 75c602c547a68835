"""The eleven calls of SFVDDK, asynchronous: names, order and units of the C kit, without its prefix.

::

    from sfasync import TableResolver, vddk

    vddk.init()
    access = vddk.Access(resolver=TableResolver.from_file("disks.toml"))
    connection = await vddk.connect(access, mode="nbdssl", vm_id="2786761839857", snapshot_id="5e1c")
    disk = await vddk.open(connection, "ide0")
    data = await vddk.read(disk, 0, 8)                 # sectors of 512 bytes
    await vddk.close(disk)
    await vddk.disconnect(connection)
    vddk.exit()

`sfasync.vddk.blocking` has the same calls for programs without an event loop. A call in the wrong order is a
`StateError`, a number or buffer that does not fit an `ArgumentError` (a ValueError); neither touches anything.

Any number of connections, and of reads and writes on each disk, may be under way at once. A connection and its disks
belong to the event loop they were made in; `init` and `exit` are for the whole process.
"""

from __future__ import annotations

from typing import Final, get_args, overload

from ..credentials import AccessKey, Password
from ..errors import ArgumentError, SfasyncError, StateError, printable
from ..interfaces import Buffer, CleaningResolver, EndpointResolver, ReleasingResolver
from ..models import NO_RETRY, Limits, Retry, Timeouts, TransportMode
from ..tasks import first_cause
from .access import Access
from .handles import SECTOR, Connection, Disk
from .journal import Journal, Leftover

__all__ = [
    "SECTOR",
    "Access",
    "AccessKey",
    "Connection",
    "Disk",
    "Password",
    "cleanup",
    "close",
    "connect",
    "disconnect",
    "exit",
    "get_transport_mode",
    "init",
    "list_transport_modes",
    "open",
    "read",
    "write",
]

_MODES: Final[tuple[TransportMode, ...]] = get_args(TransportMode)
_SPELLINGS: Final = {"nbd_ssl": "nbdssl"}  # what the platform's own API calls it
_ID_LIMIT: Final = 1024
"""Characters of an id; the longest known has some 80."""


class _Process:
    """What `init` makes and `exit` ends."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.connections: set[Connection] = set()


_process: _Process | None = None


# --- the process -----------------------------------------------------------------------------------------------------


def init() -> None:
    """The first call of a process. After `exit` it may come again.

    Raises:
        StateError: It was made already.
    """
    global _process
    if _process is not None:
        raise StateError("init needs a process that is not initialised; this one is, exit comes first")
    _process = _Process()


def exit() -> None:  # noqa: A001 - the kit's name
    """The last call of a process.

    Raises:
        StateError: There was no `init`, or a connection is not disconnected.
    """
    global _process
    process = _initialised("exit")
    if process.connections:
        states = ", ".join(f"that to {connection} is {connection.state}" for connection in process.connections)
        raise StateError(f"exit needs all connections disconnected; {states}")
    process.journal.close()
    _process = None


def list_transport_modes() -> tuple[TransportMode, ...]:
    """What can be spoken: ``("nbd", "nbdssl")``, plain NBD and NBD over TLS.

    Raises:
        StateError: There was no `init`.
    """
    _initialised("list_transport_modes")
    return _MODES


async def cleanup(access: Access) -> int:
    """Close and forget what processes of this user that are dead had connected to through the same addresses.

    What living processes have, this one included, is left alone. May be called at any time, and again after a failure;
    cancelling leaves the rest for the next time.

    Returns:
        Connections and disks that were left over.

    Raises:
        StateError: There was no `init`.
        UsageError: Nobody tells where disks are served.
        StorageError: The journal cannot be read or written.
        SfasyncError: The resolver could not give something back; the others were dealt with.
    """
    journal = _initialised("cleanup").journal
    failures: list[SfasyncError] = []
    async with access.endpoints() as resolver:
        leftovers = await journal.leftovers(access)
        for leftover in leftovers:
            try:
                await _clean(leftover, resolver, journal)
            except SfasyncError as error:
                failures.append(error)
        if isinstance(resolver, CleaningResolver):
            try:
                await resolver.cleanup()
            except SfasyncError as error:
                failures.append(error)
    if failures:
        raise first_cause(BaseExceptionGroup("cleanup", failures))
    return len(leftovers)


async def _clean(leftover: Leftover, resolver: EndpointResolver, journal: Journal) -> None:
    request = leftover.entry.request
    if request is not None and isinstance(resolver, ReleasingResolver):
        await resolver.release(request)
    await journal.drop(leftover)


# --- connections -----------------------------------------------------------------------------------------------------


async def connect(
    access: Access,
    *,
    mode: str,
    vm_id: str,
    snapshot_id: str | None = None,
    server_id: str | None = None,
    resource_id: str | None = None,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
    retry: Retry | None = None,
) -> Connection:
    """Begin to work with a VM. No server is talked to before a disk is opened. Cancelling leaves nothing behind.

    Args:
        access: How the platform is reached, and who tells where disks are served.
        mode: ``nbd``, or ``nbdssl`` for TLS; a disk that is served otherwise is refused. ``nbd_ssl`` means the same.
        vm_id: The VM, as the platform numbers it.
        snapshot_id: The snapshot to read; None for the disks themselves, to be written.
        server_id: The VM's id on the management plane, for resolvers that want it.
        resource_id: The platform's lease on the VM, likewise.
        limits: `connections` to each disk, where its server allows several, and `requests` on each of these.
        timeouts: Seconds after which a server is given up.
        retry: How faults of servers are met. None for what suits the disks: those of a snapshot are read as in a
            backup, which survives an outage of a minute. With those that are written nothing is repeated, because a
            write that was sent twice may reach the disk late, over what the same program has written there since; one
            that writes each sector once gives `Retry()`.

    Raises:
        StateError: There was no `init`.
        ArgumentError: The mode is not known, or an id is empty.
        UsageError: Nobody tells where disks are served.
        StorageError: The connection cannot be registered for `cleanup`.
    """
    process = _initialised("connect")
    connection = Connection(
        process.journal,
        access,
        mode=_mode(mode),
        vm_id=_id("VM", vm_id),
        snapshot_id=_optional_id("snapshot", snapshot_id),
        server_id=_optional_id("server", server_id),
        resource_id=_optional_id("resource", resource_id),
        limits=limits or Limits(),
        timeouts=timeouts or Timeouts(),
        retry=retry or (NO_RETRY if snapshot_id is None else Retry()),
    )
    process.connections.add(connection)
    try:
        await connection.connect()
    except BaseException:
        process.connections.discard(connection)
        raise
    return connection


async def disconnect(connection: Connection) -> None:
    """End the work with a VM, whose disks are closed. The connection is left in every case; cancelling only waits less.

    Raises:
        StateError: It is disconnected already, or a disk is not closed.
        PlatformError: The lease on the VM could not be given back; it runs out by itself, and `cleanup` tries again.
        StorageError: It could not be struck from the journal; `cleanup` will do it when this process has ended.
    """
    connection.require_connected("disconnect")
    connection.require_no_disk("disconnect")
    try:
        await connection.disconnect()
    finally:
        if _process is not None:
            _process.connections.discard(connection)


# --- disks -----------------------------------------------------------------------------------------------------------


async def open(connection: Connection, disk_id: str) -> Disk:  # noqa: A001 - the kit's name
    """Open a disk: for reading if the connection is one to a snapshot, otherwise for writing as well.

    Cancelling leaves nothing behind.

    Raises:
        StateError: The connection is not connected, or has this disk open.
        ArgumentError: The id is empty.
        UsageError: The resolver does not know the disk, or it is served in another mode than the connection's.
        TlsError: The server is not who it should be.
        NbdError: The server cannot be reached, or does not have the disk.
        StorageError: The disk cannot be registered for `cleanup`.
    """
    connection.require_connected("open")
    known = connection.disks.get(_id("disk", disk_id))
    if known is not None:
        raise StateError(f"open needs a disk that is closed; {known} is {known.state}", disk=disk_id)
    disk = Disk(connection, disk_id)
    connection.disks[disk_id] = disk
    await disk.open()
    return disk


def get_transport_mode(disk: Disk) -> TransportMode:
    """What is spoken with the server of an open disk: ``nbd`` or ``nbdssl``.

    Raises:
        StateError: The disk is not open.
    """
    disk.require_open("get_transport_mode")
    return disk.mode


@overload
async def read(disk: Disk, start_sector: int, sector_count: int, buffer: None = None) -> bytes: ...


@overload
async def read(disk: Disk, start_sector: int, sector_count: int, buffer: bytearray | memoryview) -> None: ...


async def read(
    disk: Disk, start_sector: int, sector_count: int, buffer: bytearray | memoryview | None = None
) -> bytes | None:
    """Read sectors of 512 bytes: into a buffer of exactly their length, or as new bytes. Any number at once.

    The buffer belongs to the call until it returns or raises, and is not touched after that, cancelled or not.

    Raises:
        StateError: The disk is not open.
        ArgumentError: The range is not inside the disk, not in multiples that the server takes, or the buffer does not
            fit: another length, read-only, not plain bytes.
        RequestError: The server could not read, and requests are not repeated.
        BadBlockError: The server could not read, however often it was asked; names the first sector that it fails on.
        NbdError, TlsError: The connection to the server is lost, and was not replaced as `retry` allows.
    """
    if buffer is None:
        return await disk.read(start_sector, sector_count)
    await disk.read_into(start_sector, sector_count, buffer)
    return None


async def write(disk: Disk, start_sector: int, buffer: Buffer) -> None:
    """Write a buffer of whole sectors of 512 bytes. Any number at once, to ranges that do not overlap.

    What is written is durable when `close` has returned. The buffer belongs to the call until it returns or raises.
    Cancelling leaves open whether, and how far, it was written.

    Raises:
        StateError: The disk is not open, belongs to a snapshot, or is served read-only.
        ArgumentError: The buffer is not whole sectors or not plain bytes, or the range is not inside the disk, or not
            in multiples that the server takes.
        RequestError: The server could not write.
        NbdError, TlsError: The connection to the server is lost, and was not replaced as `retry` allows; what was
            written is not known.
    """
    await disk.write(start_sector, buffer)


async def close(disk: Disk) -> None:
    """Close a disk: reads and writes under way come to their end, then what was written is made durable.

    The disk is closed in every case. Cancelling ends it at once: calls under way fail, and what was written may not be
    durable.

    Raises:
        StateError: The disk is not open.
        NbdError, TlsError: What was written could not be made durable.
        WritesLostError: A connection was lost, and replaced, but what had been written by way of it may be forgotten;
            with the ranges that have to be written again, to the disk opened anew.
        StorageError: The disk could not be struck from the journal; `cleanup` will do it when this process has ended.
        SfasyncError: The resolver could not give something back; likewise.
    """
    disk.require_open("close")
    await disk.close()


# --- arguments -------------------------------------------------------------------------------------------------------


def _initialised(call: str) -> _Process:
    if _process is None:
        raise StateError(f"{call} needs a process that is initialised; this one is not, init comes first")
    return _process


def _mode(mode: str) -> TransportMode:
    spelled = _SPELLINGS.get(mode, mode)
    for known in _MODES:
        if spelled == known:
            return known
    raise ArgumentError(f"mode '{printable(mode)}' is not known; there are {', '.join(_MODES)}")


def _id(what: str, value: str) -> str:
    if not 0 < len(value) <= _ID_LIMIT or not value.isprintable():
        raise ArgumentError(f"{what} id '{printable(value)}' is none; it needs 1 to {_ID_LIMIT} printable characters")
    return value


def _optional_id(what: str, value: str | None) -> str | None:
    """An id that may be left out; but an empty one is a mistake, which must not turn reading into writing."""
    return None if value is None else _id(what, value)
