"""The eleven calls for programs without an event loop: those of `sfasync.vddk`, each waiting for its end.

::

    from sfasync import TableResolver
    from sfasync.vddk import blocking as vddk

    vddk.init()
    connection = vddk.connect(vddk.Access(resolver=TableResolver(table)), mode="nbd", vm_id="web-01", snapshot_id="s1")
    disk = vddk.open(connection, "ide0")
    data = vddk.read(disk, 0, 8)
    vddk.close(disk)
    vddk.disconnect(connection)
    vddk.exit()

`init` starts an event loop in a thread of its own, in which all of it runs; `exit` ends it. Any thread may make the
calls, and several threads at once. An interrupted call (Ctrl-C) is cancelled, and over when the interruption is raised:
its buffer is free. Arguments, results and errors are those of `sfasync.vddk`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar, overload

from .. import vddk
from ..errors import StateError
from ..interfaces import Buffer
from ..models import Limits, Retry, Timeouts
from . import SECTOR, Access, AccessKey, Connection, Disk, Password, get_transport_mode, list_transport_modes

__all__ = [
    "SECTOR",
    "Access",
    "AccessKey",
    "Connection",
    "Disk",
    "Password",
    "cleanup",
    "close",
    "connect",
    "disconnect",
    "exit",
    "get_transport_mode",
    "init",
    "list_transport_modes",
    "open",
    "read",
    "write",
]

_T = TypeVar("_T")


class _LoopThread:
    """An event loop in a thread. A daemon: a program that forgets `exit` still ends."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._running = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="sfasync-vddk-loop", daemon=True)
        self._thread.start()
        self._running.wait()

    def call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """The result of a coroutine, run in the loop; never returns or raises before it has ended."""
        ended: concurrent.futures.Future[_T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[_T]] = []

        def start() -> None:
            task = self._loop.create_task(coroutine)
            tasks.append(task)
            task.add_done_callback(lambda task: _pass_on(task, ended))

        self._loop.call_soon_threadsafe(start)
        try:
            return ended.result()
        except BaseException:
            while not ended.done():
                with suppress(KeyboardInterrupt):  # once more; the first one is raised
                    self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
                    concurrent.futures.wait([ended])
            raise

    def end(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._running.set()
        await self._stop.wait()


def _pass_on(task: asyncio.Task[_T], ended: concurrent.futures.Future[_T]) -> None:
    if task.cancelled():
        ended.cancel()
        ended.set_running_or_notify_cancel()
    elif (error := task.exception()) is not None:
        ended.set_exception(error)
    else:
        ended.set_result(task.result())


_thread: _LoopThread | None = None


def _wait(coroutine: Coroutine[Any, Any, _T]) -> _T:
    if _thread is None:
        coroutine.close()
        raise StateError("the blocking calls need their event loop, which is not running; blocking.init comes first")
    return _thread.call(coroutine)


def init() -> None:
    """As `vddk.init`, and start the thread."""
    global _thread
    vddk.init()
    _thread = _LoopThread()


def exit() -> None:  # noqa: A001 - the kit's name
    """As `vddk.exit`, and end the thread."""
    global _thread
    vddk.exit()
    thread, _thread = _thread, None
    if thread is not None:
        thread.end()


def cleanup(access: Access) -> int:
    """As `vddk.cleanup`."""
    return _wait(vddk.cleanup(access))


def connect(
    access: Access,
    *,
    mode: str,
    vm_id: str,
    snapshot_id: str | None = None,
    server_id: str | None = None,
    resource_id: str | None = None,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
    retry: Retry | None = None,
) -> Connection:
    """As `vddk.connect`."""
    return _wait(
        vddk.connect(
            access,
            mode=mode,
            vm_id=vm_id,
            snapshot_id=snapshot_id,
            server_id=server_id,
            resource_id=resource_id,
            limits=limits,
            timeouts=timeouts,
            retry=retry,
        )
    )


def disconnect(connection: Connection) -> None:
    """As `vddk.disconnect`."""
    _wait(vddk.disconnect(connection))


def open(connection: Connection, disk_id: str) -> Disk:  # noqa: A001 - the kit's name
    """As `vddk.open`."""
    return _wait(vddk.open(connection, disk_id))


@overload
def read(disk: Disk, start_sector: int, sector_count: int, buffer: None = None) -> bytes: ...


@overload
def read(disk: Disk, start_sector: int, sector_count: int, buffer: bytearray | memoryview) -> None: ...


def read(
    disk: Disk, start_sector: int, sector_count: int, buffer: bytearray | memoryview | None = None
) -> bytes | None:
    """As `vddk.read`."""
    if buffer is None:
        return _wait(vddk.read(disk, start_sector, sector_count))
    return _wait(vddk.read(disk, start_sector, sector_count, buffer))


def write(disk: Disk, start_sector: int, buffer: Buffer) -> None:
    """As `vddk.write`."""
    _wait(vddk.write(disk, start_sector, buffer))


def close(disk: Disk) -> None:
    """As `vddk.close`."""
    _wait(vddk.close(disk))
