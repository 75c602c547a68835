"""A connection in the hands of one thread: one request at a time, with calls that block.

The connection was made by the event loop and goes back to it (`Connection.lend`, `Connection.take_back`), with the same
session: what a server says is judged by the same rules. Nothing is repeated here.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Final

from ..errors import ConnectionLostError, DeadlineError, SfasyncError
from ..interfaces import Buffer
from ..models import Timeouts
from ..nbd import const, wire
from ..nbd.session import Command, Session, State
from ..tls import TlsLayer

TICK: Final = 0.25
"""Seconds after which a blocked call looks whether it is still wanted."""

_HEADER: Final = wire.STRUCTURED_REPLY.size + wire.OFFSET_DATA.size
"""The most that comes before the payload of a read: received alone, so that the payload comes where it belongs."""


class Line:
    """One connection for one thread.

    Args:
        descriptor: The connection, which blocks for `TICK` at most.
        session: What is said on it.
        tls: En- and decrypts, if it is secured.
        ciphertext: Memory for what comes before it is decrypted.
        name: The server and the export, for messages.
        timeouts: Budgets of the connection.
        most: Bytes of one request.
        on_write: Told by `settle` of ranges (start, end) that the server acknowledged.

    Attributes:
        waited: Seconds between requests and the first bytes of their replies, so far.
        failure: Why the connection cannot be used any more.
        descriptor: As given.
    """

    def __init__(
        self,
        descriptor: socket.socket,
        session: Session,
        *,
        tls: TlsLayer | None,
        ciphertext: memoryview | None,
        name: str,
        timeouts: Timeouts,
        most: int,
        on_write: Callable[[int, int], None],
    ) -> None:
        self.waited = 0.0
        self.failure: SfasyncError | None = None
        self.descriptor = descriptor
        self._session = session
        self._tls = tls
        self._ciphertext = ciphertext
        self._name = name
        self._timeouts = timeouts
        self._most = most
        self._header = memoryview(bytearray(_HEADER))
        self._on_write = on_write
        self._written: list[tuple[int, int]] = []
        self._stopped = False
        self._asked = self._progress = 0.0

    # --- for the thread ---

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer.

        Raises:
            RequestError: The server could not read.
            NbdError, TlsError: The connection is lost.
        """
        for start in range(0, len(buffer), self._most):
            with buffer[start : start + self._most] as part:
                self._carry_out(Command(const.CMD_READ, offset + start, len(part), buffer=part))

    def write(self, offset: int, data: Buffer) -> None:
        """Write all bytes.

        Raises:
            RequestError: The server could not write.
            NbdError, TlsError: The connection is lost.
        """
        with memoryview(data) as view:
            for start in range(0, len(view), self._most):
                with view[start : start + self._most] as part:
                    self._carry_out(Command(const.CMD_WRITE, offset + start, len(part), buffer=part))
            self._written.append((offset, offset + len(view)))

    def _carry_out(self, command: Command) -> None:
        if self._stopped:
            raise ConnectionLostError(f"{self._name}: the connection was given up")
        try:
            self._exchange(command)
        except BaseException as error:
            if not isinstance(error, SfasyncError):
                error = ConnectionLostError(f"{self._name}: the connection was ended by an internal error: {error!r}")
            self.failure = error
            raise
        if command.error is not None:
            raise command.error

    def _exchange(self, command: Command) -> None:
        """Send a request and receive its reply: as a whole if it is the usual one, or else as the session says."""
        session = self._session
        self._asked = self._progress = time.monotonic()
        self._request(command)
        usual = session.usual_reply(command)
        header = self._header[: len(usual)]
        sent = time.perf_counter()
        count = self._receive(header)
        self.waited += time.perf_counter() - sent
        if header[:count] == usual:
            if command.kind == const.CMD_READ:
                assert command.buffer is not None, "a read without memory"
                self._receive_all(command.buffer)
            session.fulfilled(command)
            return
        session.next_buffer()[:count] = header[:count]
        session.received(count)
        while command.state is State.SENT:
            session.received(self._receive(session.next_buffer()))

    def _receive_all(self, buffer: memoryview) -> None:
        while buffer:
            buffer = buffer[self._receive(buffer) :]

    def _receive(self, buffer: memoryview) -> int:
        """Some bytes for the buffer, which is not empty.

        Without MSG_WAITALL: with it a thread is woken for each of a server's writes, and not for what has come since.
        """
        if self._tls is None:
            return self._receive_some(buffer)
        assert self._ciphertext is not None, "TLS without memory for it"
        while True:
            try:
                count = self._tls.read_into(buffer)
            except EOFError:
                raise self._ended() from None
            if count:
                return count
            answer = self._tls.take()  # to a change of keys
            if answer:
                self._send([answer])
            self._tls.feed(self._ciphertext[: self._receive_some(self._ciphertext)])

    def _receive_some(self, buffer: memoryview) -> int:
        while True:
            try:
                count = self.descriptor.recv_into(buffer)
            except BlockingIOError:
                self._look()
            except OSError as error:
                raise self._lost(error) from error
            else:
                if count == 0:
                    raise self._ended()
                self._progress = time.monotonic()
                return count

    def _request(self, command: Command) -> None:
        parts: list[bytes | memoryview] = [self._session.request(command)]
        if command.kind == const.CMD_WRITE:
            assert command.buffer is not None, "a write without data"
            parts.append(command.buffer)
        if self._tls is None:
            self._send(parts)
            return
        for part in parts:
            self._tls.write(part)
        self._send([self._tls.take()])

    def _send(self, parts: list[bytes | memoryview]) -> None:
        """All bytes of some parts, of which none is empty."""
        while parts:
            try:
                count = self.descriptor.sendmsg(parts)
            except BlockingIOError:
                self._look()
                continue
            except OSError as error:
                raise self._lost(error) from error
            self._progress = time.monotonic()
            while parts and count >= len(parts[0]):
                count -= len(parts.pop(0))
            if count:
                parts[0] = memoryview(parts[0])[count:]

    def _look(self) -> None:
        """Nothing has come or left for a moment: whether to go on waiting."""
        now = time.monotonic()
        if self._stopped:
            raise ConnectionLostError(f"{self._name}: the connection was given up in the middle of a request")
        if now - self._progress >= self._timeouts.stall:
            raise DeadlineError(f"{self._name}: no byte came or left for {now - self._progress:.1f} s")
        if now - self._asked >= self._timeouts.request:
            raise DeadlineError(f"{self._name}: a request was not answered within {now - self._asked:.1f} s")

    def _ended(self) -> ConnectionLostError:
        return ConnectionLostError(f"{self._name}: the connection was closed by the server")

    def _lost(self, error: OSError) -> ConnectionLostError:
        return ConnectionLostError(f"{self._name}: the connection was lost: {os.strerror(error.errno or 0)}")

    # --- for the loop ---

    def settle(self) -> None:
        """Tell of what was written; when no call is under way."""
        for start, end in self._written:
            self._on_write(start, end)
        self._written.clear()

    def stop(self) -> None:
        """End a call under way when the server answers, or at the next look, which costs the connection."""
        self._stopped = True
