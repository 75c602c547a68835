"""Sockets and TLS under httpcore, by asyncio's own means.

The backend that comes with httpcore loses sockets when a call is cancelled while it connects: they stay open until the
process ends. Here whatever is cut short is closed by whoever opened it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterable
from typing import Any, Final

import httpcore2

from ...errors import TlsError, printable

_TIMED_OUT: Final = "no connection was made in time"


class Network(httpcore2.AsyncNetworkBackend):
    """Makes connections."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection to the first address of the host that takes it."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                failure: OSError = OSError("the name has no address")
                for family, kind, protocol, _, address in addresses:
                    try:
                        return Connected(await _connect(loop, socket.socket(family, kind, protocol), address), host)
                    except OSError as error:
                        failure = error
                raise failure
        except TimeoutError:
            raise httpcore2.ConnectTimeout(_TIMED_OUT) from None
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"no connection: {printable(str(error))}") from None

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


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

    def __init__(self, sock: socket.socket, host: str) -> None:
        self._socket = sock
        self._host = host

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """The connection, encrypted.

        Raises:
            TlsError: The server is not who it should be, or does not speak TLS.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._socket.close)
            try:
                async with asyncio.timeout(timeout):
                    reader, writer = await asyncio.open_connection(
                        sock=self._socket, ssl=ssl_context, server_hostname=server_hostname
                    )
            except TimeoutError:
                raise httpcore2.ConnectTimeout(_TIMED_OUT) from None
            except (ssl.SSLEOFError, ConnectionError):
                raise httpcore2.ConnectError("no connection: it was closed while TLS began") from None
            except ssl.SSLError as error:
                raise _tls_error(error, self._host) from None
            stack.pop_all()
        return Encrypted(reader, writer, self._host)

    async def aclose(self) -> None:
        """Close it."""
        self._socket.close()


class Encrypted(httpcore2.AsyncNetworkStream):
    """A connection with TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Some bytes; none at the end."""
        try:
            return await self._reader.read(max_bytes)
        except ssl.SSLError as error:
            raise _tls_error(error, self._host) from None
        except OSError:
            raise httpcore2.ReadError("the connection was lost") from None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send bytes."""
        try:
            self._writer.write(buffer)
            await self._writer.drain()
        except ssl.SSLError as error:
            raise _tls_error(error, self._host) from None
        except OSError:
            raise httpcore2.WriteError("the connection was lost") from None

    async def aclose(self) -> None:
        """Say goodbye, without waiting for the server's."""
        self._writer.close()
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks for: whether an idle connection was ended by the server."""
        if info == "is_readable":
            return self._reader.at_eof() or self._writer.transport.is_closing()
        return self._writer.get_extra_info(info)


def _tls_error(error: ssl.SSLError, host: str) -> TlsError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsError(f"{host}: the server's certificate is not accepted: {printable(error.verify_message)}")
    return TlsError(f"{host}: TLS failed: {printable((error.reason or str(error)).replace('_', ' ').lower())}")
