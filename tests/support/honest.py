"""An honest NBD server in the test's own loop, over TCP, plain or TLS, whose conversation can be cut at any byte.

    async with honest(cut=Cut("said", 100, "reset")) as server:
        await open_export(server.address())

It keeps what it received as it came over the wire, as anybody in between would see it, and what it could decrypt of it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal, NamedTuple, cast

from sfasync.models import ExportAddress, TlsPolicy, TlsStyle

from . import peer

SIZE: Final = 64 << 10
LINGER: Final = struct.pack("ii", 1, 0)  # close(2) sends a RST then (socket(7), SO_LINGER)


def content(offset: int, length: int) -> bytes:
    """What the export holds."""
    return bytes((position * 7 + position // 256) % 251 for position in range(offset, offset + length))


class Cut(NamedTuple):
    """Where a connection ends: after so many bytes that the server has said or heard, and how."""

    direction: Literal["said", "heard"]
    after: int
    how: Literal["reset", "close", "stall"]


class Honest:
    """What the server does and has seen, over all its connections.

    Attributes:
        port: On 127.0.0.1.
        wire: Every byte that came.
        heard: The same, decrypted.
        said: Bytes that were sent.
    """

    def __init__(self, context: ssl.SSLContext | None, style: TlsStyle, cut: Cut | None) -> None:
        self.port = 0
        self.wire = b""
        self.heard = b""
        self.said = 0
        self.context = context
        self.style = style
        self.cut = cut
        self.connections: set[_Connection] = set()

    def address(self, tls: TlsPolicy | None = None, *, host: str = "127.0.0.1", export: str = "disk") -> ExportAddress:
        return ExportAddress(host=host, port=self.port, export=export, tls=tls)


@asynccontextmanager
async def honest(
    *, context: ssl.SSLContext | None = None, style: TlsStyle = "starttls", cut: Cut | None = None
) -> AsyncIterator[Honest]:
    """Serve until the end of the block; then connections that are left are dropped."""
    server = Honest(context, style, cut)
    listener = await asyncio.get_running_loop().create_server(lambda: _Connection(server), "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for connection in list(server.connections):
            connection.drop()
        while server.connections:
            await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    def __init__(self, server: Honest) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._tls: ssl.SSLObject | None = None
        self._secured = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._pending = b""
        self._understand = self._flags
        self._said = 0
        self._heard = 0
        self._ended = False

    def drop(self) -> None:
        self._ended = True
        if self._transport is not None:
            self._transport.abort()

    # --- for the loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self)
        if self._server.context is not None and self._server.style == "direct":
            self._start_tls()
        self._emit(b"")
        if self._tls is None:
            self._say(peer.greeting())

    def data_received(self, data: bytes) -> None:
        cut = self._server.cut
        self._server.wire += data
        if cut is not None and cut.direction == "heard" and self._heard + len(data) >= cut.after:
            data = data[: max(cut.after - self._heard, 0)]
            self._hear(data)
            self._end(cut)
        elif not self._ended:
            self._heard += len(data)
            self._hear(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._server.connections.discard(self)

    # --- the stream ---

    def _hear(self, data: bytes) -> None:
        if self._tls is not None:
            self._incoming.write(data)
            try:
                data = self._decrypted(self._tls)
            except ssl.SSLError:
                self._emit(self._outgoing.read())  # an alert
                if self._transport is not None:
                    self._transport.close()
                return
            self._emit(self._outgoing.read())
        self._server.heard += data
        self._pending += data
        while not self._ended and self._understand():
            pass

    def _decrypted(self, tls: ssl.SSLObject) -> bytes:
        plain = b""
        try:
            if not self._secured:
                tls.do_handshake()
                self._secured = True
                if self._server.style == "direct":
                    tls.write(peer.greeting())
            while data := tls.read(1 << 16):
                plain += data
        except ssl.SSLWantReadError:
            pass
        return plain

    def _start_tls(self) -> None:
        assert self._server.context is not None
        self._tls = self._server.context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def _say(self, data: bytes) -> None:
        if self._tls is not None:
            self._tls.write(data)
            data = self._outgoing.read()
        self._emit(data)

    def _emit(self, data: bytes) -> None:
        if self._ended or self._transport is None:
            return
        cut = self._server.cut
        due = cut is not None and cut.direction == "said" and self._said + len(data) >= cut.after
        if cut is not None and due:
            data = data[: cut.after - self._said]
        self._said += len(data)
        self._server.said += len(data)
        self._transport.write(data)
        if cut is not None and due:
            self._end(cut)

    def _end(self, cut: Cut) -> None:
        if self._ended or self._transport is None:
            return
        self._ended = True
        if cut.how == "stall":
            return
        if cut.how == "close":
            self._transport.close()
            return
        # The loop's own socket object does not take options with every loop.
        with socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        self._transport.abort()

    # --- what is said; each gives whether it understood something ---

    def _take(self, count: int) -> bytes:
        taken, self._pending = self._pending[:count], self._pending[count:]
        return taken

    def _flags(self) -> bool:
        if len(self._pending) < 4:
            return False
        self._take(4)
        self._understand = self._option
        return True

    def _option(self) -> bool:
        if len(self._pending) < 16:
            return False
        _, option, length = struct.unpack(">8sII", self._pending[:16])
        if len(self._pending) < 16 + length:
            return False
        self._take(16 + length)
        if option == peer.STARTTLS and self._server.context is not None:
            self._say(peer.reply(option, peer.ACK))
            self._start_tls()
        elif option == peer.STRUCTURED_REPLY:
            self._say(peer.reply(option, peer.ACK))
        elif option == peer.SET_META_CONTEXT:
            self._say(peer.context(7, b"base:allocation") + peer.reply(option, peer.ACK))
        elif option == peer.GO:
            self._say(peer.info_export(SIZE) + peer.reply(option, peer.ACK))
            self._understand = self._request
        else:
            self._say(peer.reply(option, peer.ERR_UNSUP))
        return True

    def _request(self) -> bool:
        if len(self._pending) < 28:
            return False
        _, _, kind, cookie, offset, length = struct.unpack(">IHHQQI", self._pending[:28])
        if kind == peer.WRITE and len(self._pending) < 28 + length:
            return False
        self._take(28 + (length if kind == peer.WRITE else 0))
        if kind == peer.READ:
            self._say(peer.data(cookie, offset, content(offset, length), done=True))
        elif kind == peer.BLOCK_STATUS:
            self._say(peer.status(cookie, [(length, 0)]))
        elif kind == peer.DISC:
            assert self._transport is not None
            self._transport.close()
        else:
            self._say(peer.simple(cookie))
        return True
