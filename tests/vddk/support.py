"""What several tests of the calls need."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from sfasync import vddk
from sfasync.interfaces import EndpointResolver
from sfasync.models import EndpointRequest, ExportAddress, Limits, Retry, Timeouts
from sfasync.resolvers import TableResolver

VM = "2786761839857"

_T = TypeVar("_T")


def journal() -> list[Path]:
    """The entries of the journal."""
    return sorted(Path(os.environ["XDG_STATE_HOME"], "sfasync", "vddk").glob("*"))


def access_to(**disks: str | ExportAddress) -> vddk.Access:
    """An access to disks of one VM."""
    return vddk.Access(resolver=TableResolver({(VM, disk): place for disk, place in disks.items()}))


@asynccontextmanager
async def opened(
    place: str | ExportAddress | EndpointResolver,
    *,
    mode: str = "nbd",
    snapshot_id: str | None = None,
    limits: Limits | None = None,
    timeouts: Timeouts | None = None,
    retry: Retry | None = None,
) -> AsyncIterator[vddk.Disk]:
    """A disk that is opened, and closed with its connection after the block."""
    access = access_to(ide0=place) if isinstance(place, str | ExportAddress) else vddk.Access(resolver=place)
    connection = await vddk.connect(
        access, mode=mode, vm_id=VM, snapshot_id=snapshot_id, limits=limits, timeouts=timeouts, retry=retry
    )
    try:
        disk = await vddk.open(connection, "ide0")
        try:
            yield disk
        finally:
            if disk.state == "open":
                await vddk.close(disk)
    finally:
        await vddk.disconnect(connection)


class CancelledAt(Generic[_T]):
    """Awaits a coroutine and cancels the task in which that happens just before its N-th step.

    Attributes:
        done: Whether it came to its end before that.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, _T], step: int) -> None:
        self.done = False
        self._coroutine = coroutine
        self._step = step

    def __await__(self) -> Generator[Any, Any, _T]:
        task = asyncio.current_task()
        assert task is not None
        send: Callable[[Any], Any] = self._coroutine.send
        arrived: Any = None
        for step in itertools.count():
            if step == self._step:
                task.cancel()
            try:
                waited = send(arrived)
            except StopIteration as stop:
                self.done = step < self._step
                return stop.value  # type: ignore[no-any-return]  # what the coroutine returns
            try:
                arrived, send = (yield waited), self._coroutine.send
            except BaseException as error:  # noqa: BLE001 - handed on
                arrived, send = error, self._coroutine.throw
        raise AssertionError("not reached")


async def cancelled_at_every_step(work: Callable[[], Coroutine[Any, Any, object]]) -> AsyncIterator[int]:
    """Run something again and again, cancelled one step later each time, until it comes to its end; gives each step."""
    for step in itertools.count():
        attempt = CancelledAt(work(), step)

        async def run(attempt: CancelledAt[object] = attempt) -> None:
            await attempt

        task = asyncio.create_task(run())
        await asyncio.wait([task])
        yield step
        if attempt.done:
            task.result()
            return
        assert task.cancelled()


class Lender:
    """A resolver that takes something for each disk, and wants it back.

    Attributes:
        lent: The requests resolved and not released.
        released: Every request released, in order.
        failure: What `release` fails with.
    """

    def __init__(self, address: ExportAddress) -> None:
        self.address = address
        self.lent: list[EndpointRequest] = []
        self.released: list[EndpointRequest] = []
        self.failure: Exception | None = None

    async def resolve(self, request: EndpointRequest) -> ExportAddress:
        self.lent.append(request)
        return self.address

    async def release(self, request: EndpointRequest) -> None:
        if self.failure is not None:
            raise self.failure
        self.released.append(request)
        if request in self.lent:
            self.lent.remove(request)
