"""Sockets and TLS under httpcore.

The backend that comes with httpcore loses sockets when a call is cancelled while it connects, and so do asyncio's
streams when TLS has just begun: they stay open until the process ends. Here there is a socket and a `TlsLayer`, no
transport, and whatever is cut short is closed by whoever opened it.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
from collections.abc import Iterable, Iterator
from typing import Any, Final

import httpcore2

from ...errors import TlsError, printable, system_limit
from ...tls import TlsLayer

_TIMED_OUT: Final = "no connection was made in time"
_PIECE: Final = 1 << 16


class Network(httpcore2.AsyncNetworkBackend):
    """Makes connections.

    Args:
        fingerprint: What the SHA-256 of the server's certificate must be, from `trust.pinned`.
    """

    def __init__(self, fingerprint: str | None) -> None:
        self._fingerprint = fingerprint

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection to the first address of the host that takes it.

        Raises:
            SystemLimitError: There is no more socket to be had.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                failure: OSError = OSError("the name has no address")
                for family, kind, protocol, _, address in addresses:
                    try:  # one that does not answer leaves the others their share of the time
                        async with asyncio.timeout(None if timeout is None else timeout / len(addresses)):
                            sock = await _connect(loop, socket.socket(family, kind, protocol), address)
                        return Connected(sock, host, self._fingerprint)
                    except OSError as error:
                        failure = error
                raise failure
        except TimeoutError:
            raise httpcore2.ConnectTimeout(_TIMED_OUT) from None
        except (OSError, UnicodeError) as error:
            limit = system_limit(error)
            if limit is not None:
                raise limit from error
            raise httpcore2.ConnectError(f"no connection: {printable(str(error))}") from None


async def _connect(loop: asyncio.AbstractEventLoop, sock: socket.socket, address: Any) -> socket.socket:
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


class Connected(httpcore2.AsyncNetworkStream):
    """A connection on which nothing has been said; all there is to do is TLS."""

    def __init__(self, sock: socket.socket, host: str, fingerprint: str | None) -> None:
        self._socket = sock
        self._host = host
        self._fingerprint = fingerprint

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """The connection, encrypted.

        Raises:
            TlsError: The server is not who it should be, or does not speak TLS.
        """
        try:
            layer = TlsLayer(self._host, ssl_context, server_hostname or self._host, self._fingerprint)
            stream = Encrypted(self._socket, layer)
            async with asyncio.timeout(timeout):
                await stream.handshake()
        except TimeoutError:
            self._socket.close()
            raise httpcore2.ConnectTimeout(_TIMED_OUT) from None
        except OSError:
            self._socket.close()
            raise httpcore2.ConnectError("no connection: it was closed while TLS began") from None
        except BaseException:
            self._socket.close()
            raise
        return stream

    async def aclose(self) -> None:
        """Close it."""
        self._socket.close()


class Encrypted(httpcore2.AsyncNetworkStream):
    """A connection with TLS. What it has to say it says in turns, as HTTP/1.1 does: nobody reads while others write."""

    def __init__(self, sock: socket.socket, layer: TlsLayer) -> None:
        self._socket = sock
        self._layer = layer
        self._loop = asyncio.get_running_loop()
        self._waiting = False
        self._closed = False

    async def handshake(self) -> None:
        """Begin TLS.

        Raises:
            TlsError: The server is not who it should be.
            OSError: The connection was lost.
        """
        try:
            while not self._layer.handshake():
                await self._flush()
                if not await self._fill():
                    raise ConnectionResetError
            await self._flush()
        except TlsError:
            self._say_last_words()
            raise

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Some bytes; none at the end."""
        buffer = memoryview(bytearray(max_bytes))
        try:
            while not (count := self._layer.read_into(buffer)):
                if not await self._fill():
                    return b""
                await self._flush()
        except EOFError:
            return b""
        except OSError:
            raise httpcore2.ReadError("the connection was lost") from None
        return bytes(buffer[:count])

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send bytes."""
        try:
            self._layer.write(buffer)
            await self._flush()
        except OSError:
            raise httpcore2.WriteError("the connection was lost") from None

    async def aclose(self) -> None:
        """Say goodbye, without waiting for the server's. Whoever waits for the server finds the connection ended."""
        if self._closed:
            return
        self._closed = True
        if self._layer.established:
            self._layer.close()
        self._say_last_words()
        if self._waiting:  # the loop watches the descriptor: it must not become another file's before that ends
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        else:
            self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks for: whether a connection that should be idle has something, such as its end."""
        if info != "is_readable":
            return None
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    async def _fill(self) -> bool:
        """Take in ciphertext; False at the end of the connection."""
        with self._watched():
            data = await self._loop.sock_recv(self._socket, _PIECE)
        self._layer.feed(memoryview(data))
        return bool(data)

    async def _flush(self) -> None:
        ciphertext = self._layer.take()
        if ciphertext:
            with self._watched():
                await self._loop.sock_sendall(self._socket, ciphertext)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False
            if self._closed:
                self._socket.close()

    def _say_last_words(self) -> None:
        """Tell the server why, if that can be done at once."""
        with contextlib.suppress(OSError):
            self._socket.send(self._layer.take())
