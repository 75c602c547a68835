"""Changed-block tracking of a VM: whether it is on, what it says of each disk, and when it has to begin anew.

The platform calls the point from which it tracks changes a checkpoint, and counts these in 64 bits: the upper half
seems to say how often tracking was reset, the lower half how many snapshots were taken since. So a checkpoint of
another upper half is worth nothing, whatever the platform answers for it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from ...errors import CbtExpiredError, PlatformError, printable
from ...models import Checkpoint, Extent
from .answers import CbtStatus, Server, SnapshotDetails
from .changes import ChangedMap, Region, UnprovenError, collect
from .disks import VmDisk
from .site import Site

log = logging.getLogger("sfasync")

EXPIRED: Final = "cbt-expired"
_NUMBER: Final = re.compile(r"[0-9]{1,20}")
_EVERYTHING: Final = "0"
"""The checkpoint since which all that was ever written has changed."""

_OFF: Final = CbtStatus(is_enabled=False)


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed on a disk since a checkpoint.

    Attributes:
        map: What may have changed; None if that is not known.
        reason: Why not, as a short code; None if it is.
    """

    map: ChangedMap | None = field(default=None, repr=False)
    reason: str | None = None

    def extents(self) -> AsyncIterator[Extent] | None:
        """The ranges that may have changed, in order; None if that is not known."""
        return None if self.map is None else extents_of(self.map)


async def extents_of(changed: ChangedMap) -> AsyncIterator[Extent]:
    """The ranges of a map, as extents."""
    for start, end in changed:
        yield Extent(start, end - start)


@dataclass(frozen=True, slots=True)
class Tracking:
    """Which disks of a VM are tracked.

    Attributes:
        before: Were when we came: only of these it is known what changed since an earlier checkpoint.
        now: Are now: a checkpoint of these is good for later.
    """

    before: CbtStatus
    now: CbtStatus


async def tracking(site: Site, server: Server, *, enable: bool) -> Tracking:
    """Which disks of a VM are tracked; a platform that cannot tell tracks none.

    Args:
        site: The platform.
        server: The VM.
        enable: Turn it on where it is off.

    Raises:
        PlatformError: The platform does not answer, or does not turn it on.
    """
    try:
        status = await site.api.cbt_status(server.id)
    except PlatformError as error:
        if error.status != 404:
            raise
        return Tracking(_OFF, _OFF)
    off = [disk.id for disk in status.disks or () if not disk.is_enabled]
    if not enable or (status.is_enabled and not off):
        return Tracking(status, status)
    await site.api.wait(await site.api.set_cbt(server.id, "enable", off or None))
    return Tracking(status, await site.api.cbt_status(server.id))


async def begin_anew(site: Site, server: Server) -> None:
    """Forget all checkpoints: the next backup of each disk is a full one.

    Raises:
        PlatformError: The platform does not do it.
    """
    await site.api.wait(await site.api.set_cbt(server.id, "reset"))


def checkpoint_of(disk: VmDisk, frozen: SnapshotDetails, tracked: Tracking) -> Checkpoint | None:
    """The checkpoint that came with a snapshot; None where changes of the disk are not tracked."""
    number = frozen.checkpoint(disk.id)
    return disk.checkpoint(number) if number is not None and tracked.now.tracked(disk.id) else None


async def changes_since(
    site: Site,
    server: Server,
    disks: Sequence[VmDisk],
    frozen: SnapshotDetails,
    base: Mapping[str, Checkpoint],
    tracked: Tracking,
) -> dict[str, Changes]:
    """What changed on each disk between its checkpoint and a snapshot.

    Raises:
        PlatformError: The platform does not answer.
    """
    changes = {}
    for disk in disks:
        reason = _unusable(base.get(disk.id), checkpoint_of(disk, frozen, tracked))
        if reason is None and not tracked.before.tracked(disk.id):
            reason = "no-cbt"
        changes[disk.id] = (
            await _asked(site, server, disk, frozen, base[disk.id].id) if reason is None else Changes(reason=reason)
        )
    return changes


async def allocation(
    site: Site, server: Server, disk: VmDisk, frozen: SnapshotDetails, tracked: Tracking
) -> ChangedMap | None:
    """What of a disk may hold data, where that is to be believed and the platform proves it; None for all of it.

    Raises:
        PlatformError: The platform does not answer.
    """
    if not site.settings.trust_allocation or checkpoint_of(disk, frozen, tracked) is None:
        return None
    return (await _asked(site, server, disk, frozen, _EVERYTHING)).map


async def _asked(site: Site, server: Server, disk: VmDisk, frozen: SnapshotDetails, since: str) -> Changes:
    """What the platform says of one disk since a checkpoint, if it proves it."""
    ask = partial(_ask, site, server.id, disk.id, frozen.id, since)
    try:
        return Changes(await collect(ask, size=disk.size))
    except CbtExpiredError as error:
        reason = EXPIRED
        problem: PlatformError = error
    except UnprovenError as error:
        reason = "cbt-invalid"
        problem = error
    except PlatformError as error:
        if error.status is None:  # it does not answer at all: a full backup would not come far either
            raise
        reason = "cbt-unavailable"
        problem = error
    log.warning("disk %s of VM %s: what changed is not known: %s", disk.id, printable(server.name), problem)
    return Changes(reason=reason)


def _unusable(base: Checkpoint | None, now: Checkpoint | None) -> str | None:
    """Why changes since a checkpoint need not be asked for; None if they have to be."""
    if now is None:
        return "no-cbt"
    if base is None or not _NUMBER.fullmatch(base.id):
        return "no-checkpoint"
    if base.disk_identity != now.disk_identity:
        return "disk-replaced"
    if base.size != now.size:
        return "disk-resized"
    if int(base.id) >> 32 != int(now.id) >> 32:
        return EXPIRED
    if int(base.id) > int(now.id):
        return "cbt-invalid"
    return None


async def _ask(site: Site, server: str, disk: str, snapshot: str, checkpoint: str, start: int) -> Region:
    return await site.api.changed_areas(server, disk, snapshot, checkpoint, start)
