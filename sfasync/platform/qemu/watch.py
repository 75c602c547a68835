"""Whether what we have in QEMU stands: its events, and its answers when it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec

from ...errors import LeaseLostError, PlatformError, printable
from .inventory import exports
from .monitor import Event, Monitor
from .names import Kind
from .places import Places


class _Job(msgspec.Struct, frozen=True):
    id: str
    status: str


class Watch:
    """Follows the events of a monitor, from its making until `end`.

    Args:
        monitor: Ours.
        places: The names of what is ours.
        disks: Ids of the disks, by their number.

    Attributes:
        lost: Completes with the reason when something of ours is gone.
    """

    def __init__(self, monitor: Monitor, places: Places, disks: Sequence[str]) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._monitor = monitor
        self._places = places
        self._disks = disks
        monitor.on_event = self._heard
        monitor.lost.add_done_callback(self._unmonitored)

    async def check(self, *kinds: Kind) -> None:
        """Ask QEMU; its answer comes after all that it had to tell before.

        Args:
            kinds: What there must be of each disk: jobs, exports.

        Raises:
            LeaseLostError: Something is gone.
        """
        try:
            jobs = await self._monitor.ask("query-jobs", tuple[_Job, ...])
            served = await exports(self._monitor)
        except PlatformError as error:
            raise LeaseLostError(f"nobody tells whether the snapshot stands: {error}") from error
        await asyncio.sleep(0)  # for events that came before the answers
        present = {job.id for job in jobs if job.status in ("running", "paused")}
        present |= {export.id for export in served if not export.shutting_down}
        for number, disk in enumerate(self._disks):
            if not present.issuperset(self._places.name(number, kind) for kind in kinds):
                self._lose(f"QEMU has ended the snapshot of disk {disk!r}")
        if self.lost.done():
            raise LeaseLostError(f"the snapshot is lost: {self.lost.result()}")

    def end(self) -> None:
        """Nothing is lost any more."""
        self._monitor.on_event = None
        self._monitor.lost.remove_done_callback(self._unmonitored)
        self.lost.cancel()

    def _heard(self, event: Event) -> None:
        """Of our jobs, exports and nodes, each event is bad news before the end; but jobs for seals are cancelled."""
        data = event.get("data")
        names = data if isinstance(data, Mapping) else {}
        for key in ("node-name", "device", "id", "reference"):
            name = names.get(key)
            ours = self._places.parse(name) if isinstance(name, str) else None
            if ours is not None and ours[1] is not Kind.SEAL_JOB:
                self._lose(_bad_news(str(event.get("event")), names, self._disk(ours[0])))

    def _disk(self, number: int) -> str:
        return repr(self._disks[number]) if number < len(self._disks) else f"number {number}"

    def _unmonitored(self, lost: asyncio.Future[str]) -> None:
        if not lost.cancelled():
            self._lose(lost.result())

    def _lose(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)


def _bad_news(event: str, data: Mapping[str, object], disk: str) -> str:
    if event.startswith("QUORUM"):
        error = printable(str(data.get("error", "no reason given")))
        return f"what the guest overwrote of disk {disk} during the backup could not be kept: {error}"
    return f"QEMU ended what it did for disk {disk}: {printable(event)}"
