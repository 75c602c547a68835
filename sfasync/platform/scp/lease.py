"""The lease on a VM: while it lasts, the platform serves the VM's disks and keeps its own tasks away.

The platform calls it a backup resource, gives it for some minutes, and takes it back when these are over; so it is
renewed, by a task of its own that does not wait for any disk. How long it lasts is what the platform says, counted on
our monotonic clock from the moment at which we asked: an answer that took long, a clock that is set, a renewal that was
accepted and did nothing, all show as less time left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from ...errors import BusyError, PlatformError, SfasyncError, printable
from ...tasks import Looks, cancelled
from .answers import Resource
from .api import ResourceKind, ScpApi
from .journal import Entry, Run
from .making import make
from .undo import remove

log = logging.getLogger("sfasync")

_READY: Final = "running"
_WAITING: Final = "pending"
_OCCUPIED: Final = "occupied"

_LONGEST_PAUSE: Final = 60.0
_SHORTEST_PAUSE: Final = 1.0
_STOP: Final = 0.5
_FIRST_LOOK: Final = 0.05
_LONGEST_LOOK: Final = 3.0


@dataclass(slots=True)
class Tenure:
    """How long a lease still lasts, and when to do something about it. Pure.

    Attributes:
        seconds: What is asked for at each renewal.
        end: When it is over, on the monotonic clock, by what the platform said last.
    """

    seconds: float
    end: float

    def told(self, asked: float, remaining: float | None) -> None:
        """The platform was asked at a moment, and says how many seconds are left; None if it does not say.

        More than it ever gives is not believed.
        """
        if remaining is not None:
            self.end = asked + min(remaining, self.seconds)

    def over(self, now: float) -> bool:
        """Whether it has run out."""
        return now >= self.end

    def due(self, now: float) -> bool:
        """Whether to renew it: less than half is left."""
        return self.end - now < self.seconds / 2

    def pause(self, now: float) -> float:
        """Seconds until the platform should be asked again: each minute, and more often as the end comes nearer."""
        left = max(self.end - now, 0.0)
        return max(min(_LONGEST_PAUSE, self.seconds / 6, left / 2), min(_SHORTEST_PAUSE, left))


class Lease:
    """A lease that is renewed.

    Attributes:
        id: The platform's id of it.
        ca_cert: Certificate of the authority of the servers that serve the disks; None if the platform does not say.
        host_id: The host that does; None likewise.
        lost: Completes, with the reason, when the platform takes the lease back or it runs out.
    """

    def __init__(
        self,
        api: ScpApi,
        run: Run,
        entry: Entry,
        resource: Resource,
        tenure: Tenure,
        also: Callable[[], Awaitable[str | None]],
    ) -> None:
        self.id = entry.id
        self.ca_cert = resource.ca_cert
        self.host_id = resource.host_id
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._api = api
        self._run = run
        self._entry = entry
        self._tenure = tenure
        self._also = also
        self._stopped = asyncio.Event()
        self._keeper = asyncio.create_task(self._keep())

    def __repr__(self) -> str:
        state = f"lost: {self.lost.result()}" if self.lost.done() else f"until {self._tenure.end:.0f}"
        return f"<Lease {printable(self.id)} {state}>"

    async def check(self) -> None:
        """Ask the platform; what it says shows in `lost`.

        Raises:
            PlatformError: It does not answer; the lease may be good still.
        """
        if not self.lost.done():
            await self._look()

    async def stop(self) -> None:
        """Renew it no more. A question that is under way is waited for, for a moment, rather than broken off."""
        self._stopped.set()
        try:
            await asyncio.wait({self._keeper}, timeout=_STOP)
        finally:
            await cancelled(self._keeper)

    async def release(self) -> None:
        """Give it back.

        Raises:
            SfasyncError: The platform does not take it; it runs out by itself.
        """
        await self.stop()
        await remove(self._api, self._run, self._entry)

    async def _keep(self) -> None:
        try:
            while not self.lost.done():
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._tenure.pause(_now())):
                        await self._stopped.wait()
                if self._stopped.is_set():
                    return
                await self._keep_once()
        finally:
            if not self._stopped.is_set():  # whatever the reason: nobody must go on who believes that it is kept
                self._lose("nobody looks after the lease on the VM any more")

    async def _keep_once(self) -> None:
        try:
            # However long the platform takes to answer: nobody may read on when the time is over.
            async with asyncio.timeout_at(self._tenure.end):
                await self._look()
                if not self.lost.done() and self._tenure.due(_now()):
                    await self._renew()
        except TimeoutError:
            pass
        except SfasyncError as error:
            log.warning("the lease on the VM could not be looked after: %s", error)
        if self._tenure.over(_now()):
            self._lose("the lease on the VM ran out and could not be renewed")

    async def _renew(self) -> None:
        task = await self._api.renew_resource(self.id, int(self._tenure.seconds))
        await self._api.wait(task)
        await self._look()
        if not self.lost.done() and self._tenure.due(_now()):
            log.warning("the platform has accepted to renew the lease on the VM, and did not; %r", self)

    async def _look(self) -> None:
        reason = await self._also()
        if reason is not None:
            self._lose(reason)
            return
        asked = _now()
        try:
            resource = await self._api.resource(self.id)
        except PlatformError as error:
            if error.status != 404:
                raise
            self._lose("the platform has no such backup resource any more")
            return
        if resource.status != _READY:
            self._lose(f"the backup resource is {printable(resource.status)}")
        elif resource.remain_time is not None and resource.remain_time < 0:
            self._lose("the time of the backup resource is over")
        else:
            self._tenure.told(asked, resource.remain_time)

    def _lose(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)


@asynccontextmanager
async def leased(
    api: ScpApi,
    run: Run,
    server_id: str,
    kind: ResourceKind,
    *,
    seconds: int,
    timeout: float,
    also: Callable[[], Awaitable[str | None]],
) -> AsyncIterator[Lease]:
    """Hold a lease on a VM for the time of the block; it is given back when the run is undone.

    Args:
        api: The platform.
        run: Takes note of it.
        server_id: The VM.
        kind: What for.
        seconds: How long it lasts unless it is renewed, 60 to 7200.
        timeout: Seconds in which the platform must have it ready.
        also: What else to look after, as often as after the lease: tells why the lease is of no use any more, or None.

    Raises:
        BusyError: Somebody else works with the VM.
        PlatformError: The platform does not give one.
        AuthenticationError: We may not have one.
    """
    entry = await run.intend("backup resource", vm=server_id, name=kind, seconds=seconds)
    try:
        async with asyncio.timeout(timeout):
            await make(api, run, entry, partial(api.create_resource, server_id, kind, seconds, token=entry.token))
            resource, asked = await _ready(api, entry.id)
    except TimeoutError:
        raise PlatformError(f"the platform had no lease on the VM ready in {timeout:g} s") from None
    tenure = Tenure(seconds, asked + seconds)
    tenure.told(asked, resource.remain_time)
    lease = Lease(api, run, entry, resource, tenure, also)
    try:
        yield lease
    finally:
        await lease.stop()


async def _ready(api: ScpApi, identity: str) -> tuple[Resource, float]:
    """The resource when it can be used, and when it was asked for."""
    async for _ in Looks(_FIRST_LOOK, _LONGEST_LOOK):
        asked = _now()
        resource = await api.resource(identity)
        if resource.status == _READY:
            return resource, asked
        if resource.status == _OCCUPIED:
            raise BusyError("another job holds the VM on the platform; try again when it has ended")
        if resource.status != _WAITING:
            raise PlatformError(f"the platform gives no lease on the VM: its state is {printable(resource.status)}")
    raise AssertionError("they do not end")


def _now() -> float:
    return asyncio.get_running_loop().time()
