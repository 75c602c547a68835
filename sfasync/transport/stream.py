"""The one place that deals in asyncio transports: a stream, plain or TLS, received straight into its reader's memory.

An asyncio `BufferedProtocol` asks where the next bytes go and tells how many came; the reader (`Receiver`) is asked the
same. With TLS, ciphertext goes through an area here and is decrypted straight into the reader's memory, so TLS starts
in place on the same transport, and not one byte is read on behalf of the wrong side of it.

No exception leaves a callback of the loop: it is recorded, the transport is aborted, and the receiver gets it as the
reason of the loss.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Protocol, cast

from ..errors import ConnectError, ConnectionLostError, SfasyncError, system_limit
from ..models import ExportAddress
from ..tls import TlsLayer

if TYPE_CHECKING:
    from ..openssl import SecureSocket

_logger = logging.getLogger(__name__)

_SEND_BUFFER: Final = 4 << 20
"""Bytes that a Unix socket should take at once; with its default of some 200 KiB a large write needs many turns of the
loop. The buffer of TCP grows by itself, and no longer does when it is set."""

_CIPHERTEXT: Final = 256 << 10

_BUSY_PAUSE: Final = 0.02
"""Seconds between attempts on a Unix socket whose backlog is full; there is nothing that could be awaited."""


class Receiver(Protocol):
    """Who reads a stream."""

    def next_buffer(self) -> memoryview:
        """Where the next bytes go; not empty."""
        ...

    def received(self, count: int) -> None:
        """That many bytes are there. An `SfasyncError` from here ends the stream."""
        ...

    def secured(self) -> None:
        """TLS has started and the server is verified."""
        ...

    def resumed(self) -> None:
        """Everything written has left; there may be more."""
        ...

    def lost(self, error: SfasyncError | None) -> None:
        """The stream is gone, for this reason; None if the server ended it. Told once, and nothing after it."""
        ...


async def connect(stream: Stream, address: ExportAddress) -> None:
    """Connect a new stream to a server. Cancelling leaves nothing behind.

    Raises:
        ConnectError: There is no such name, host or socket, or nobody listens.
        SystemLimitError: The process can have no more sockets.
    """
    loop = asyncio.get_running_loop()
    try:
        connected = await (_unix_socket(address) if address.socket is not None else _tcp_socket(address))
    except (OSError, ValueError) as error:  # ValueError: a name that the codec for host names does not take
        raise system_limit(error) or ConnectError(f"cannot connect to {stream.peer}: {_reason(error)}") from error
    try:
        if address.socket is not None:
            await loop.create_unix_connection(lambda: stream, sock=connected)
        else:
            await loop.create_connection(lambda: stream, sock=connected)
    except BaseException:
        stream.abort()
        connected.close()
        raise


async def _unix_socket(address: ExportAddress) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        while True:
            try:
                made.connect(str(address.socket))
            except BlockingIOError:
                # Not under way, as it would be over TCP: refused for now (connect(2), EAGAIN).
                await asyncio.sleep(_BUSY_PAUSE)
            else:
                return made
    except BaseException:
        made.close()
        raise


async def _tcp_socket(address: ExportAddress) -> socket.socket:
    assert address.host is not None, "an address without a host is a Unix socket"
    failure: OSError | None = None
    for family, sockaddr in await _resolve(address.host, address.port):
        made = socket.socket(family)
        try:
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            await asyncio.get_running_loop().sock_connect(made, sockaddr)
        except OSError as error:
            made.close()
            failure = failure or error
        except BaseException:
            made.close()
            raise
        else:
            return made
    raise failure or OSError("the name has no address")


async def _resolve(host: str, port: int) -> Iterable[tuple[int, tuple[object, ...]]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:  # a name: this one may have to wait
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


class Stream(asyncio.BufferedProtocol):
    """A connected stream of bytes. Its receiver may be exchanged between two of its calls.

    Attributes:
        peer: Names the server in messages.
        receiver: Who reads.
        paused: Whether something written has not left yet. While it is not, the memory of everything written is free.
        ended: Whether the stream is lost, being closed or being aborted.
        error: Why it was aborted, if it was.
    """

    def __init__(self, peer: str, receiver: Receiver) -> None:
        self.peer = peer
        self.receiver = receiver
        self.paused = False
        self.ended = False
        self._transport: asyncio.Transport | None = None
        self.error: SfasyncError | None = None
        self._tls: TlsLayer | None = None
        self._ciphertext: memoryview | None = None

    # --- for the reader ---

    def write(self, *parts: bytes | memoryview) -> None:
        """Send some bytes, all in one step, and whatever TLS has to say of its own.

        The memory belongs to the stream while it is `paused` after that, or until it is lost. Does nothing on a stream
        that has ended: its loss is on the way to the receiver.
        """
        transport = self._transport
        if self.ended or transport is None or transport.is_closing():
            return
        if self._tls is None:
            for part in parts:
                transport.write(part)
            return
        for part in parts:
            self._tls.write(part)
        ciphertext = self._tls.take()
        if ciphertext:
            transport.write(ciphertext)

    @property
    def unsent(self) -> int:
        """Bytes that wait to leave; when it shrinks, the server reads."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def start_tls(self, layer: TlsLayer) -> None:
        """Speak TLS from here on. Nothing comes through before `secured` tells that the server is verified."""
        assert self._tls is None, "TLS started twice"
        self._tls = layer
        self._ciphertext = memoryview(bytearray(_CIPHERTEXT))
        layer.handshake()
        self.write()

    def close(self) -> None:
        """End the stream when everything written has left; with TLS, say so to the server."""
        if self.ended or self._transport is None:
            return
        if self._tls is not None:
            self._tls.close()
            self.write()
        self.ended = True
        self._transport.close()

    def abort(self, error: SfasyncError | None = None) -> None:
        """End the stream now, for this reason; the first one given counts."""
        if self.error is None:
            self.error = error
        self.ended = True
        if self._transport is not None:
            self._transport.abort()

    # --- for a thread ---

    @property
    def quiet(self) -> bool:
        """Whether it is open, and nothing is on its way out."""
        return not (self.ended or self.paused or self._transport is None or self._transport.is_closing())

    @property
    def lendable(self) -> bool:
        """Whether threads can have it; over TLS only where OpenSSL can be reached (`openssl.library`)."""
        return self._tls is None or self._tls.lendable

    def lend(self) -> socket.socket | SecureSocket:
        """Let a thread read and write until `take_back`; nothing is under way.

        Returns:
            The connection with a descriptor of its own, that blocks.

        Raises:
            SystemLimitError: The process can have no more descriptors; nothing was lent.
        """
        transport = self._transport
        assert transport is not None, "a stream that has ended was lent"
        plain = None
        try:
            plain = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
            lent = plain if self._tls is None else self._tls.lend(plain)
        except OSError as error:
            if plain is not None:
                plain.close()
            raise system_limit(error) or ConnectionLostError(f"{self.peer}: {_reason(error)}") from error
        transport.pause_reading()
        plain.setblocking(True)  # it goes for both descriptors
        return lent

    def take_back(self, lent: socket.socket | SecureSocket, failure: SfasyncError | None = None) -> None:
        """Read and write again, or end for this reason."""
        lent.setblocking(False)
        lent.close()
        if failure is not None:
            self.abort(failure)
        elif self._transport is not None:
            self._transport.resume_reading()
            if self._tls is not None:
                self.buffer_updated(0)  # what TLS took in with the last bytes for the thread: a goodbye, perhaps

    # --- for the loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has the methods and not the base class
        # With no high water at all, "not paused" means that the transport holds nothing of ours.
        self._transport.set_write_buffer_limits(high=0)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.receiver.next_buffer() if self._ciphertext is None else self._ciphertext

    def buffer_updated(self, nbytes: int) -> None:
        try:
            if self._tls is None:
                self.receiver.received(nbytes)
            else:
                self._decrypt(self._tls, nbytes)
        except SfasyncError as error:
            self.abort(error)
        except Exception as error:  # noqa: BLE001 - a bug of ours must still end the connection, not the loop's patience
            self._abort_on_bug(error)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.ended:
            return
        try:
            self.receiver.resumed()
        except SfasyncError as error:
            self.abort(error)
        except Exception as error:  # noqa: BLE001 - as above
            self._abort_on_bug(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self.paused = False
        self._transport = None
        error = self.error
        if error is None and exc is not None:
            error = ConnectionLostError(f"{self.peer}: the connection was lost: {_reason(exc)}")
            error.__cause__ = exc
        self.receiver.lost(error)

    def _decrypt(self, layer: TlsLayer, count: int) -> None:
        assert self._ciphertext is not None, "no TLS"
        layer.feed(self._ciphertext[:count])
        try:
            if not layer.established and layer.handshake():
                self.write()
                self.receiver.secured()
            while layer.established and not self.ended:
                plain = layer.read_into(self.receiver.next_buffer())
                if not plain:
                    break
                self.receiver.received(plain)
        except EOFError:
            self.abort()
        finally:
            self.write()  # an alert, or the answer to a change of keys

    def _abort_on_bug(self, error: Exception) -> None:
        _logger.exception("%s: internal error, the connection is ended", self.peer)
        failure = ConnectionLostError(f"{self.peer}: the connection was ended by an internal error: {error!r}")
        failure.__cause__ = error
        self.abort(failure)


def _reason(error: Exception) -> str:
    """An error of the system in its own words, without asyncio's additions."""
    if isinstance(error, socket.gaierror):  # its numbers are its own
        return str(error.strerror)
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error)
