"""The data service: the NBD port of the lab's host, plain or with TLS, in front of the storage daemon.

The daemon has one NBD server, which either demands TLS or has none. The platform offers both, so TLS ends here: after
STARTTLS, or from the first byte where the lab is told so (the platform's way is not public). Of a conversation only the
options are understood, to know which exports are asked for; everything else is passed on as it comes::

    client ── options ──> gateway ── allowed ones ──> storage daemon
           <───────────── answers as they are ─────────
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

from ..models import TlsStyle
from ..nbd import const
from .serving import listening

Admit = Callable[[str], Awaitable[bool]]
"""Whether an export of that name is to be had now; makes it ready."""

Moved = Callable[["Gateway"], None]
"""Is told that data of some disk was passed on."""

_PIECE = 256 << 10  # bytes passed on at once
_DATA = 64 << 10  # bytes that a conversation has only when data of a disk is among them
_LAST_BYTES_SECONDS = 1.0
_LONGEST_OPTION = 8 << 10
_OPTION = struct.Struct(">II")
_LENGTH = struct.Struct(">I")
_REPLY = struct.Struct(">QIII")
_GREETING = 18  # bytes: two magic numbers and the handshake flags
_CLIENT_FLAGS = 4
_IHAVEOPT = const.IHAVEOPT.to_bytes(8, "big")

_NAMED = {const.OPT_INFO, const.OPT_GO, const.OPT_LIST_META_CONTEXT, const.OPT_SET_META_CONTEXT}


class Gateway:
    """Listens on a port of 127.0.0.1.

    Attributes:
        port: The port; it stays the same when the service is killed and started again.
        style: How TLS begins.
        moved: Is told that data of a disk was passed on.
    """

    def __init__(self, upstream: Path, context: ssl.SSLContext, admit: Admit, *, moved: Moved, style: TlsStyle) -> None:
        self.port = 0
        self.style = style
        self.moved = moved
        self._upstream = upstream
        self._context = context
        self._admit = admit
        self._server: asyncio.Server | None = None
        self._conversations: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def connections(self) -> int:
        """Clients that are connected."""
        return len(self._conversations)

    async def start(self) -> None:
        """Listen; does nothing if it does.

        Raises:
            OSError: The port is taken.
        """
        if self._server is None:
            direct = self._context if self.style == "direct" else None
            listener = listening(self.port)
            self.port = listener.getsockname()[1]
            self._server = await asyncio.start_server(self._accept, sock=listener, ssl=direct, limit=_PIECE)

    async def kill(self) -> None:
        """Stop listening and drop every connection, without a word; `start` begins anew."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        conversations = dict(self._conversations)
        for task, writer in conversations.items():
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*conversations, return_exceptions=True)
        await server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "start_server makes one for each connection"
        self._conversations[task] = writer
        try:
            await _Conversation(self, reader, writer).run()
        except (OSError, EOFError):  # TLS's errors and a timeout among them
            pass  # either side has gone, which ends it
        finally:
            del self._conversations[task]
            writer.transport.abort()

    async def admit(self, name: bytes) -> bool:
        """Whether an export is to be had."""
        return await self._admit(name.decode(errors="surrogateescape"))

    async def upstream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the storage daemon."""
        return await asyncio.open_unix_connection(self._upstream, limit=_PIECE)

    async def encrypted(self, writer: asyncio.StreamWriter) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The same connection inside TLS; nothing may have been read from it beyond STARTTLS."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(_PIECE)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport = await loop.start_tls(writer.transport, protocol, self._context, server_side=True)
        assert transport is not None, "only a transport that closes has none, and then it raises"
        protocol.connection_made(transport)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class _Conversation:
    """One client; it may turn to TLS before anything else, as the protocol has it ("NBD_OPT_STARTTLS")."""

    def __init__(self, gateway: Gateway, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._gateway = gateway
        self._reader = reader
        self._writer = writer

    async def run(self) -> None:
        """Talk until either side ends."""
        answers, upstream = await self._gateway.upstream()
        try:
            self._writer.write(await answers.readexactly(_GREETING))
            upstream.write(await self._reader.readexactly(_CLIENT_FLAGS))
            first = await self._first_option()
            ways = (self._requests(first, upstream), self._pass_on(answers, self._writer))
            tasks = [asyncio.create_task(way) for way in ways]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            self._writer.close()
            async with asyncio.timeout(_LAST_BYTES_SECONDS):
                await self._writer.wait_closed()
        finally:
            upstream.transport.abort()
            self._writer.transport.abort()

    async def _first_option(self) -> tuple[int, bytes]:
        """The first option that is not about TLS."""
        while True:
            magic = await self._reader.readexactly(8)
            option, data = await self._option(magic)
            if option != const.OPT_STARTTLS:
                return option, data
            self._writer.transport.pause_reading()  # type: ignore[attr-defined] # what follows is for TLS to read
            self._reply(option, const.REP_ACK)
            self._reader, self._writer = await self._gateway.encrypted(self._writer)

    async def _requests(self, first: tuple[int, bytes], upstream: asyncio.StreamWriter) -> None:
        """Pass on what the client sends: options that are allowed, and after them everything."""
        option, data = first
        while True:
            await self._haggle(option, data, upstream)
            if option == const.OPT_EXPORT_NAME:  # nothing says that it was accepted: requests follow at once
                break
            magic = await self._reader.readexactly(8)
            if magic != _IHAVEOPT:
                upstream.write(magic)
                break
            option, data = await self._option(magic)
        await self._pass_on(self._reader, upstream)

    async def _haggle(self, option: int, data: bytes, upstream: asyncio.StreamWriter) -> None:
        if option == const.OPT_LIST:
            self._reply(option, const.REP_ERR_POLICY, b"exports are not listed")
        elif option == const.OPT_STARTTLS:
            self._reply(option, const.REP_ERR_INVALID, b"it is too late for TLS")
        elif option == const.OPT_EXPORT_NAME and not await self._gateway.admit(data):
            raise EOFError  # there is no other answer ("NBD_OPT_EXPORT_NAME")
        elif option in _NAMED and not await self._gateway.admit(_name(data)):
            self._reply(option, const.REP_ERR_UNKNOWN, b"no such export")
        else:
            upstream.write(_IHAVEOPT + _OPTION.pack(option, len(data)) + data)
            await upstream.drain()

    async def _option(self, magic: bytes) -> tuple[int, bytes]:
        option, length = _OPTION.unpack(await self._reader.readexactly(_OPTION.size))
        if magic != _IHAVEOPT or length > _LONGEST_OPTION:
            raise EOFError  # nothing that a client of ours could have to say
        return option, await self._reader.readexactly(length)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        while data := await reader.read(_PIECE):
            writer.write(data)
            await writer.drain()
            passed += len(data)
            if passed >= _DATA:
                self._gateway.moved(self._gateway)

    def _reply(self, option: int, reply: int, text: bytes = b"") -> None:
        self._writer.write(_REPLY.pack(const.OPTION_REPLY_MAGIC, option, reply, len(text)) + text)


def _name(data: bytes) -> bytes:
    """The export that an option is about."""
    if len(data) < _LENGTH.size:
        raise EOFError
    return data[_LENGTH.size : _LENGTH.size + _LENGTH.unpack_from(data)[0]]
