"""One connection to one export: requests in, callbacks out.

There are no tasks here. Whoever submits a command gives a callback, which runs on the loop when the command is finished
and its memory is free; it may submit the next one. Requests that are submitted while bytes are being received leave
together, in one write.

A payload is handed to the transport in one step and only when the transport holds nothing, so at most one payload is in
it at any time (`_leaving`), and a cancelled write never leaves half a request behind.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from ..errors import ConnectionLostError, DeadlineError, SfasyncError, printable
from ..models import ExportAddress, Timeouts
from ..nbd import const, wire
from ..nbd.handshake import ExportInfo, opening
from ..nbd.session import Command, Session, State
from .line import Line, PlainLine, SecureLine
from .negotiation import negotiate
from .stream import Stream

_logger = logging.getLogger(__name__)

_MAX_ABANDONED: Final = 32
_ABANDONED_STALL: Final = 5.0
"""Seconds without progress after which an abandoned request costs the connection."""

_LEAVE: Final = 1.0
"""Seconds that the payload of a cancelled write may take to leave."""

_JOINED_PAYLOAD: Final = 16 << 10
"""Up to this many bytes a payload is copied behind its header: cheaper than a second call of the system."""

OnDone = Callable[[Command], None]


class Connection:
    """A connection in its transmission phase; made by `Connection.open`. Belongs to one event loop.

    Attributes:
        info: What the server said of the export.
        name: The server and the export, for messages.
        failure: Why the connection is dead; None while it lives.
    """

    @classmethod
    async def open(
        cls,
        address: ExportAddress,
        *,
        context: ssl.SSLContext | None,
        contexts: Sequence[str],
        requests: int,
        timeouts: Timeouts,
    ) -> Connection:
        """Connect to an export. Cancelling leaves nothing behind.

        Args:
            address: The server and the export.
            context: What TLS believes; None for a plain address.
            contexts: Metadata contexts to ask for.
            requests: Most requests in flight.
            timeouts: Budgets of connecting, and of the connection later.

        Raises:
            NbdError, TlsError: As `negotiate`.
        """
        peer = printable(address.peer)
        handshake = opening(peer, tls=address.tls_style, export=address.export, contexts=contexts)
        stream, info = await negotiate(address, handshake, context=context, timeout=timeouts.connect)
        name = f"{peer} export '{printable(address.export)}'" if address.export else peer
        return cls(stream, info, name=name, requests=requests, timeouts=timeouts)

    def __init__(self, stream: Stream, info: ExportInfo, *, name: str, requests: int, timeouts: Timeouts) -> None:
        self.info = info
        self.failure: SfasyncError | None = None
        self.name = name
        self._requests = requests
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._session = Session(name, structured=info.structured, contexts=info.contexts)
        self._stream = stream
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._closing = False
        self._drained: asyncio.Future[None] | None = None  # set when a close waits for the last replies

        self._queue: deque[Command] = deque()
        self._corked = False  # more may be submitted before this turn of the loop ends
        self._leaving: Command | None = None  # the write whose payload the transport holds
        self._answered: Command | None = None  # the same, if its reply came before its payload had left

        self._progress = self._loop.time()  # when a byte last came or left
        self._unsent = 0
        self._lent: Line | None = None
        self._aborted: SfasyncError | None = None  # why it ends when it is back
        self._watchdog: asyncio.TimerHandle | None = None
        self._leave_timer: asyncio.TimerHandle | None = None
        stream.receiver = self
        if stream.ended:  # between the end of the handshake and now
            self.lost(None)

    def __repr__(self) -> str:
        state = "dead" if self.failure else "closing" if self._closing else "open"
        return f"<Connection {self.name}, {state}, {len(self._session.in_flight)} in flight, {len(self._queue)} queued>"

    @property
    def alive(self) -> bool:
        return self.failure is None and self._aborted is None and not self._closing and not self._stream.ended

    @property
    def load(self) -> int:
        """Requests queued and in flight."""
        return len(self._queue) + len(self._session.in_flight)

    @property
    def busy(self) -> bool:
        """Whether somebody waits for a request here."""
        return self.load > self._session.abandoned

    # --- requests ---

    def submit(self, command: Command, on_done: OnDone, *, more: bool = False) -> None:
        """Queue a command; it is sent at once when there is room.

        Args:
            command: A new command; its memory belongs to the connection until `on_done` is called.
            on_done: Called on the loop exactly once, later, with the command DONE, FAILED or ABANDONED. Must not raise.
            more: Do not send it yet: others follow, and `send` after them.

        Raises:
            SfasyncError: The connection is not open, for this reason; the command was not taken.
        """
        if not self.alive:
            failure = self.failure or self._stream.error
            if failure is None:
                failure = ConnectionLostError(f"{self.name}: the connection is closed")
            raise type(failure)(str(failure), offset=command.offset, length=command.length)
        assert self._lent is None, f"{self!r}: a thread has it"
        command.on_done = on_done
        self._queue.append(command)
        if not more:
            self.send()

    def send(self) -> None:
        """Send what is queued, as far as there is room."""
        if self._queue and not self._corked:
            self._pump()

    def abandon(self, command: Command) -> None:
        """Stop waiting for a command. Its callback is called when its memory is free: for all but a write at once.

        A write whose payload is on its way out keeps its memory until that has left, or for a second, after which the
        connection is aborted: half a request cannot be taken back.
        """
        if command.on_done is None or command.state is State.ABANDONED:
            return
        if command.state is State.QUEUED:
            self._queue.remove(command)
            command.state = State.ABANDONED
            command.buffer = None
        elif command.state is State.SENT:
            self._session.abandon(command)
        if command is self._leaving:
            if self._leave_timer is None:
                self._leave_timer = self._loop.call_later(_LEAVE, self._leave_late)
            return
        if command.state is State.ABANDONED:
            self._tell(command)
        if self._session.abandoned > _MAX_ABANDONED:
            self.abort(DeadlineError(f"{self.name}: more than {_MAX_ABANDONED} abandoned requests are unanswered"))

    # --- for a thread ---

    @property
    def lent(self) -> bool:
        """Whether a thread has it."""
        return self._lent is not None

    @property
    def idle(self) -> bool:
        """Whether it is open and has nothing to do, so that a thread may have it."""
        return self.alive and not self.lent and not self.load and self._stream.quiet and self._stream.lendable

    def lend(self, *, most: int, on_write: Callable[[int, int], None]) -> Line:
        """Let one thread drive it until `take_back`, whatever happens; it is idle.

        Meanwhile nothing can be submitted, and its end waits until it is back.

        Args:
            most: Bytes of one request.
            on_write: Told of ranges (start, end) that the server acknowledged, on the loop.

        Raises:
            SystemLimitError: The process can have no more descriptors; it was not lent.
        """
        assert self.idle, f"{self!r} was lent"
        lent = self._stream.lend()
        self._end_watch()
        kind = PlainLine if isinstance(lent, socket.socket) else SecureLine
        self._lent = kind(
            lent,
            self._session,
            name=self.name,
            timeouts=self._timeouts,
            most=most,
            on_write=on_write,
        )
        self._watchdog = self._loop.call_later(self._watch_interval, self._watch_lent)
        return self._lent

    @property
    def called_back(self) -> bool:
        """Whether a thread has it that was told to leave."""
        return self._lent is not None and self._lent.called

    def call_back(self, on_return: Callable[[], None]) -> None:
        """Take it back as soon as its thread has the answer to the request it is at, and call a function then."""
        line = self._lent
        assert line is not None, f"{self!r} was not lent"

        def left() -> None:
            if self._lent is line:
                self.take_back(line)
                on_return()

        line.call_back(left)

    def take_back(self, line: Line) -> None:
        """The thread that has this line has left it, if it has not done so before."""
        if self._lent is not line:
            return
        self._lent = None
        self._end_watch()
        line.release()
        self._progress = self._loop.time()
        self._stream.take_back(line.descriptor, line.failure or self._aborted)

    # --- the end ---

    async def aclose(self) -> None:
        """Read what is still to come, say goodbye and close, within the time for that, then abort. Idempotent.

        Requests still under way may finish; those that do not in that time fail. Cancelling aborts.
        """
        deadline = self._loop.time() + self._timeouts.close
        try:
            if self._lent is not None:
                self.abort()
            elif not self._closing:
                self._closing = True
                await self._drain()
                if not self._stream.paused:
                    self._stream.write(wire.encode_disconnect())
                self._stream.close()
            await asyncio.wait([self._closed], timeout=deadline - self._loop.time())
        finally:
            self.abort()
        await asyncio.wait([self._closed])

    async def _drain(self) -> None:
        """Wait for the replies to what was sent, half the time for closing at most.

        A client should not leave while it is being answered (proto.md, "Terminating the transmission phase"), and
        nbdkit 1.32 may abort with all its clients when one does.
        """
        if self._session.in_flight and not self._closed.done():
            self._drained = self._loop.create_future()
            await asyncio.wait(
                [self._drained, self._closed],
                timeout=self._timeouts.close / 2,
                return_when=asyncio.FIRST_COMPLETED,
            )

    def abort(self, error: SfasyncError | None = None) -> None:
        """End the connection now, without a word; its commands fail, with `error` if that is given. Idempotent."""
        if self._closed.done():
            return
        error = error or ConnectionLostError(f"{self.name}: the connection was aborted")
        if self._lent is None:
            self._stream.abort(error)
        else:
            self._aborted = self._aborted or error
            self._lent.stop()

    # --- for the stream ---

    def next_buffer(self) -> memoryview:
        return self._session.next_buffer()

    def received(self, count: int) -> None:
        self._progress = self._loop.time()
        finished = self._session.received(count)
        if finished:
            self._corked = True
            for command in finished:
                if command is self._leaving:
                    self._answered = command
                else:
                    self._tell(command)
            self._corked = False
        if self._queue:  # also when only abandoned requests were answered: they made room
            self._pump()
        if self._drained is not None and not self._session.in_flight and not self._drained.done():
            self._drained.set_result(None)

    def secured(self) -> None:
        raise AssertionError("TLS started outside of the handshake")

    def resumed(self) -> None:
        self._progress = self._loop.time()
        self._let_go()
        if not self._closing:
            self._pump()

    def lost(self, error: SfasyncError | None) -> None:
        if self._closed.done():
            return
        self.failure = error or ConnectionLostError(
            f"{self.name}: the connection was closed" + ("" if self._closing else " by the server")
        )
        self._end_watch()
        failed = self._session.fail(self.failure)
        self._let_go()
        for command in failed:
            self._tell(command)
        while self._queue:
            command = self._queue.popleft()
            command.fail(self.failure)
            self._tell(command)
        self._closed.set_result(None)

    # --- inside ---

    def _pump(self) -> None:
        """Send what is queued, as far as the depth and the transport allow; small things go out in one write."""
        session, stream = self._session, self._stream
        now = self._loop.time()
        headers: list[bytes] = []
        while self._queue and len(session.in_flight) < self._requests and not stream.paused:
            command = self._queue.popleft()
            command.sent_at = now
            headers.append(session.request(command))
            if command.kind != const.CMD_WRITE:
                continue
            assert command.buffer is not None, "a write without data"
            if command.length <= _JOINED_PAYLOAD:
                headers.append(bytes(command.buffer))
                continue
            stream.write(b"".join(headers), command.buffer)
            headers.clear()
            if stream.paused:
                self._leaving = command
        if headers:
            stream.write(b"".join(headers))
        if self._watchdog is None and session.in_flight:
            self._watchdog = self._loop.call_later(self._watch_interval, self._watch)

    def _let_go(self) -> None:
        """The transport holds nothing any more, or is gone: the payload that was in it is free."""
        command, self._leaving = self._leaving, None
        answered, self._answered = self._answered, None
        if self._leave_timer is not None:
            self._leave_timer.cancel()
            self._leave_timer = None
        if command is not None and (answered is not None or command.state is State.ABANDONED):
            self._tell(command)

    def _tell(self, command: Command) -> None:
        on_done, command.on_done = command.on_done, None
        if on_done is None:
            return
        try:
            on_done(command)
        except Exception:
            _logger.exception("%s: a callback failed", self.name)

    def _leave_late(self) -> None:
        self._leave_timer = None
        self.abort(DeadlineError(f"{self.name}: the data of a cancelled write did not leave within {_LEAVE:g} s"))

    # --- deadlines ---

    @property
    def _watch_interval(self) -> float:
        return min(1.0, self._timeouts.stall / 4, self._timeouts.request / 4)

    def _watch(self) -> None:
        """Look after the requests in flight; one timer for all of them, running only while there are some."""
        self._watchdog = None
        in_flight = self._session.in_flight
        oldest = next(iter(in_flight.values()), None)
        if oldest is None:
            return
        now = self._loop.time()
        unsent = self._stream.unsent
        if unsent != self._unsent:
            self._unsent, self._progress = unsent, now
        idle = now - max(self._progress, oldest.sent_at)
        if any(command.kind == const.CMD_FLUSH for command in in_flight.values()):
            idle = 0.0  # a server that writes gigabytes to a disk for a flush has nothing to say meanwhile
        late = self._late(idle, now - oldest.sent_at)
        if late is not None:
            self.abort(DeadlineError(f"{self.name}: {late}; {len(in_flight)} requests were in flight"))
        else:
            self._watchdog = self._loop.call_later(self._watch_interval, self._watch)

    def _watch_lent(self) -> None:
        """Look after the thread that has the connection."""
        if self._lent is not None:
            self._lent.watch()
            self._watchdog = self._loop.call_later(self._watch_interval, self._watch_lent)

    def _end_watch(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _late(self, idle: float, age: float) -> str | None:
        """What takes too long: `idle` seconds without a byte, `age` seconds since the oldest request was sent."""
        if idle >= self._timeouts.stall:
            return f"no byte came or left for {idle:.1f} s"
        if age >= self._timeouts.request:
            return f"a request was not answered within {age:.1f} s"
        if self._session.abandoned and idle >= _ABANDONED_STALL:
            return f"no byte came or left for {idle:.1f} s after a request was cancelled"
        return None
