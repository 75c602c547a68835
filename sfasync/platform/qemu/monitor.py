"""A QMP monitor: commands with deadlines and typed answers, and word of what happens.

A monitor has one client at a time: QEMU does not greet a second one before the first is gone. So whoever holds the
monitor knows that nobody else who made something through it is alive (`names`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import msgspec

from ...errors import BusyError, PlatformError, UsageError, printable
from ...tasks import cancelled, finish
from .settings import QemuTimeouts, QemuVm

try:
    from qemu.qmp import EventListener, ExecuteError, QMPClient, Runstate
except ImportError as error:
    raise UsageError(
        "the platform 'qemu' needs a package that is not installed: pip install 'sfasync[qemu]'"
    ) from error

_T = TypeVar("_T")

Event = Mapping[str, Any]

_CLOSE = 1.0
_AGAIN = 0.05

_EVENTS = (
    *("BLOCK_EXPORT_DELETED", "BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_ERROR"),
    *("QUORUM_FAILURE", "QUORUM_REPORT_BAD"),
)

_wire = logging.getLogger("sfasync.platform.qemu.wire")
# The package logs as errors what it raises as well.
_wire.addFilter(lambda _: _wire.isEnabledFor(logging.DEBUG))


class AbsentError(PlatformError):
    """Nobody listens where the monitor should be: QEMU does not run."""


class CommandError(PlatformError):
    """QEMU refused a command; the monitor lives.

    Attributes:
        said: QEMU's words.
    """

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


class Monitor:
    """A connection to a monitor; made by `open_monitor`.

    Attributes:
        lost: Completes with the reason when the connection ends before it is closed.
        on_event: Called on the loop with every event; None for nobody.
    """

    def __init__(self, client: QMPClient, name: str, timeouts: QemuTimeouts) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.on_event: Callable[[Event], None] | None = None
        self._client = client
        self._name = name
        self._timeouts = timeouts
        self._listener = EventListener(names=_EVENTS)
        client.register_listener(self._listener)
        self._tasks = [asyncio.ensure_future(self._hear()), asyncio.ensure_future(self._watch())]

    @property
    def alive(self) -> bool:
        """Whether the connection is in order."""
        return self._client.runstate is Runstate.RUNNING

    async def run(self, command: str, arguments: Mapping[str, object] | None = None) -> None:
        """Execute a command whose answer says nothing. Cancelling leaves open whether it is executed.

        Raises:
            CommandError: QEMU refuses.
            PlatformError: No answer, or the connection is lost.
        """
        await self._execute(command, arguments)

    async def ask(self, command: str, kind: type[_T], arguments: Mapping[str, object] | None = None) -> _T:
        """Execute a command; its answer as a `kind`.

        Raises:
            PlatformError: As `run`; or the answer is none of that kind.
        """
        answer = await self._execute(command, arguments)
        try:
            return msgspec.convert(answer, kind)
        except msgspec.ValidationError as error:
            raise PlatformError(f"{self._name}: {command} is answered oddly: {printable(str(error))}") from error

    async def _execute(self, command: str, arguments: Mapping[str, object] | None) -> object:
        try:
            async with asyncio.timeout(self._timeouts.command):
                return await self._client.execute(command, arguments)
        except TimeoutError as error:
            raise PlatformError(
                f"{self._name}: no answer to {command} in {self._timeouts.command:g} seconds"
            ) from error
        except ExecuteError as error:
            reason = printable(error.error.error.desc)
            raise CommandError(f"{self._name}: {command}: {reason}", reason) from error
        except Exception as error:  # what the package raises when a connection ends has many types
            reason = printable(str(error) or type(error).__name__)
            raise PlatformError(f"{self._name}: {command}: the monitor is lost: {reason}") from error

    async def _hear(self) -> None:
        async for event in self._listener:
            if self.on_event is not None:
                self.on_event(event)

    async def _watch(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        if not self.lost.done():
            self.lost.set_result("QEMU has ended, or has closed its monitor")

    async def end(self) -> None:
        """Follow events no more."""
        for task in self._tasks:
            await cancelled(task)
        self.lost.cancel()


@asynccontextmanager
async def open_monitor(vm: str, settings: QemuVm, timeouts: QemuTimeouts) -> AsyncIterator[Monitor]:
    """Connect to the monitor of a VM for the time of the block.

    Raises:
        BusyError: Somebody else is connected to it.
        PlatformError: There is none, or what answers is no monitor.
    """
    name = f"VM {vm!r}"
    connection: socket.socket | None = None
    client = QMPClient()
    client.logger = _wire
    try:
        async with asyncio.timeout(timeouts.connect):
            connection = await _connect(settings)
            await client.connect(connection)
    except TimeoutError as error:
        await _in_time(_close(client, connection))
        if connection is None and settings.socket is None:
            raise PlatformError(f"{name}: no connection to {_where(settings)} in {timeouts.connect:g} s") from error
        raise BusyError(
            f"{name}: no greeting from {_where(settings)} in {timeouts.connect:g} s: somebody else is connected to it"
        ) from error
    except BaseException as error:
        await _in_time(_close(client, connection))
        if not isinstance(error, Exception):
            raise
        cause = getattr(error, "exc", error)  # that of the package wraps another
        reason = printable(getattr(cause, "strerror", None) or str(cause) or type(cause).__name__)
        kind = AbsentError if isinstance(cause, FileNotFoundError | ConnectionRefusedError) else PlatformError
        raise kind(f"{name}: no connection to {_where(settings)}: {reason}") from error
    monitor = Monitor(client, name, timeouts)
    try:
        yield monitor
    finally:
        await _in_time(_end(monitor, client, connection))


async def _in_time(closing: Coroutine[Any, Any, None]) -> None:
    """Close a connection that nobody needs any more; without an error where the process was suspended meanwhile."""
    with suppress(TimeoutError):
        await finish(closing, 3 * _CLOSE)


async def _end(monitor: Monitor, client: QMPClient, connection: socket.socket) -> None:
    try:
        await monitor.end()
    finally:
        await _close(client, connection)


async def _close(client: QMPClient, connection: socket.socket | None) -> None:
    """End a connection, in whatever state it is."""
    if client.runstate is not Runstate.IDLE:
        closing = asyncio.ensure_future(client.disconnect())
        try:
            await asyncio.wait({closing}, timeout=_CLOSE)
        finally:
            if not closing.done() and connection is not None:  # the other side does not take what is on its way
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        await asyncio.wait({closing})
        closing.exception()  # how the connection ended is told elsewhere
    if connection is not None:
        connection.close()


async def _connect(settings: QemuVm) -> socket.socket:
    loop = asyncio.get_running_loop()
    if settings.socket is not None:
        return await _connected_here(str(settings.socket))
    assert settings.host_and_port is not None, "a monitor is at a socket or at an address"
    host, port = settings.host_and_port
    failure: OSError | None = None
    for family, _, _, _, place in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            return await _connected(family, place)
        except OSError as error:
            failure = failure or error
    raise failure or OSError("the name has no address")


async def _connected_here(path: str) -> socket.socket:
    """A Unix socket connects at once, but for a full queue of others: asyncio takes that for a connection."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        while True:
            try:
                connection.connect(path)
            except BlockingIOError:
                await asyncio.sleep(_AGAIN)
            else:
                return connection
    except BaseException:
        connection.close()
        raise


async def _connected(family: int, place: Any) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, place)
    except BaseException:
        connection.close()
        raise
    return connection


def _where(settings: QemuVm) -> str:
    return f"its monitor {printable(settings.monitor)}"
