"""One call of an export: its commands, a window of them in flight, each sent again until it is answered or given up.

Only what may be repeated is: reads, block status and cache, and writes, zeros and trims of the same bytes. A read that
lost its connection asks for nothing but the bytes that had not come. A flush, or anything with FUA, that the server
refused is never repeated: what the failed attempt was to make durable may be gone from the server's memory, and a
second one would succeed over nothing.

Life of a command here::

    out -> answered
        -> lost with its connection -> again -> out        as a suspect from its second loss on, over a new connection
        -> refused (EIO, ENOMEM) -> resting -> again -> out
        -> given up: the call fails
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Final, NamedTuple

from ..errors import ConnectionLostError, DeadlineError, RequestError, SfasyncError
from ..models import Retry
from ..nbd import const
from ..nbd.session import Command, State
from ..retry import pause
from .connection import Connection
from .connections import Choose, Connections

_TRANSIENT: Final = frozenset({const.EIO, const.ENOMEM})
"""What a server may get over. Everything else it says of a request is final."""

_COMPANY: Final = 2
"""How often a command may be lost together with others before it is sent alone, over a connection opened since."""

_STALLS: Final = 2
"""How often a command may see its connection stall: each time costs a whole deadline."""

_PROGRESS: Final = 64 << 10
"""Bytes of a read that must come before its connection is lost for the loss not to count."""

OnAnswer = Callable[[Command, Connection], None]


class Failure(NamedTuple):
    """A part of a call that was asked for in vain, and how that ended the last time."""

    error: SfasyncError
    offset: int
    length: int


class _Past:
    """What a command that was not answered at once has been through.

    Attributes:
        losses: Connections that it was lost with since it last made progress.
        events: What they come to. An outage that cuts one connection after another is one event, however often the
            command is sent again over the next of them.
        witnesses: The connections there were at the last event; what becomes of them tells nothing new.
        refusals: By the server.
        stalls: Losses for a deadline.
        suspect: Whether it is sent alone.
    """

    __slots__ = ("events", "losses", "refusals", "stalls", "suspect", "witnesses")

    def __init__(self) -> None:
        self.losses = 0
        self.events = 0
        self.witnesses: Sequence[Connection] = ()
        self.refusals = 0
        self.stalls = 0
        self.suspect = False


class Call:
    """The commands of one call of the export.

    The first failure stops the call: nothing new is sent, the others are abandoned. It ends, however it does, when no
    connection holds memory of it any more.

    Args:
        connections: Carry the commands.
        commands: What is to be done, made one by one.
        window: Commands in flight at most.
        retry: How often each is sent.
        choose: Which connection takes a command; `Connections.lend` if not given.
        alone: Nothing else may be in flight beside a command of this call.

    Attributes:
        on_answer: Told of each command that succeeded, and of the connection it did on.
        culprit: The command that this call failed for, if it was itself the reason: the server refused it, or dropped
            every connection over it.
        undurable: Whether the server refused to make something durable.
    """

    def __init__(
        self,
        connections: Connections,
        commands: Generator[Command, None, None],
        window: int,
        retry: Retry,
        *,
        choose: Choose | None = None,
        alone: bool = False,
    ) -> None:
        self.on_answer: OnAnswer | None = None
        self.culprit: Command | None = None
        self.undurable = False
        self._connections = connections
        self._commands = commands
        self._window = window
        self._retry = retry
        self._choose = choose or connections.lend
        self._alone = alone
        self._out: dict[Command, tuple[Connection, memoryview | None]] = {}
        self._again: deque[Command] = deque()  # to be sent, before anything new
        self._resting: dict[Command, asyncio.TimerHandle] = {}
        self._past: dict[Command, _Past] = {}
        self._waiting = False  # for a connection
        self._stopped = False  # nothing is sent any more
        self._error: SfasyncError | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Raises the first error. Cancelling abandons what is in flight."""
        try:
            self._fill()
            if not self._over:
                await self._ended
        except asyncio.CancelledError:
            self._stop()
            await self._memory_free()
            raise
        finally:
            self._commands.close()  # it holds a view of the caller's memory
        if self._error is not None:
            raise self._error

    async def attempt(self) -> Failure | None:
        """As `run`, but a command that was asked for in vain is told instead of raised."""
        try:
            await self.run()
        except SfasyncError as error:
            if self.culprit is None:
                raise
            return Failure(error, self.culprit.offset, self.culprit.length)
        return None

    @property
    def _over(self) -> bool:
        return not (self._out or self._again or self._resting)

    # --- sending ---

    def _fill(self) -> None:
        """Send as much as the window allows and there are connections for; what goes to one leaves together."""
        self._waiting = False
        filled: list[Connection] = []
        while not self._stopped and len(self._out) + len(self._resting) < self._window:
            if not self._again:
                fresh = next(self._commands, None)
                if fresh is None:
                    break
                self._again.append(fresh)
            try:
                connection = self._submit(self._again[0])
            except SfasyncError as error:
                self._fail(error)
                break
            if connection is None:
                self._waiting = True
                self._connections.wait(self._fill)
                break
            self._again.popleft()
            if connection not in filled:
                filled.append(connection)
        for connection in filled:
            connection.send()
        if self._over and not self._ended.done():
            self._ended.set_result(None)

    def _submit(self, command: Command) -> Connection | None:
        """Give a command to a connection; None if it has to wait for one."""
        past = self._past.get(command)
        if past is None and self._alone:
            past = self._past[command] = _Past()
            self._suspect(past, True)
        if past is not None and past.suspect:
            connection = self._choose(suspect=True, but=past.witnesses)
        else:
            connection = self._choose()
        if connection is None:
            return None
        buffer = command.buffer
        connection.submit(command, self._done, more=True)
        self._out[command] = connection, buffer
        return connection

    # --- answers ---

    def _done(self, command: Command) -> None:
        """The callback of each command."""
        connection, buffer = self._out.pop(command)
        if command.state is State.ABANDONED:
            self._clear(command)
        elif command.error is None:
            self._clear(command)
            if self.on_answer is not None:
                self.on_answer(command, connection)
        elif self._stopped:
            self._clear(command)
        else:
            self._judge(command, command.error, connection, buffer)
        self._connections.finished()
        if not self._waiting:
            self._fill()

    def _judge(self, command: Command, error: SfasyncError, connection: Connection, buffer: memoryview | None) -> None:
        """Whether a command that failed is sent again."""
        if isinstance(error, RequestError) and error.errno == const.ESHUTDOWN:
            leaving = ConnectionLostError(str(error), offset=error.offset, length=error.length)
            if self._connections.replaces(leaving):
                error = leaving
                connection.abort(leaving)
        if isinstance(error, RequestError):
            self._refused(command, error, buffer)
        elif self._connections.replaces(error):
            self._lost(command, error, connection, buffer)
        else:
            self._fail(error)

    def _refused(self, command: Command, error: RequestError, buffer: memoryview | None) -> None:
        past = self._past.setdefault(command, _Past())
        past.refusals += 1
        if _makes_durable(command):
            self.undurable = True
            self._fail(error)
        elif error.errno not in _TRANSIENT:
            self._fail(error)
        elif past.refusals >= self._retry.attempts:
            self.culprit = command
            self._fail(error)
        else:
            command.renew(buffer)
            delay = pause(self._retry, past.refusals - 1)
            loop = asyncio.get_running_loop()
            self._resting[command] = loop.call_later(delay, self._rested, command)

    def _rested(self, command: Command) -> None:
        del self._resting[command]
        self._repeat(command)
        if not self._waiting:
            self._fill()

    def _lost(self, command: Command, error: SfasyncError, connection: Connection, buffer: memoryview | None) -> None:
        past = self._past.setdefault(command, _Past())
        missing = command.missing()
        come = command.length - sum(end - start for start, end in missing)
        if come >= min(_PROGRESS, max(command.length, 1)):
            past.losses = past.events = 0
        elif command.cookie:  # it was sent, and not only queued
            past.losses += 1
            if connection not in past.witnesses:
                past.events += 1
                past.witnesses = self._connections.each()
        past.stalls += isinstance(error, DeadlineError)
        if past.stalls >= _STALLS:
            self._fail(error)
        elif past.events >= self._retry.attempts:
            self.culprit = command
            self._fail(error)
        else:
            self._suspect(past, self._alone or past.losses >= _COMPANY)
            self._divide(command, buffer, missing)

    def _divide(self, command: Command, buffer: memoryview | None, missing: list[tuple[int, int]]) -> None:
        """Send a command again; of a read, only what is missing."""
        command.renew(buffer)
        if command.kind != const.CMD_READ:
            self._repeat(command)
            return
        assert buffer is not None, "a read without memory"
        offset = command.offset
        for start, end in missing[1:]:
            self._repeat(Command(const.CMD_READ, offset + start, end - start, buffer=buffer[start:end]))
        start, end = missing[0]
        command.offset, command.length, command.buffer = offset + start, end - start, buffer[start:end]
        self._repeat(command)

    def _repeat(self, command: Command) -> None:
        self._connections.retries += 1
        self._again.append(command)

    def _suspect(self, past: _Past, suspect: bool) -> None:
        if suspect and not past.suspect:
            self._connections.suspect()
        elif past.suspect and not suspect:
            self._connections.cleared()
        past.suspect = suspect

    def _clear(self, command: Command) -> None:
        """Nothing more will become of a command."""
        past = self._past.pop(command, None)
        if past is not None:
            self._suspect(past, False)

    # --- the end ---

    def _fail(self, error: SfasyncError) -> None:
        if self._error is None:
            self._error = error
            self._stop()

    def _stop(self) -> None:
        self._stopped = True
        if self._waiting:
            self._waiting = False
            self._connections.forget(self._fill)
        for timer in self._resting.values():
            timer.cancel()
        self._resting.clear()
        self._again.clear()  # the memory of what is in none of these is free
        for command, (connection, _) in list(self._out.items()):
            connection.abandon(command)
        for command in list(self._past):
            if command not in self._out:
                self._clear(command)
        self._connections.finished()

    async def _memory_free(self) -> None:
        """Wait, whatever comes, for payloads on their way out: a second at most, then their connection is aborted."""
        while self._out:
            self._ended = asyncio.get_running_loop().create_future()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([self._ended])


def _makes_durable(command: Command) -> bool:
    return command.kind == const.CMD_FLUSH or bool(command.flags & const.CMD_FLAG_FUA)
