"""A connection in the hands of one thread: one request at a time, with calls that block.

The connection was made by the event loop and goes back to it (`Connection.lend`, `Connection.take_back`), with the same
session: what a server says is judged by the same rules. Nothing is repeated here.

The thread waits without a limit: one on each of its calls costs a tenth of the speed. The loop has an eye on it, and
cuts the connection where it takes too long, which wakes the thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ..errors import ConnectionLostError, DeadlineError, SfasyncError
from ..interfaces import Buffer
from ..models import Timeouts
from ..nbd import const, wire
from ..nbd.session import Command, Session, State

if TYPE_CHECKING:
    from ..openssl import SecureSocket

_logger = logging.getLogger(__name__)

_GRACE: Final = 0.25
"""Seconds that a request may take to be answered when nobody wants it any more, before its connection is cut."""

_HEADER: Final = wire.STRUCTURED_REPLY.size + wire.OFFSET_DATA.size
"""The most that comes before the payload of a read: received alone, so that the payload comes where it belongs."""


class Line:
    """One connection for one thread; `PlainLine` or `SecureLine`.

    Args:
        descriptor: The connection, which blocks.
        session: What is said on it.
        name: The server and the export, for messages.
        timeouts: Budgets of the connection.
        most: Bytes of one request.
        on_write: Told by `settle` of ranges (start, end) that the server acknowledged.

    Attributes:
        waited: Seconds between requests and the first bytes of their replies, so far.
        failure: Why the connection cannot be used any more.
        called: Whether the loop wants it back.
        descriptor: As given.
    """

    def __init__(
        self,
        descriptor: socket.socket | SecureSocket,
        session: Session,
        *,
        name: str,
        timeouts: Timeouts,
        most: int,
        on_write: Callable[[int, int], None],
    ) -> None:
        self.waited = 0.0
        self.failure: SfasyncError | None = None
        self.called = False
        self.descriptor = descriptor
        self._session = session
        self._name = name
        self._timeouts = timeouts
        self._most = most
        self._header = memoryview(bytearray(_HEADER))
        self._on_write = on_write
        self._written: list[tuple[int, int]] = []
        self._stopped = False
        self._loop = asyncio.get_running_loop()
        self._using = threading.Lock()  # held by the thread during a request
        self._on_left: Callable[[], None] | None = None
        self._end: asyncio.TimerHandle | None = None  # when the connection is cut
        self._asked = self._progress = 0.0  # when the request was sent, 0 for none; when a byte last came or left

    # --- for the thread ---

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer.

        Raises:
            RequestError: The server could not read.
            NbdError: The connection is lost.
        """
        for start in range(0, len(buffer), self._most):
            with buffer[start : start + self._most] as part:
                self._carry_out(Command(const.CMD_READ, offset + start, len(part), buffer=part))

    def write(self, offset: int, data: Buffer) -> None:
        """Write all bytes.

        Raises:
            RequestError: The server could not write.
            NbdError: The connection is lost.
        """
        with memoryview(data) as view:
            for start in range(0, len(view), self._most):
                with view[start : start + self._most] as part:
                    self._carry_out(Command(const.CMD_WRITE, offset + start, len(part), buffer=part))

    def _carry_out(self, command: Command) -> None:
        """Make a request and take note of what it wrote, unless the loop wants no more of them."""
        try:
            with self._using:
                if self._stopped or self.failure is not None:  # which another thread has met
                    raise ConnectionLostError(f"{self._name}: the connection was given up") from self.failure
                self._ask(command)
                if command.kind == const.CMD_WRITE:
                    self._written.append((command.offset, command.offset + command.length))
        finally:
            if self._on_left is not None:  # looked at without the lock: whoever sets it tries that afterwards
                with suppress(RuntimeError):  # the loop was closed: nobody waits
                    self._loop.call_soon_threadsafe(self._on_left)

    def _ask(self, command: Command) -> None:
        try:
            self._exchange(command)
        except SfasyncError as error:
            if self.failure is not None:  # it was cut, for this reason
                raise self.failure from error
            self.failure = error
            raise
        except Exception as error:
            _logger.exception("%s: internal error, the connection is ended", self._name)
            self.failure = ConnectionLostError(
                f"{self._name}: the connection was ended by an internal error: {error!r}"
            )
            raise self.failure from error
        self._asked = 0.0
        if command.error is not None:
            raise command.error

    def _exchange(self, command: Command) -> None:
        """Send a request and receive its reply: as a whole if it is the usual one, or else as the session says."""
        session = self._session
        self._asked = self._progress = time.monotonic()
        self._send(command)
        usual = session.usual_reply(command)
        header = self._header[: len(usual)]
        sent = time.perf_counter()
        count = self._receive(header)
        self.waited += time.perf_counter() - sent
        while count < len(usual) and header[:count] == usual[:count]:  # nbdkit sends it in two parts
            count += self._receive(header[count:])
        if header[:count] == usual:
            if command.kind == const.CMD_READ:
                assert command.buffer is not None, "a read without memory"
                self._fill(command.buffer)
            session.fulfilled(command)
            return
        session.next_buffer()[:count] = header[:count]
        session.received(count)
        while command.state is State.SENT:
            self._follow(session)

    def _follow(self, session: Session) -> None:
        """Receive what the session waits for."""
        buffer = session.next_buffer()
        if session.in_payload:
            length = len(buffer)
            self._fill(buffer)
            session.received(length)
        else:
            session.received(self._receive(buffer))

    def _fill(self, buffer: memoryview) -> None:
        """Receive a part of a reply that has begun."""
        while buffer:
            buffer = buffer[self._receive(buffer) :]

    def _receive(self, buffer: memoryview) -> int:
        """Some bytes for the buffer, which is not empty.

        Without MSG_WAITALL: with it a thread is woken for each of a server's writes, and not for what has come since.
        """
        return self._received(self.descriptor.recv_into, buffer)

    def _received(self, receive: Callable[[memoryview], int], buffer: memoryview) -> int:
        try:
            count = receive(buffer)
        except OSError as error:
            raise self._lost(error) from error
        if count == 0:
            raise self._ended()
        self._progress = time.monotonic()
        return count

    def _send(self, command: Command) -> None:
        parts: list[bytes | memoryview] = [self._session.request(command)]
        if command.kind == const.CMD_WRITE and command.buffer is not None:
            parts.append(command.buffer)
        while parts:
            try:
                count = self.descriptor.sendmsg(parts)
            except OSError as error:
                raise self._lost(error) from error
            self._progress = time.monotonic()
            while parts and count >= len(parts[0]):
                count -= len(parts.pop(0))
            if count:
                parts[0] = memoryview(parts[0])[count:]

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
        """Let a request under way be answered, if that happens soon; there are no more."""
        self._stopped = True
        if self._end is None:
            self._end = asyncio.get_running_loop().call_later(_GRACE, self._give_up)

    def call_back(self, on_left: Callable[[], None]) -> None:
        """Let the thread make no more requests, and call a function when it has the answer to the one it is at, if
        there is one; more than once perhaps.
        """
        self.called = self._stopped = True
        self._on_left = on_left
        if self._using.acquire(blocking=False):
            self._using.release()
            self._loop.call_soon(on_left)

    def watch(self) -> None:
        """Cut the connection if it takes too long."""
        asked, progress, now = self._asked, self._progress, time.monotonic()
        if not asked:
            return
        idle = now - max(asked, progress)  # the thread may have noted but one of the two
        if idle >= self._timeouts.stall:
            self._cut(DeadlineError(f"{self._name}: no byte came or left for {idle:.1f} s"))
        elif now - asked >= self._timeouts.request:
            self._cut(DeadlineError(f"{self._name}: a request was not answered within {now - asked:.1f} s"))

    def release(self) -> None:
        """The thread has left it."""
        if self._end is not None:
            self._end.cancel()
        if self._asked and self.failure is None:
            self.failure = ConnectionLostError(f"{self._name}: a thread left the connection in the middle of a request")
        self.settle()

    def _give_up(self) -> None:
        if self._asked:
            self._cut(ConnectionLostError(f"{self._name}: the connection was given up in the middle of a request"))

    def _cut(self, error: SfasyncError) -> None:
        """End the connection, which wakes the thread."""
        self.failure = self.failure or error
        with suppress(OSError):  # the server was quicker
            self.descriptor.shutdown(socket.SHUT_RDWR)


class PlainLine(Line):
    """A connection without TLS."""

    descriptor: socket.socket
    _file: int | None = None  # has the payload of writes without memory

    def send(self, offset: int, length: int, fileno: int) -> None:
        """Write what a file has at the same place, without a copy of ours (sendfile(2)).

        Raises:
            RequestError: The server could not write.
            NbdError: The connection is lost, which it also is if the file cannot be read.
        """
        end = offset + length
        self._file = fileno
        for start in range(offset, end, self._most):
            self._carry_out(Command(const.CMD_WRITE, start, min(self._most, end - start)))

    def _send(self, command: Command) -> None:
        super()._send(command)
        if command.kind == const.CMD_WRITE and command.buffer is None:
            self._send_file(command.offset, command.offset + command.length)

    def _send_file(self, position: int, end: int) -> None:
        assert self._file is not None, "a write without data"
        while position < end:
            try:
                count = os.sendfile(self.descriptor.fileno(), self._file, position, end - position)
            except OSError as error:
                raise self._lost(error) from error
            if count == 0:
                raise ConnectionLostError(f"{self._name}: the file that was to be sent became shorter")
            self._progress = time.monotonic()
            position += count


class SecureLine(Line):
    """A connection with TLS, which has a call for many records."""

    descriptor: SecureSocket
    _moved = 0  # bytes of the connection, as far as the loop knows

    def watch(self) -> None:
        moved = self.descriptor.moved
        if moved != self._moved:  # perhaps in the midst of a call
            self._moved = moved
            self._progress = time.monotonic()
        super().watch()

    def _fill(self, buffer: memoryview) -> None:
        while buffer:
            buffer = buffer[self._received(self.descriptor.fill, buffer) :]
