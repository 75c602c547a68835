"""The connections of one export: who takes the next request, and what becomes of a connection that is lost.

A lost connection is replaced when the next request asks for one, by a task of its own, with pauses that grow, within
the time that an outage may last. The new one must lead to the same export: size, flags and block sizes are compared,
and a difference is the end of all connections.

A server may meet a request it cannot serve by dropping the connection (qemu-nbd does on a bad sector), which fails
whatever else was in flight. A request that was lost again and again is therefore a *suspect*: as long as there is one,
a single request is in flight at any time, so that a loss can be told from the misfortune of a neighbour. It goes over
a connection that was opened since, where one can be had soon: what cut one may be about to cut the others.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from ..errors import ConnectError, ConnectionLostError, DeadlineError, ExportError, NbdError, SfasyncError, TlsError
from ..models import ExportAddress, Retry, Timeouts
from ..retry import Backoff
from ..tasks import cancelled, run_all
from ..trust import client_context
from .connection import Connection
from .durability import Durability

_logger = logging.getLogger(__name__)

_EXTRA_CONNECT: Final = 3.0
"""Seconds for each connection beyond the first: a server at its limit lets it wait for ever, and we can do without."""

LOST: Final = (ConnectionLostError, DeadlineError, TlsError)
"""How a connection may end that is replaced. One whose server broke the protocol is not: it would do so again."""

Waiter = Callable[[], None]


class Choose(Protocol):
    """Gives the connection that takes a command, or None when the caller has to wait.

    Args:
        suspect: The command is one.
        but: Not one of these, if another can be had.
    """

    def __call__(self, *, suspect: bool = False, but: Sequence[Connection] = ()) -> Connection | None: ...


class Recipe:
    """How the connections of an export are made."""

    def __init__(self, address: ExportAddress, *, requests: int, timeouts: Timeouts, contexts: Sequence[str]) -> None:
        self.address = address
        self.requests = requests
        self.timeouts = timeouts
        self._contexts = tuple(contexts)
        self._context: ssl.SSLContext | None = None if address.tls is None else client_context(address.tls)

    async def connect(self) -> Connection:
        return await Connection.open(
            self.address,
            context=self._context,
            contexts=self._contexts,
            requests=self.requests,
            timeouts=self.timeouts,
        )

    async def first(self, retry: Retry) -> Connection:
        """The first connection. That nobody answers is borne for `retry.connect` seconds; nothing else is.

        Raises:
            NbdError, TlsError: As of `Connection.open`.
        """
        backoff = Backoff(retry, retry.connect)
        while True:
            try:
                return await self.connect()
            except ConnectError as error:
                delay = backoff.next()
                if delay is None:
                    raise
                _logger.info("%s; again in %.1f s", error, delay)
            await asyncio.sleep(delay)


class Connections:
    """The connections of an export, oldest first. Belongs to one event loop.

    Args:
        recipe: Makes them.
        first: The first one; all others must describe the export as it does.
        retry: How long an outage is borne.

    Attributes:
        durability: Told of connections as they are opened.
        retries: Requests that were sent again.
        failure: Why no connection will be replaced any more; None while one would be.
    """

    def __init__(self, recipe: Recipe, first: Connection, retry: Retry) -> None:
        self.durability = Durability(first)
        self.retries = 0
        self.failure: SfasyncError | None = None
        self._recipe = recipe
        self._info = first.info
        self._peer = first.name
        self._retry = retry
        self._all = [first]
        self._wanted = 1
        self._expected = 0  # beyond those, while they are being opened
        self._joining: asyncio.Task[None] | None = None
        self._replacing: asyncio.Task[None] | None = None
        self._in_vain = False  # it has failed at least once, and may take long
        self._suspects = 0
        self._waiting: list[Waiter] = []
        self._closed = False

    def __repr__(self) -> str:
        return repr(self._all)

    @property
    def count(self) -> int:
        """How many are open."""
        return sum(connection.alive for connection in self._all)

    @property
    def _serving(self) -> bool:
        """Whether there is a living connection that takes requests. Those that threads have do not help anybody."""
        return any(connection.alive and not connection.lent for connection in self._all)

    @property
    def wanted(self) -> int:
        """How many there are, or will be, when all is well."""
        return self._wanted + self._expected

    def replaces(self, error: SfasyncError) -> bool:
        """Whether a connection that ended like this is replaced."""
        return isinstance(error, LOST) and self._retry.outage > 0 and not self._closed and self.failure is None

    # --- for requests ---

    def lend(self, *, suspect: bool = False, but: Sequence[Connection] = ()) -> Connection | None:
        """The living connection with the least to do, or None when the caller has to `wait`.

        Where none lives nor will be replaced, a dead one, which says why when it is used.

        Args:
            suspect: The command it is for is one.
            but: None of these, unless there is no other and none that may come soon.

        Raises:
            SfasyncError: Connections cannot be replaced any more, for this reason.
        """
        alive = self._alive()
        if not alive:
            if self._replacing is not None or self.count:
                return None
            return next(connection for connection in reversed(self._all) if not connection.lent)
        if self._crowded(suspect):
            return None
        if but:
            others = [connection for connection in alive if connection not in but]
            if not others and self._replacing is not None and not self._in_vain:
                return None
            alive = others or alive
        return alive[0] if len(alive) == 1 else min(alive, key=_load)

    def spare(self, count: int) -> list[Connection]:
        """Up to `count` living connections that have nothing to do, beyond one that stays for others."""
        staying = next((connection for connection in self._all if connection.alive and not connection.lent), None)
        return [connection for connection in self._all if connection.idle and connection is not staying][:count]

    def together(self) -> Choose:
        """As `lend`, but one connection again and again while it lives: what goes to it at once leaves in one piece."""
        last: Connection | None = None

        def choose(*, suspect: bool = False, but: Sequence[Connection] = ()) -> Connection | None:
            nonlocal last
            if last is None or not last.alive or self._suspects:
                last = self.lend(suspect=suspect, but=but)
            return last

        return choose

    def only(self, connection: Connection) -> Choose:
        """Gives this connection and no other, dead or alive, when no thread has it."""

        def choose(*, suspect: bool = False, but: Sequence[Connection] = ()) -> Connection | None:
            return None if connection.lent or self._crowded(suspect) else connection

        return choose

    def _crowded(self, suspect: bool) -> bool:
        """Whether there is a suspect, and something in flight that would be mistaken for it or suffer with it.

        What a thread does on its connection is no business of a suspect: its loss is not counted here.
        """
        return self._suspects > 0 and (not suspect or any(one.busy for one in self._all if not one.lent))

    def each(self) -> list[Connection]:
        """All connections, dead ones included, oldest first."""
        return list(self._all)

    def wait(self, waiter: Waiter) -> None:
        """Call a function, once, when it may be worth to ask again."""
        self._waiting.append(waiter)

    def forget(self, waiter: Waiter) -> None:
        """Do not call this function any more."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)

    def suspect(self) -> None:
        """There is one suspect more."""
        self._suspects += 1

    def cleared(self) -> None:
        """There is one suspect less, whatever became of it."""
        self._suspects -= 1

    def finished(self) -> None:
        """A request is finished, however, or threads have given back their connections."""
        if self._waiting:
            self._wake()

    # --- opening and closing ---

    def join(self, count: int) -> None:
        """Open further connections beside the work, as many of `count` as the server lets in within a short time.

        If the server describes the export differently on one of them, that is the end of all.
        """
        self._expected = count
        self._joining = asyncio.get_running_loop().create_task(self._join(count))

    async def joined(self, timeout: float | None = None) -> None:
        """Wait until no further connection is being opened, or for so many seconds. Cancelling leaves them to it."""
        if self._joining is not None:
            await asyncio.wait([self._joining], timeout=timeout)

    async def aclose(self) -> None:
        """Close all; requests under way fail. Idempotent. Cancelling aborts."""
        self._closed = True
        try:
            interrupted = None
            for task in (self._joining, self._replacing):
                if task is not None:
                    interrupted = await cancelled(task) or interrupted
            await asyncio.gather(*(connection.aclose() for connection in self._all))
        finally:
            for connection in self._all:
                connection.abort()  # closed already, unless a cancellation came before its task had begun
            self._wake()
        if interrupted is not None:
            raise interrupted

    def abort(self, error: SfasyncError | None = None) -> None:
        """End all without a word; requests under way fail, with `error` if that is given."""
        self._closed = True
        self.failure = self.failure or error
        for task in (self._joining, self._replacing):
            if task is not None:
                task.cancel()
        for connection in self._all:
            connection.abort(error)

    async def _join(self, count: int) -> None:
        try:
            await run_all(self._join_one() for _ in range(count))
        except ExportError as error:
            self._joining = None  # not to be cancelled by what it does itself
            self.abort(error)
        finally:
            self._wanted, self._expected = len(self._all), 0
            self._wake()

    async def _join_one(self) -> None:
        try:
            async with asyncio.timeout(_EXTRA_CONNECT):
                connection = await self._recipe.connect()
        except (NbdError, TlsError, TimeoutError) as error:
            _logger.info("%s: one connection less: %s", self._peer, error)
            return
        self._all.append(connection)
        self.durability.joined(connection)
        if not self._same(connection):
            raise ExportError(f"{self._peer}: size, flags or block sizes differ between two connections")
        self._wake()

    def _same(self, connection: Connection) -> bool:
        mine, theirs = self._info, connection.info
        return (mine.size, mine.flags, mine.block_sizes, mine.contexts.keys()) == (
            theirs.size,
            theirs.flags,
            theirs.block_sizes,
            theirs.contexts.keys(),
        )

    # --- replacing ---

    def _alive(self) -> list[Connection]:
        """The living connections; where some are missing, a replacement is on its way then.

        Raises:
            SfasyncError: As of `lend`.
        """
        alive = [connection for connection in self._all if connection.alive]
        if len(alive) < self._wanted and self._retry.outage and not self._closed and self._replacing is None:
            self._begin_replacing()
        if self.failure is not None:
            raise type(self.failure)(str(self.failure)) from self.failure.__cause__
        if self._replacing is None:
            self._call_back()
        return [connection for connection in alive if not connection.lent]

    def _call_back(self) -> None:
        """Let a thread give back its connection, if none is left for requests and there will be no other one soon.

        A server at its limit may let nobody in, as it still counts what was lost on our side, and threads work for
        hours.
        """
        lent = [connection for connection in self._all if connection.alive and connection.lent]
        if lent and not self._serving and not any(connection.called_back for connection in lent):
            lent[0].call_back(self.finished)

    def _begin_replacing(self) -> None:
        """Open a connection in place of a lost one, unless it was lost for what another one would suffer too."""
        reason = next((dead.failure for dead in self._all if dead.failure is not None), None)
        if reason is not None and not isinstance(reason, LOST):
            self.failure = reason
        if self.failure is None:
            self._in_vain = False
            self._replacing = asyncio.get_running_loop().create_task(self._replace(reason))

    async def _replace(self, reason: SfasyncError | None) -> None:
        """Open one connection in place of a lost one, or find out that it cannot be had."""
        try:
            connection = await self._reconnect(reason)
        except SfasyncError as error:
            if self.count and not isinstance(error, ExportError):
                _logger.warning("%s: one connection less: %s", self._peer, error)
                self._wanted = self.count
            else:
                self.failure = error
        else:
            self._all = [one for one in self._all if one.alive] + [connection]
            self.durability.opened(connection)
            _logger.info("%s: connected again", self._peer)
        finally:
            self._replacing = None
            self._wake()

    async def _reconnect(self, reason: SfasyncError | None) -> Connection:
        """A new connection to the same export.

        That it is lost again before it has answered anything is not counted here, but by the requests that see it.

        Raises:
            ExportError: The export is another one now.
            TlsError: The server is not who it should be.
            SfasyncError: The outage lasts too long.
        """
        last = reason
        outage = Backoff(self._retry, self._retry.outage)
        while (delay := outage.next()) is not None:
            await asyncio.sleep(delay)
            try:
                async with asyncio.timeout(self._patience(outage)):
                    connection = await self._recipe.connect()
            except TimeoutError:
                if self._serving:
                    raise DeadlineError(f"{self._peer}: no further connection within {_EXTRA_CONNECT:g} s") from None
            except TlsError as error:
                if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                    raise
                last = error
            except NbdError as error:
                last = error
            else:
                if self._same(connection):
                    return connection
                connection.abort()
                raise ExportError(
                    f"{self._peer}: size, flags or block sizes are not what they were before the connection was lost"
                )
            self._in_vain = True
            self._call_back()
            self._wake()
        raise self._too_long(reason, last)

    def _patience(self, outage: Backoff) -> float:
        """Seconds for one more attempt: few while there is another connection, or one to be called back."""
        if self._serving:
            return _EXTRA_CONNECT
        return min(_EXTRA_CONNECT, outage.remaining) if self.count else outage.remaining

    def _too_long(self, reason: SfasyncError | None, last: SfasyncError | None) -> SfasyncError:
        """The error of an outage that lasts too long; a failure of TLS stays one."""
        kind = TlsError if isinstance(last, TlsError) else ConnectionLostError
        error = kind(
            f"{self._peer}: the connection was lost ({reason or 'no reason known'}) and could not be replaced "
            f"within {self._retry.outage:g} s: {last or 'no answer'}"
        )
        error.__cause__ = last
        return error

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter()


def _load(connection: Connection) -> int:
    return connection.load
