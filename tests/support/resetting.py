"""A proxy before an NBD server that resets connections: after so many bytes, or when told.

with nbdkit("pattern", "1G", tcp=True) as server, resetting(server, every=40 * MiB) as proxy:
    async with await open_export(proxy.uri, retry=Retry()) as export: ...

It has threads of its own, so that it goes on while a test blocks its loop or waits for a process. The server itself is
treated gently: nbdkit 1.32 aborts when a connection is reset over many replies, so what it still says is taken in. It
aborts as well when a connection ends between two of its threads: let it have one (``--threads=1``).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .servers import Server

_PIECE = 64 << 10
_LINGER = struct.pack("ii", 1, 0)  # close(2) sends a RST and forgets what is unsent (socket(7), SO_LINGER)


@dataclass(eq=False)
class _Pair:
    """One connection through the proxy."""

    client: socket.socket
    server: socket.socket
    ended: bool = False


class Proxy:
    """What the proxy does and has done; may be changed at any time.

    Attributes:
        uri: How a client reaches it; the scheme and the parameters are the server's.
        every: Bytes from the server after which a connection is ended, counted over all connections; None for never.
        most: How many are ended so.
        down: New connections are reset at once.
        polite: Connections end by FIN instead of RST.
        resets: Connections that were ended so far; those that still stand when the proxy itself is closed do not count.
        received: Bytes that came from the server and went on to a client.
    """

    def __init__(self, server: Server, every: int | None, most: int, polite: bool) -> None:
        assert server.port is not None, "the proxy needs a server on TCP"
        self.every = every
        self.most = most
        self.down = False
        self.polite = polite
        self.resets = 0
        self.received = 0
        self._port = server.port
        self._left = every or 0
        self._lock = threading.Lock()
        self._pairs: set[_Pair] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = server.uri.replace(f":{server.port}/", f":{self._listener.getsockname()[1]}/")
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def reset(self) -> None:
        """Reset all connections."""
        for pair in list(self._pairs):
            self._end(pair)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends `accept`
        self._listener.close()
        for pair in list(self._pairs):
            self._end(pair, counted=False)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    if self.down:
                        raise ConnectionRefusedError
                    server = socket.create_connection(("127.0.0.1", self._port))
                except OSError:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
                    client.close()
                    continue
                pair = _Pair(client, server)
                self._pairs.add(pair)
                for run in (self._up, self._down):
                    thread = threading.Thread(target=run, args=(pair,), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _up(self, pair: _Pair) -> None:
        """From the client to the server, and the end of it."""
        with contextlib.suppress(OSError):
            while data := pair.client.recv(_PIECE):
                pair.server.sendall(data)
        with contextlib.suppress(OSError):
            pair.server.shutdown(socket.SHUT_WR)

    def _down(self, pair: _Pair) -> None:
        """From the server to the client; when that is gone, to nowhere."""
        with contextlib.suppress(OSError):
            while data := pair.server.recv(_PIECE):
                if not pair.ended:
                    with contextlib.suppress(OSError):
                        pair.client.sendall(data)
                    if self._due(len(data)):
                        self._end(pair)
        self._end(pair, counted=False)
        pair.server.close()

    def _due(self, count: int) -> bool:
        """Take note of bytes from the server; whether this connection has to end now."""
        with self._lock:
            self.received += count
            self._left -= count
            if self.every is None or self.resets >= self.most or self._left > 0:
                return False
            self._left += self.every
            return True

    def _end(self, pair: _Pair, *, counted: bool = True) -> None:
        with self._lock:
            if pair.ended:
                return
            pair.ended = True
            self._pairs.discard(pair)
            self.resets += counted
        with contextlib.suppress(OSError):
            if not self.polite:
                pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            pair.client.shutdown(socket.SHUT_RD if not self.polite else socket.SHUT_RDWR)  # ends `recv`
        pair.client.close()


@contextmanager
def resetting(
    server: Server, *, every: int | None = None, most: int = 1 << 30, polite: bool = False
) -> Iterator[Proxy]:
    """A proxy on a free port before a server on TCP."""
    proxy = Proxy(server, every, most, polite)
    try:
        yield proxy
    finally:
        proxy.close()
