"""A small NBD server that follows a script, so that a test can make it lie, stall and break off.

async def script(client: Client) -> None:
    await client.open()                                   # an honest handshake
    request = await client.request()
    await client.say(peer.data(request.cookie, 0, b"short", done=True))

async with liar(script) as address:
    async with await open_export(address) as export: ...
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from sfasync.models import ExportAddress, TlsPolicy

from . import peer
from .certificates import server_context


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came."""

    kind: int
    flags: int
    cookie: int
    offset: int
    length: int
    payload: bytes


class Client:
    """The other side of one connection, seen by a script.

    Attributes:
        heard: Everything the client has said so far that the script has read.
        asked: The option that was read last.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard = b""
        self.asked = 0
        self._reader = reader
        self._writer = writer

    async def say(self, data: bytes) -> None:
        if self._writer.is_closing():  # uvloop has a RuntimeError for that
            raise ConnectionResetError
        self._writer.write(data)
        await self._writer.drain()

    async def hear(self, count: int) -> bytes:
        data = await self._reader.readexactly(count)
        self.heard += data
        return data

    async def flags(self) -> int:
        """The client's flags, after the greeting."""
        (flags,) = struct.unpack(">I", await self.hear(4))
        return int(flags)

    async def option(self) -> tuple[int, bytes]:
        """The next option and its data."""
        magic, option, length = struct.unpack(">8sII", await self.hear(16))
        assert magic == b"IHAVEOPT"
        self.asked = int(option)
        return self.asked, await self.hear(length)

    async def option_after_flags(self) -> tuple[int, bytes]:
        """The client's first option."""
        await self.flags()
        return await self.option()

    async def open(self, size: int = 1 << 20, flags: int = peer.ALL_FLAGS, *, structured: bool = True) -> None:
        """An honest handshake, up to the transmission phase; `base:allocation` is context 7."""
        await self.say(peer.greeting())
        await self.flags()
        while True:
            option, _ = await self.option()
            if option == peer.STRUCTURED_REPLY:
                await self.say(peer.reply(option, peer.ACK if structured else peer.ERR_UNSUP))
            elif option == peer.SET_META_CONTEXT:
                await self.say(peer.context(7, b"base:allocation") + peer.reply(option, peer.ACK))
            else:
                assert option == peer.GO
                await self.say(peer.info_export(size, flags) + peer.reply(option, peer.ACK))
                return

    async def request(self) -> Request:
        """The next request, with its payload."""
        magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", await self.hear(28))
        assert magic == 0x25609513
        payload = await self.hear(length) if kind == peer.WRITE else b""
        return Request(kind, flags, cookie, offset, length, payload)

    async def rest(self) -> bytes:
        """All that the client says until it hangs up."""
        data = await self._reader.read()
        self.heard += data
        return data

    async def silence(self) -> None:
        """Say nothing until the client hangs up; what it says meanwhile is heard."""
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(1 << 16):
                self.heard += data

    async def deafness(self) -> None:
        """Neither say nor hear anything; ends with the test."""
        await asyncio.get_running_loop().create_future()

    async def start_tls(self, context: ssl.SSLContext) -> None:
        await self._writer.start_tls(context)

    def half_close(self) -> None:
        """Say that nothing more will be said, and go on listening."""
        self._writer.write_eof()

    def hang_up(self) -> None:
        self._writer.transport.abort()


Script = Callable[[Client], Awaitable[None]]


@contextlib.asynccontextmanager
async def liar(*scripts: Script, certificates: Path | None = None) -> AsyncIterator[ExportAddress]:
    """Serve on a Unix socket: the first connection by the first script, and so on; the last serves all further ones.

    With certificates, each connection begins with TLS, before the script has a say.
    A connection ends with its script. A script that fails, other than by the end of its connection, fails the test.
    """
    tasks: list[asyncio.Task[None]] = []

    async def serve(script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await script(Client(reader, writer))
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):  # the client may still be talking
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = scripts[min(len(tasks), len(scripts) - 1)]
        tasks.append(asyncio.create_task(serve(script, reader, writer)))

    with tempfile.TemporaryDirectory(prefix="sfasync-liar-") as directory:
        path = Path(directory, "socket")
        context = None if certificates is None else server_context(certificates)
        policy = None if certificates is None else TlsPolicy(ca_file=certificates / "ca-cert.pem", style="direct")
        server = await asyncio.start_unix_server(accept, path, ssl=context)
        try:
            yield ExportAddress(socket=path, tls=policy)
        finally:
            server.close()
            await asyncio.sleep(0)  # a connection may have just been accepted
            _, late = await asyncio.wait(tasks, timeout=0.2) if tasks else (set(), set[asyncio.Task[None]]())
            for task in late:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
