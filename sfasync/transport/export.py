"""An NBD export as a disk: a `Source` and a `Sink` over one or more connections.

A call is cut into commands that the server takes (block sizes, 32 MiB of payload, 1 GiB of block status), and these are
kept in flight, a window of them at a time, on the connection with the least to do.

The `Export` owns the recipe by which its connections are made.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncGenerator, Generator, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

from ..errors import (
    ExportError,
    NbdError,
    RemoteProtocolError,
    RequestError,
    SfasyncError,
    TlsError,
    UsageError,
    printable,
)
from ..extents import align_down, align_up
from ..interfaces import Buffer
from ..models import ExportAddress, Extent, Limits, Timeouts
from ..nbd import const, wire
from ..nbd.handshake import ExportEntry, ExportInfo, Handshake, listing, querying
from ..nbd.session import Command
from ..nbd.uri import parse_uri
from ..tasks import run_all
from .connection import Connection
from .negotiation import negotiate
from .tls import client_context

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_ZEROS: Final = memoryview(bytes(1 << 20))

_ZERO_PIECE: Final = 128 << 20
"""Bytes of one request to zero or trim. Some servers write zeros out for it, and must show progress in time."""

_ZERO_WINDOW: Final = 512 << 20
"""Bytes of such requests in flight."""

_EXTRA_CONNECT: Final = 3.0
"""Seconds for each connection beyond the first: a server at its limit lets it wait for ever, and we can do without."""


async def open_export(
    address: ExportAddress | str,
    *,
    connections: int | None = None,
    requests: int = 16,
    timeouts: Timeouts | None = None,
    contexts: Sequence[str] = (const.BASE_ALLOCATION,),
    multi_conn: bool | None = None,
) -> Export:
    """Open an export; close it with `aclose`, or use it as an asynchronous context manager.

    Args:
        address: Where it is, or its URI.
        connections: Connections to use, 1 to 16; None for one. More than one only where the server promises that they
            see each other's writes, and as many as the server lets in.
        requests: Most requests in flight on each connection, 1 to 256.
        timeouts: Budgets in seconds.
        contexts: Metadata contexts for `extents` and `block_status`; what the server does not have is left out.
        multi_conn: Whether to use several connections; None to believe the server.

    Raises:
        UsageError: The URI, or a file it names, cannot be used.
        ConnectError: Nobody answers there.
        TlsError: TLS is lacking, refused or demanded, or the server is not who it should be.
        NbdError: The server does not have the export, or describes it in a way that cannot be used.
    """
    if isinstance(address, str):
        address = parse_uri(address)
    limits = Limits(connections=connections or 1, requests=requests)
    recipe = _Recipe(address, requests=limits.requests, timeouts=timeouts or Timeouts(), contexts=contexts)
    first = await recipe.connect()
    export = Export(recipe, first)
    several = bool(first.info.flags & const.FLAG_CAN_MULTI_CONN) if multi_conn is None else multi_conn
    if several and limits.connections > 1:
        try:
            await export.add_connections(limits.connections - 1)
        except BaseException:
            export.abort()
            raise
    return export


async def list_exports(address: ExportAddress | str, *, timeouts: Timeouts | None = None) -> list[ExportEntry]:
    """The exports that a server lists; the export that the address names plays no part.

    Raises:
        ExportError: The server does not list its exports.
        NbdError, TlsError, UsageError: As `open_export`.
    """
    address = parse_uri(address) if isinstance(address, str) else address
    handshake = listing(printable(address.peer), tls=address.tls_style)
    return await _ask(address, handshake, timeouts or Timeouts())


async def query_export(
    address: ExportAddress | str, name: str | None = None, *, timeouts: Timeouts | None = None
) -> ExportInfo:
    """What a server says of an export and the metadata contexts it has, without opening it.

    Args:
        address: The server, and the export.
        name: Another export of that server.
        timeouts: Budgets in seconds.

    Raises:
        ExportError: The server does not have the export, or is too old to tell.
        NbdError, TlsError, UsageError: As `open_export`.
    """
    address = parse_uri(address) if isinstance(address, str) else address
    handshake = querying(
        printable(address.peer), tls=address.tls_style, export=address.export if name is None else name
    )
    return await _ask(address, handshake, timeouts or Timeouts())


async def _ask(address: ExportAddress, handshake: Handshake[_T], timeouts: Timeouts) -> _T:
    context = None if address.tls is None else client_context(address.tls)
    stream, answer = await negotiate(address, handshake, context=context, timeout=timeouts.connect)
    stream.close()
    return answer


class _Recipe:
    """How the connections of an export are made."""

    def __init__(self, address: ExportAddress, *, requests: int, timeouts: Timeouts, contexts: Sequence[str]) -> None:
        self.address = address
        self.requests = requests
        self.timeouts = timeouts
        self._contexts = tuple(contexts)
        self._context: ssl.SSLContext | None = None if address.tls is None else client_context(address.tls)

    async def connect(self) -> Connection:
        return await Connection.open(
            self.address,
            context=self._context,
            contexts=self._contexts,
            requests=self.requests,
            timeouts=self.timeouts,
        )


class Export:
    """An open export: a `Source` and a `Sink`. Belongs to one event loop; made by `open_export`.

    Any number of calls may be under way. Cancelling a read frees its memory at once; the reply is read and dropped.
    Cancelling a write, or anything else that changes the disk, leaves open whether that happened; if data was on the
    way out, the call waits up to a second for it to leave.

    When a connection is lost, the calls that used it fail with a `ConnectionLostError`.
    """

    def __init__(self, recipe: _Recipe, first: Connection) -> None:
        self.info = first.info
        self._recipe = recipe
        self._connections = [first]
        self._peer = printable(recipe.address.peer)
        self._warned = False
        sizes = first.info.block_sizes
        self._minimum = sizes.minimum if sizes else 1
        maximum = min(sizes.maximum, const.PORTABLE_PAYLOAD) if sizes else const.PORTABLE_PAYLOAD
        self._payload = align_down(maximum, self._minimum)
        self._effect = min(align_down(sizes.maximum, self._minimum), _ZERO_PIECE) if sizes else _ZERO_PIECE

    def __repr__(self) -> str:
        return f"<Export {self.info.name!r} of {self.size} bytes, {self._connections}>"

    # --- what it is ---

    @property
    def address(self) -> ExportAddress:
        return self._recipe.address

    @property
    def size(self) -> int:
        return self.info.size

    @property
    def block_size(self) -> int:
        """The minimum block size in bytes; offsets and lengths are multiples of it. 1 if the server named none."""
        return self._minimum

    @property
    def preferred_block_size(self) -> int:
        """The alignment in bytes that the server likes best."""
        return self.info.block_sizes.preferred if self.info.block_sizes else max(self._minimum, 4096)

    @property
    def maximum_block_size(self) -> int:
        """The largest payload in bytes that one request carries; longer calls are cut."""
        return self._payload

    @property
    def description(self) -> str:
        return self.info.description

    @property
    def contexts(self) -> tuple[str, ...]:
        """The metadata contexts that `block_status` can be asked for."""
        return tuple(self.info.contexts)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return sum(connection.alive for connection in self._connections)

    @property
    def read_only(self) -> bool:
        return self._has(const.FLAG_READ_ONLY)

    @property
    def can_flush(self) -> bool:
        return self._has(const.FLAG_SEND_FLUSH)

    @property
    def can_fua(self) -> bool:
        return self._has(const.FLAG_SEND_FUA)

    @property
    def can_trim(self) -> bool:
        return self._has(const.FLAG_SEND_TRIM)

    @property
    def can_zero(self) -> bool:
        return self._has(const.FLAG_SEND_WRITE_ZEROES)

    @property
    def can_fast_zero(self) -> bool:
        return self._has(const.FLAG_SEND_FAST_ZERO)

    @property
    def can_cache(self) -> bool:
        return self._has(const.FLAG_SEND_CACHE)

    @property
    def can_multi_conn(self) -> bool:
        return self._has(const.FLAG_CAN_MULTI_CONN)

    def _has(self, flag: int) -> bool:
        return bool(self.info.flags & flag)

    # --- reading ---

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole buffer with the bytes from `offset`.

        The buffer belongs to the export until the call returns or raises, and is not touched after that.

        Raises:
            UsageError: The range is not inside the export or not on block boundaries, or the buffer is read-only.
            RequestError: The server could not read.
            NbdError, TlsError: The connection is lost.
        """
        view = memoryview(buffer).cast("B")
        try:
            if view.readonly:
                raise UsageError("a read needs a buffer that can be written to")
            self._check("read", offset, len(view))
            await self._run(self._pieces(const.CMD_READ, offset, view))
        finally:
            view.release()

    async def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset`; allocates and copies, for small things. Otherwise as `read_into`."""
        self._check("read", offset, length)
        buffer = bytearray(length)
        await self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    async def cache(self, offset: int, length: int) -> bool:
        """Ask the server to have a range at hand; False if it does not offer that. As `read_into` otherwise."""
        self._check("cache", offset, length)
        if not self.can_cache:
            return False
        await self._run(self._ranges(const.CMD_CACHE, offset, length, self._payload))
        return True

    # --- writing ---

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write all bytes at `offset`; with `fua` they are durable on return.

        The buffer belongs to the export until the call returns or raises, and is not touched after that.

        Raises:
            UsageError: The range is not inside the export or not on block boundaries.
            ExportError: The export is read-only, or cannot make anything durable as asked.
            RequestError: The server could not write.
            NbdError, TlsError: The connection is lost; what was written is not known.
        """
        view = memoryview(data).cast("B")
        try:
            self._check_writable("write", offset, len(view))
            await self._run(self._pieces(const.CMD_WRITE, offset, view, self._fua(fua)))
        finally:
            view.release()
        await self._settle(fua)

    async def zero(self, offset: int, length: int, *, punch: bool = True, fua: bool = False) -> None:
        """Make a range of any length read as zeros, without sending data where the server can.

        Args:
            offset: First byte.
            length: Bytes.
            punch: Whether the server may free the space.
            fua: Whether the zeros are durable on return.

        Raises:
            As `write`.
        """
        self._check_writable("zero", offset, length)
        flags = self._fua(fua)
        if self.can_zero:
            flags |= 0 if punch else const.CMD_FLAG_NO_HOLE
            commands = self._ranges(const.CMD_WRITE_ZEROES, offset, length, self._effect, flags)
            await self._run(commands, _ZERO_WINDOW // self._effect)
        else:
            await self._run(self._written_zeros(offset, length, flags))
        await self._settle(fua)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> bool:
        """Tell the server that a range is not needed any more: its bytes may be anything then. False if not offered.

        Raises:
            As `write`.
        """
        self._check_writable("trim", offset, length)
        if not self.can_trim:
            return False
        commands = self._ranges(const.CMD_TRIM, offset, length, self._effect, self._fua(fua))
        await self._run(commands, _ZERO_WINDOW // self._effect)
        await self._settle(fua)
        return True

    async def flush(self) -> bool:
        """Make every finished write durable; False if the server does not offer that.

        Raises:
            RequestError: The server could not; what is durable is not known.
            NbdError, TlsError: The connection is lost.
        """
        if not self.can_flush:
            return False
        if self.can_multi_conn or len(self._connections) == 1:
            # One flush covers the writes of all connections (proto.md, "Transmission flags").
            await self._run(self._one(Command(const.CMD_FLUSH)))
        else:
            # Several are used against the server's word: each needs its own, a dead one's writes are lost to us.
            for connection in self._connections:
                await _Call([connection], self._one(Command(const.CMD_FLUSH)), 1).run()
        return True

    def _fua(self, wanted: bool) -> int:
        if wanted and not self.can_fua and not self.can_flush:
            raise ExportError(f"{self._peer}: the server offers neither FUA nor flush; nothing can be made durable")
        return const.CMD_FLAG_FUA if wanted and self.can_fua else 0

    async def _settle(self, fua: bool) -> None:
        if fua and not self.can_fua:
            await self.flush()

    # --- block status ---

    async def extents(self, offset: int = 0, length: int | None = None) -> AsyncGenerator[Extent, None]:
        """What the server says of a range without reading it: adjacent extents, in order, covering it exactly.

        Memory does not grow with the disk. Where the server cannot say, the rest is one extent of data, and a warning
        is logged, once.

        Raises:
            UsageError: The range is not inside the export.
            NbdError, TlsError: The connection is lost.
        """
        length = self.size - offset if length is None else length
        self._check_inside("block status", offset, length)
        position, end = offset, offset + length
        try:
            if const.BASE_ALLOCATION in self.info.contexts:
                async for start, count, flags in self.block_status(const.BASE_ALLOCATION, offset, length):
                    zero, hole = bool(flags & const.STATE_ZERO), bool(flags & const.STATE_HOLE)
                    yield Extent(start, count, zero=zero, hole=hole)
                    position = start + count
        except RequestError as error:
            if not self._warned:
                self._warned = True
                _logger.warning("%s: no block status, so everything is read: %s", self._peer, error)
        if position < end:
            yield Extent(position, end - position)

    async def block_status(self, context: str, offset: int, length: int) -> AsyncGenerator[tuple[int, int, int], None]:
        """What a metadata context says of a range: (offset, length, flags), adjacent, in order, covering it exactly.

        Raises:
            UsageError: The context was not selected when the export was opened, or the range is not inside it.
            RequestError: The server refused.
            NbdError, TlsError: The connection is lost.
        """
        if context not in self.info.contexts:
            raise UsageError(f"{self._peer}: metadata context {context!r} was not selected; there are {self.contexts}")
        self._check_inside("block status", offset, length)
        position, end = offset, offset + length
        while position < end:
            start = align_down(position, self._minimum)
            stop = align_up(min(end, start + const.MAX_BLOCK_STATUS_RANGE), self._minimum)
            command = Command(const.CMD_BLOCK_STATUS, start, stop - start)
            await self._run(self._one(command))
            assert command.status is not None, "a block status without status"
            try:
                for at, count, flags in wire.decode_descriptors(command.status[context], start, min(stop, end)):
                    first = max(at, position)
                    if first < at + count:
                        yield first, at + count - first, flags
                        position = at + count
            except RemoteProtocolError as error:
                failure = RemoteProtocolError(f"{self._peer}: {error}", offset=position)
                self.abort(failure)
                raise failure from error

    # --- the end ---

    async def aclose(self) -> None:
        """Close all connections; calls under way fail. Takes at most the time for closing. Idempotent."""
        await asyncio.gather(*(connection.aclose() for connection in self._connections))

    def abort(self, error: SfasyncError | None = None) -> None:
        """End all connections without a word; calls under way fail, with `error` if that is given."""
        for connection in self._connections:
            connection.abort(error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # --- connections ---

    async def add_connections(self, count: int) -> None:
        """Open further connections, as many of `count` as the server lets in within a short time.

        Raises:
            ExportError: The server describes the export differently on one of them.
        """
        await run_all(self._add_connection() for _ in range(count))

    async def _add_connection(self) -> None:
        try:
            async with asyncio.timeout(_EXTRA_CONNECT):
                connection = await self._recipe.connect()
        except (NbdError, TlsError, TimeoutError) as error:
            _logger.info("%s: one connection less: %s", self._peer, error)
            return
        self._connections.append(connection)
        mine, theirs = self.info, connection.info
        if (mine.size, mine.flags, mine.block_sizes) != (theirs.size, theirs.flags, theirs.block_sizes):
            raise ExportError(f"{self._peer}: size, flags or block sizes differ between two connections")

    # --- commands ---

    def _check(self, what: str, offset: int, length: int) -> None:
        self._check_inside(what, offset, length)
        if offset % self._minimum or length % self._minimum:
            raise UsageError(
                f"{what} of {length} bytes at {offset}: the minimum block size of {self._peer} is {self._minimum} bytes"
            )

    def _check_inside(self, what: str, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise UsageError(
                f"{what} of {length} bytes at {offset} is not inside the {self.size} bytes of {self._peer}"
            )

    def _check_writable(self, what: str, offset: int, length: int) -> None:
        self._check(what, offset, length)
        if self.read_only:
            raise ExportError(f"{self._peer}: the export is read-only")

    def _pieces(self, kind: int, offset: int, view: memoryview, flags: int = 0) -> Generator[Command, None, None]:
        """Commands with payload for the bytes of `view`."""
        for start in range(0, len(view), self._payload):
            piece = view[start : start + self._payload]
            yield Command(kind, offset + start, len(piece), flags=flags, buffer=piece)

    def _ranges(self, kind: int, offset: int, length: int, most: int, flags: int = 0) -> Generator[Command, None, None]:
        """Commands without payload for a range."""
        end = offset + length
        while offset < end:
            count = min(end - offset, most)
            yield Command(kind, offset, count, flags=flags)
            offset += count

    def _written_zeros(self, offset: int, length: int, flags: int) -> Generator[Command, None, None]:
        most = min(self._payload, len(_ZEROS))
        for command in self._ranges(const.CMD_WRITE, offset, length, most, flags):
            command.buffer = _ZEROS[: command.length]
            yield command

    def _one(self, command: Command) -> Generator[Command, None, None]:
        yield command

    async def _run(self, commands: Generator[Command, None, None], window: int | None = None) -> None:
        window = window or self._recipe.requests * len(self._connections)
        await _Call(self._connections, commands, window).run()


class _Call:
    """The commands of one call of the export, a window of them in flight at a time.

    The first failure stops the call: nothing new is sent, the others are abandoned. It ends, however it does, when no
    connection holds memory of it any more.
    """

    def __init__(
        self, connections: Sequence[Connection], commands: Generator[Command, None, None], window: int
    ) -> None:
        self._connections = connections
        self._commands = commands
        self._window = window
        self._out: dict[Command, Connection] = {}
        self._stopped = False
        self._error: SfasyncError | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Raises the first error. Cancelling abandons what is in flight."""
        try:
            self._fill()
            if self._out:
                await self._ended
        except asyncio.CancelledError:
            self._stop()
            await self._memory_free()
            raise
        finally:
            self._commands.close()  # it holds a view of the caller's memory
        if self._error is not None:
            raise self._error

    def _fill(self) -> None:
        """Send as much as the window allows."""
        while not self._stopped and len(self._out) < self._window:
            command = next(self._commands, None)
            if command is None:
                self._stopped = True
                return
            connection = self._least_loaded()
            try:
                connection.submit(command, self._done)
            except SfasyncError as error:
                self._fail(error)
            else:
                self._out[command] = connection

    def _least_loaded(self) -> Connection:
        """The living connection with the least to do; where none lives, one that says why."""
        if len(self._connections) == 1:
            return self._connections[0]
        alive = [connection for connection in self._connections if connection.alive]
        return min(alive, key=_load) if alive else self._connections[-1]

    def _done(self, command: Command) -> None:
        """The callback of each command."""
        del self._out[command]
        if command.error is not None:
            self._fail(command.error)
        self._fill()
        if not self._out and not self._ended.done():
            self._ended.set_result(None)

    def _fail(self, error: SfasyncError) -> None:
        if self._error is None:
            self._error = error
            self._stop()

    def _stop(self) -> None:
        self._stopped = True
        for command, connection in list(self._out.items()):
            connection.abandon(command)

    async def _memory_free(self) -> None:
        """Wait, whatever comes, for payloads on their way out: a second at most, then their connection is aborted."""
        while self._out:
            self._ended = asyncio.get_running_loop().create_future()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([self._ended])


def _load(connection: Connection) -> int:
    return connection.load
