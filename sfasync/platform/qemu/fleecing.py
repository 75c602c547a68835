"""Where QEMU puts what the guest overwrites while a backup reads, so that the backup sees what was there before.

::

    guest -> filter (of the backup job) -> disk
                |  before a cluster is overwritten for the first time, it is copied to
                v
             quorum, of which one is enough
             /    \\
          file    nothing at all

A filter that cannot copy lets the guest's write fail. The quorum has one half that takes everything, so to the guest
nothing ever fails; when the other half does, for want of space, it is QEMU that says so (``QUORUM_REPORT_BAD``) before
anybody could read what is missing, and the backup has lost its snapshot.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from ...errors import PlatformError, printable
from .inventory import Disk
from .monitor import CommandError, Monitor
from .places import Places

_LOOK: Final = 0.02


class _Job(msgspec.Struct, frozen=True, rename="kebab"):
    id: str
    status: str
    error: str | None = None


async def add_fleecing_node(monitor: Monitor, places: Places, number: int, disk: Disk, *, reserve: bool) -> str:
    """Make the file for a disk, and the node over it.

    Raises:
        PlatformError: There is no place for it.
    """
    path = places.fleecing(number)
    file: dict[str, object] = {
        "driver": "file",
        "node-name": places.name(number, "t"),
        "filename": str(path),
        "discard": "unmap",
    }
    nothing = {"driver": "null-co", "node-name": places.name(number, "n"), "size": disk.size, "read-zeroes": False}
    name = places.name(number, "f")
    try:
        await create_file(monitor, places, number, disk.size, reserve=reserve)
        try:
            await monitor.run(
                "blockdev-add",
                {
                    "driver": "quorum",
                    "node-name": name,
                    "vote-threshold": 1,
                    "read-pattern": "fifo",
                    "children": [file, nothing],
                },
            )
        except CommandError as error:
            if "'quorum'" not in error.said:
                raise
            # This QEMU was built without it, so that the file must not fill: it gets all it could need at once.
            await create_file(monitor, places, number, disk.size, reserve=True)
            await monitor.run("blockdev-add", file | {"node-name": name})
    finally:
        places.unlink(path)
    return name


async def create_file(monitor: Monitor, places: Places, number: int, size: int, *, reserve: bool = False) -> None:
    """Have QEMU make a file anew, empty or with all its space.

    Raises:
        PlatformError: It could not.
    """
    job = places.name(number, "j")
    path = str(places.fleecing(number))
    options: dict[str, object] = {"driver": "file", "filename": path, "size": size}
    if reserve:
        options["preallocation"] = "falloc"
    await monitor.run("blockdev-create", {"job-id": job, "options": options})
    while True:
        jobs = await monitor.ask("query-jobs", tuple[_Job, ...])
        state = next((found for found in jobs if found.id == job), None)
        if state is None:
            raise PlatformError(f"the file {printable(path)} was to be made, and QEMU forgot about it")
        if state.status == "concluded":
            break
        await asyncio.sleep(_LOOK)
    await monitor.run("job-dismiss", {"id": job})
    if state.error:
        raise PlatformError(
            f"QEMU has no place for what the guest overwrites during the backup: {printable(state.error)}; "
            "set 'directory' to one that it can write to"
        )
