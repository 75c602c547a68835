"""Where QEMU puts what the guest overwrites while a backup reads, so that the backup sees what was there before.

::

    guest -> filter (of the backup job) -> disk <----.
                |  before a cluster is overwritten   | what was not overwritten
                |  for the first time, it is copied  |
                v                                    |
             overlay (qcow2), which is what is read -'
             /     \\
          map      quorum, of which one is enough
                   /    \\
                data    nothing at all

A filter that cannot copy lets the guest's write fail, so it must always be able to. The map gets all its space before
anything begins (an 8192nd of the disk). The data go to a quorum with one half that takes everything: when the other
one cannot, for want of space, QEMU says so (``QUORUM_REPORT_BAD``) before anybody could read what is missing. Then the
backup has lost its snapshot, and the guest has lost nothing.

QEMU has ``snapshot-access`` for this purpose as well, which needs no overlay. Up to version 7.2 it gives the guest's
new data where a request begins in what was overwritten and ends in what was not (``hbitmap_status``, mended in 8.0);
before 9.1 two requests at a time can abort QEMU. This way is as old as fleecing.
"""

from __future__ import annotations

import secrets
from typing import Final

import msgspec

from ...errors import PlatformError, printable
from ...extents import align_up
from ...tasks import Looks
from .inventory import Disk
from .monitor import CommandError, Monitor
from .names import Kind
from .places import Places

_CLUSTER: Final = 64 << 10
_ENTRY: Final = 8

_LOOK: Final = 0.002
_LONGEST_LOOK: Final = 0.1


class _Job(msgspec.Struct, frozen=True, rename="kebab"):
    id: str
    status: str
    error: str | None = None


async def add_fleecing_node(monitor: Monitor, places: Places, number: int, disk: Disk, *, reserve: bool) -> str:
    """Make the files for a disk, and the nodes over them.

    Args:
        monitor: Of the VM.
        places: Its places.
        number: Of the disk.
        disk: The disk.
        reserve: Whether the data get all the space they could need, too.

    Returns:
        Name of the overlay.

    Raises:
        PlatformError: There is no place for it.
    """
    fleecing = _Fleecing(monitor, places, number)
    try:
        await fleecing.create_file("map", _map_size(disk.size), reserve=True)
        await fleecing.create_file("data", disk.size, reserve=reserve)
        await fleecing.add_file("map")
        await fleecing.add_file("data")
        await fleecing.create_map(disk.size)
        if not await fleecing.add_quorum(disk.size):
            # This QEMU was built without it: the data must not fill up, so they get their space after all.
            await fleecing.reserve_data(disk.size)
    finally:
        places.unlink(number)
    return await fleecing.add_overlay(disk)


async def empty_files(monitor: Monitor, places: Places, number: int) -> None:
    """Give back the space of files that cannot be removed, as they are on another host.

    Raises:
        PlatformError: It cannot be done.
    """
    fleecing = _Fleecing(monitor, places, number)
    await fleecing.create_file("map", 0)
    await fleecing.create_file("data", 0)


def _map_size(size: int) -> int:
    """Bytes of a qcow2 image whose data are elsewhere: two levels of tables, refcounts, header, and some to spare."""
    tables = align_up(-(-size // _CLUSTER) * _ENTRY, _CLUSTER)
    tables += align_up(tables // _CLUSTER * _ENTRY, _CLUSTER)
    return tables + align_up(tables // _CLUSTER * 2, _CLUSTER) + 16 * _CLUSTER


class _Fleecing:
    """What is done for one disk."""

    def __init__(self, monitor: Monitor, places: Places, number: int) -> None:
        self._monitor = monitor
        self._places = places
        self._number = number
        # QEMU tells of trouble with one node once a second (monitor.c). It must not take this job's for the last one's.
        data = places.name(number, Kind.DATA) + secrets.token_hex(3)
        self._node = {"map": places.name(number, Kind.MAP), "data": data}
        self._quorum = places.name(number, Kind.QUORUM)

    async def create_file(self, what: str, size: int, *, reserve: bool = False) -> None:
        """Have QEMU make a file anew, empty or with all its space."""
        options: dict[str, object] = {"driver": "file", "filename": self._path(what), "size": size}
        await self.create(options | ({"preallocation": "falloc"} if reserve else {}))

    async def create_map(self, size: int) -> None:
        """Have QEMU write into the map that nothing is in the data yet."""
        nodes = {"file": self._node["map"], "data-file": self._node["data"]}
        await self.create({"driver": "qcow2", "size": size, **nodes})

    async def reserve_data(self, size: int) -> None:
        """Make the file of the data anew, with all its space."""
        await self._monitor.run("blockdev-del", {"node-name": self._node["data"]})
        await self.create_file("data", size, reserve=True)
        await self.add_file("data")

    async def create(self, options: dict[str, object]) -> None:
        """Have QEMU make an image."""
        job = self._places.name(self._number, Kind.FILE_JOB)
        await self._monitor.run("blockdev-create", {"job-id": job, "options": options})
        async for _ in Looks(_LOOK, _LONGEST_LOOK):
            state = await self._job(job)
            if state.status == "concluded":
                break
        await self._monitor.run("job-dismiss", {"id": job})
        if state.error:
            raise PlatformError(
                f"QEMU has no place for what the guest overwrites during the backup: {printable(state.error)}; "
                "set 'directory' to one that it can write to, with enough space"
            )

    async def _job(self, job: str) -> _Job:
        jobs = await self._monitor.ask("query-jobs", tuple[_Job, ...])
        found = next((state for state in jobs if state.id == job), None)
        if found is None:
            raise PlatformError("QEMU was to make a file for what the guest overwrites, and forgot about it")
        return found

    async def add_file(self, what: str) -> None:
        node = {"driver": "file", "node-name": self._node[what], "filename": self._path(what)}
        await self._monitor.run("blockdev-add", node)

    async def add_quorum(self, size: int) -> bool:
        """Whether this QEMU knows what that is."""
        nothing = {"driver": "null-co", "size": size, "read-zeroes": False}
        node = {
            "driver": "quorum",
            "node-name": self._quorum,
            "vote-threshold": 1,
            "read-pattern": "fifo",
            "children": [self._node["data"], nothing],
        }
        try:
            await self._monitor.run("blockdev-add", node)
        except CommandError as error:
            if "'quorum'" not in error.said:
                raise
            self._quorum = self._node["data"]
            return False
        return True

    async def add_overlay(self, disk: Disk) -> str:
        name = self._places.name(self._number, Kind.OVERLAY)
        node = {
            "driver": "qcow2",
            "node-name": name,
            "file": self._node["map"],
            "data-file": self._quorum,
            "backing": disk.node.node_name,
        }
        await self._monitor.run("blockdev-add", node)
        return name

    def _path(self, what: str) -> str:
        return str(self._places.fleecing(self._number, what))
