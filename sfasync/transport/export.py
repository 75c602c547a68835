"""An NBD export as a disk: a `Source` and a `Sink` over one or more connections.

A call is cut into commands that the server takes (block sizes, 32 MiB of payload, nearly 2 GiB of block status), and
these are kept in flight, a window of them at a time, on the connection with the least to do.

What fails is asked again by `Call`; a range that keeps failing is narrowed down here to the blocks at fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Final, Self

from ..blocking import Reader, Writer
from ..errors import (
    ExportError,
    RequestError,
    SfasyncError,
    SystemLimitError,
    UsageError,
    WritesLostError,
    printable,
)
from ..extents import align_down
from ..interfaces import Buffer
from ..models import MOST_CONNECTIONS, NO_RETRY, ExportAddress, Extent, Limits, Retry, Timeouts
from ..nbd import const
from ..nbd.session import Command
from ..nbd.uri import parse_uri
from .block_status import BlockStatus
from .call import Call, Failure
from .connection import Connection
from .connections import LOST, Choose, Connections, Recipe
from .line import Line
from .survey import Survey

_ZEROS: Final = memoryview(bytes(1 << 20))

_ZERO_PIECE: Final = 128 << 20
"""Bytes of one request to zero or trim. Some servers write zeros out for it, and must show progress in time."""

_ZERO_WINDOW: Final = 512 << 20
"""Bytes of such requests in flight."""

_SOON: Final = 0.1
"""Seconds that threads wait for their connections: for them there have to be several, and a near server."""

_SECTOR: Final = 512
"""Bytes to which a range that cannot be read is narrowed down, where the server takes such blocks."""


async def open_export(
    address: ExportAddress | str,
    *,
    connections: int | None = None,
    requests: int = 16,
    timeouts: Timeouts | None = None,
    contexts: Sequence[str] = (const.BASE_ALLOCATION,),
    multi_conn: bool | None = None,
    retry: Retry | None = None,
    empty: bool = False,
) -> Export:
    """Open an export; close it with `aclose`, or use it as an asynchronous context manager.

    It is open with its first connection, and can be read; writes wait for the others, 3 s at most.

    Args:
        address: Where it is, or its URI.
        connections: Connections to use, 1 to 16; None for one. More than one only where the server promises that they
            see each other's writes, and as many as the address allows and the server lets in.
        requests: Most requests in flight on each connection, 1 to 256.
        timeouts: Budgets in seconds.
        contexts: Metadata contexts for `extents` and `block_status`; what the server does not have is left out.
        multi_conn: Whether to use several connections; None to believe the server.
        retry: How faults are met; None to repeat nothing. Several connections against the server's word are never
            replaced.
        empty: Whether an export of 0 bytes is of use. Otherwise it is refused: 0 is more often a server that does not
            know than a disk, and nothing read from it would pass for a success.

    Raises:
        UsageError: The URI, or a file it names, cannot be used.
        ConnectError: Nobody answers there.
        TlsError: TLS is lacking, refused or demanded, or the server is not who it should be.
        NbdError: The server does not have the export, or describes it in a way that cannot be used.
    """
    if isinstance(address, str):
        address = parse_uri(address)
    limits = Limits(connections=connections or 1, requests=requests)
    connections = min(limits.connections, address.connections or MOST_CONNECTIONS)
    recipe = Recipe(address, requests=limits.requests, timeouts=timeouts or Timeouts(), contexts=contexts)
    retry = retry or NO_RETRY
    first = await recipe.first(retry)
    if first.info.size == 0 and not empty:
        first.abort()
        raise ExportError(f"{first.name} has a size of 0 bytes: either it is empty or its server does not know")
    shared = bool(first.info.flags & const.FLAG_CAN_MULTI_CONN)
    several = connections > 1 and (shared if multi_conn is None else multi_conn)
    export = Export(recipe, first, retry if shared or not several else replace(retry, outage=0.0))
    if several:
        export.add_connections(connections - 1)
    return export


class Export:
    """An open export: a `Source` and a `Sink`. Belongs to one event loop; made by `open_export`.

    Any number of calls may be under way. Cancelling a read frees its memory at once; the reply is read and dropped.
    Cancelling a write, or anything else that changes the disk, leaves open whether that happened; if data was on the
    way out, the call waits up to a second for it to leave.

    A lost connection is replaced, and what it had not answered is asked again, as far as `Retry` allows; otherwise the
    calls that used it fail with a `ConnectionLostError`. A write that was sent twice may reach the disk late, from the
    lost connection: with retries, bytes just written should not be written over before the next flush.
    """

    def __init__(self, recipe: Recipe, first: Connection, retry: Retry) -> None:
        self.info = first.info
        self._recipe = recipe
        self._retry = retry
        self._connections = Connections(recipe, first, retry)
        self._durability = self._connections.durability
        self._flushing = asyncio.Lock()
        self._flush_error: RequestError | None = None
        self._peer = printable(recipe.address.peer)
        sizes = first.info.block_sizes
        self._minimum = sizes.minimum if sizes else 1
        maximum = min(sizes.maximum, const.PORTABLE_PAYLOAD) if sizes else const.PORTABLE_PAYLOAD
        self._payload = align_down(maximum, self._minimum)
        self._effect = min(align_down(sizes.maximum, self._minimum), _ZERO_PIECE) if sizes else _ZERO_PIECE
        self._status = BlockStatus(
            self._ask, self.abort, peer=self._peer, block=self._minimum, contexts=first.info.contexts
        )

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
        return self._connections.count

    @property
    def retries(self) -> int:
        """Requests that were sent again, so far."""
        return self._connections.retries

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
            RequestError: The server could not read, and requests are not repeated.
            BadBlockError: The server could not read, however often it was asked; with offset and length of the first
                block that it fails on.
            NbdError, TlsError: The connection is lost.
        """
        view = memoryview(buffer).cast("B")
        del buffer  # whoever keeps the traceback of an error would keep it
        try:
            self._check_readable(offset, view)
            for _ in range(self._retry.attempts):
                failure = await self._try_to_read(offset, view)
                if failure is None:
                    return
                first = failure.offset - offset
                with view[first : first + failure.length] as part:
                    await self._survey().read(failure.offset, part, failure, most=0)
            assert failure is not None, "there is at least one attempt"
            raise failure.error  # nothing is bad when one looks closely, and yet it fails every time
        finally:
            view.release()

    async def read_scattered(self, parts: Sequence[tuple[int, memoryview]]) -> None:
        """As `read_into` for each pair of offset and buffer; the requests for all of them leave together."""
        views = [(offset, memoryview(buffer).cast("B")) for offset, buffer in parts]
        try:
            for offset, view in views:
                self._check_readable(offset, view)
            commands = (command for offset, view in views for command in self._pieces(const.CMD_READ, offset, view))
            failure = await self._call(commands, choose=self._connections.together()).attempt()
            if failure is None:
                return
            if self._retry.attempts == 1:
                raise failure.error
        finally:
            for _, view in views:
                view.release()
        for offset, buffer in parts:  # one of them is bad, and the others will tell which
            await self.read_into(offset, buffer)

    async def read_around(self, offset: int, buffer: memoryview, *, most: int) -> list[Extent]:
        """As `read_into`, but bytes that cannot be read become zeros.

        Args:
            offset: First byte.
            buffer: Filled.
            most: Bytes that may be lost so.

        Returns:
            The blocks that cannot be read, in order.

        Raises:
            BadBlockError: More than `most` bytes cannot be read.
            UsageError, NbdError, TlsError: As `read_into`.
        """
        view = memoryview(buffer).cast("B")
        del buffer  # whoever keeps the traceback of an error would keep it
        try:
            self._check_readable(offset, view)
            bad: list[Extent] = []
            for start in range(0, len(view), self._payload):
                with view[start : start + self._payload] as piece:
                    failure = await self._try_to_read(offset + start, piece)
                    if failure is not None:
                        lost = sum(block.length for block in bad)
                        bad += await self._survey().read(offset + start, piece, failure, most=most - lost)
            return bad
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
            NbdError, TlsError: The connection is lost for good; what was written is not known.
        """
        view = memoryview(data).cast("B")
        del data
        try:
            self._check_writable("write", offset, len(view))
            await self._write(self._pieces(const.CMD_WRITE, offset, view, self._fua(fua)))
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
            await self._write(commands, _ZERO_WINDOW // self._effect)
        else:
            await self._write(self._written_zeros(offset, length, flags))
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
        await self._write(commands, _ZERO_WINDOW // self._effect)
        await self._settle(fua)
        return True

    async def flush(self) -> bool:
        """Make every finished write durable; False if the server does not offer that.

        Raises:
            WritesLostError: A connection was lost with writes that were not durable yet: they have to be written again.
            RequestError: The server could not. What is durable is not known, and a second attempt might succeed over
                what the server has dropped: no flush of this export succeeds any more.
            NbdError, TlsError: The connection is lost.
        """
        async with self._flushing:
            self._refuse_lost()
            if self._flush_error is not None:
                raise RequestError(f"an earlier flush failed: {self._flush_error}", errno=self._flush_error.errno)
            if not self.can_flush:
                return False
            if not self.can_multi_conn and len(self._connections.each()) > 1:
                # Several are used against the server's word: each needs its own, a dead one's writes are lost to us.
                for connection in self._connections.each():
                    await self._flush(self._connections.only(connection))
            elif not self._durability.waiting():
                await self._flush(self._connections.lend)
            else:
                await self._flush_groups()
            return True

    async def _flush_groups(self) -> None:
        """One flush in each group covers the writes of all its connections (proto.md, "Transmission flags")."""
        while groups := self._durability.waiting():
            self._refuse_lost()
            group, connection = groups[0], groups[0].eldest
            assert connection is not None, "its writes are lost"
            try:
                with group.flushing():
                    await self._flush(self._connections.only(connection))
            except LOST:
                if connection.alive:
                    raise

    async def _flush(self, choose: Choose) -> None:
        call = Call(self._connections, self._one(Command(const.CMD_FLUSH)), 1, self._retry, choose=choose)
        try:
            await call.run()
        except RequestError as error:
            self._flush_error = error
            raise

    def _refuse_lost(self) -> None:
        lost = self._durability.lost()
        if lost:
            count = sum(end - start for start, end in lost)
            raise WritesLostError(
                f"{self._peer}: the connection was lost before {count} bytes that the server had acknowledged were "
                "durable, and it may have forgotten them; write them again",
                ranges=lost,
            )

    def _fua(self, wanted: bool) -> int:
        if wanted and not self.can_fua and not self.can_flush:
            raise ExportError(f"{self._peer}: the server offers neither FUA nor flush; nothing can be made durable")
        return const.CMD_FLAG_FUA if wanted and self.can_fua else 0

    async def _settle(self, fua: bool) -> None:
        if fua and not self.can_fua:
            await self.flush()

    # --- block status ---

    def extents(self, offset: int = 0, length: int | None = None) -> AsyncGenerator[Extent, None]:
        """What the server says of a range without reading it: adjacent extents, in order, covering it exactly.

        Memory does not grow with the disk. What the server does not say, or says in such small pieces that reading is
        quicker than asking, is data, and a warning is logged, once.

        Raises:
            UsageError: The range is not inside the export.
            NbdError, TlsError: The connection is lost.
        """
        length = self.size - offset if length is None else length
        self._check_inside("block status", offset, length)
        return self._status.extents(offset, length)

    def block_status(self, context: str, offset: int, length: int) -> AsyncGenerator[tuple[int, int, int], None]:
        """What a metadata context says of a range: (offset, length, flags), adjacent, in order, covering it exactly.

        Raises:
            UsageError: The context was not selected when the export was opened, or the range is not inside it.
            RequestError: The server refused.
            ExportError: The server says too little at a time for asking to come to an end.
            NbdError, TlsError: The connection is lost.
        """
        if context not in self.info.contexts:
            raise UsageError(f"{self._peer}: metadata context {context!r} was not selected; there are {self.contexts}")
        self._check_inside("block status", offset, length)
        return self._status.said(context, offset, length)

    async def _ask(self, command: Command) -> None:
        await self._run(self._one(command))

    # --- for threads ---

    @asynccontextmanager
    async def readers(self, count: int) -> AsyncIterator[list[Reader]]:
        """Up to `count` connections, each for one thread to read, for the time of the block; one is always left.

        They come as they are: what fails is not repeated, and calls of the export go on meanwhile over the others. If
        all of these are lost, one is taken away from its thread, which hears that it was given up.
        There are none over TLS where OpenSSL cannot be reached (`openssl.library`).
        """
        await self._connections.joined(_SOON)
        with self._lines(count) as lines:
            yield list(lines)

    @asynccontextmanager
    async def writers(self, count: int) -> AsyncIterator[list[Writer]]:
        """As `readers`, to be written."""
        await self._connections.joined()
        with self._lines(0 if self.read_only else count) as lines:
            yield list(lines)

    @contextmanager
    def _lines(self, count: int) -> Iterator[list[Line]]:
        with ExitStack() as lent:
            lent.callback(self._connections.finished)  # somebody may wait for one of them
            lines = []
            with suppress(SystemLimitError):  # as many as there are descriptors for
                for connection in self._connections.spare(count):
                    line = connection.lend(most=self._payload, on_write=partial(self._wrote, connection))
                    lent.callback(connection.take_back, line)
                    lines.append(line)
            yield lines

    def _wrote(self, connection: Connection, start: int, end: int) -> None:
        if self._retry.outage:
            self._durability.acknowledged(connection, start, end, durable=False)

    # --- the end ---

    async def aclose(self) -> None:
        """Close all connections; calls under way fail. Takes at most the time for closing. Idempotent."""
        await self._connections.aclose()

    def abort(self, error: SfasyncError | None = None) -> None:
        """End all connections without a word; calls under way fail, with `error` if that is given."""
        self._connections.abort(error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # --- connections ---

    def add_connections(self, count: int) -> None:
        """Open further connections, as many of `count` as the server lets in within a short time.

        Reads go on meanwhile. If one of them leads to another export, every call fails with an `ExportError`.
        """
        self._connections.join(count)

    async def connected(self) -> int:
        """How many connections are open, once no more are being opened."""
        await self._connections.joined()
        return self.connections

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

    def _call(
        self, commands: Generator[Command, None, None], window: int | None = None, *, choose: Choose | None = None
    ) -> Call:
        window = window or self._recipe.requests * self._connections.wanted
        return Call(self._connections, commands, window, self._retry, choose=choose)

    async def _run(self, commands: Generator[Command, None, None], window: int | None = None) -> None:
        await self._call(commands, window).run()

    async def _write(self, commands: Generator[Command, None, None], window: int | None = None) -> None:
        """Carry out what changes the disk, and take note of what was acknowledged where."""
        # One that joins later might be with a server that was started anew, and vouch for writes that it never saw.
        await self._connections.joined()
        call = self._call(commands, window)
        call.on_answer = self._acknowledged if self._retry.outage else None
        try:
            await call.run()
        except RequestError as error:
            if call.undurable:
                self._flush_error = error
            raise

    def _acknowledged(self, command: Command, connection: Connection) -> None:
        durable = bool(command.flags & const.CMD_FLAG_FUA)
        self._durability.acknowledged(connection, command.offset, command.offset + command.length, durable=durable)

    # --- blocks that cannot be read ---

    def _check_readable(self, offset: int, view: memoryview) -> None:
        if view.readonly:
            raise UsageError("a read needs a buffer that can be written to")
        self._check("read", offset, len(view))

    async def _try_to_read(self, offset: int, view: memoryview) -> Failure | None:
        """Read, or tell which part was asked for in vain.

        Raises:
            SfasyncError: The failure has nothing to do with what was asked for, or requests are not repeated.
        """
        call = self._call(self._pieces(const.CMD_READ, offset, view))
        failure = await call.attempt()
        if failure is not None and self._retry.attempts == 1:
            raise failure.error
        return failure

    def _survey(self) -> Survey:
        block = max(_SECTOR, self._minimum)
        return Survey(self._connections, self._retry, peer=self._peer, block=block)
