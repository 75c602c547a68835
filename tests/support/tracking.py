"""A platform in memory that freezes disks and tracks what changes: everything a driver for a real one has to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sfasync.errors import LeaseLostError, StorageError, UsageError
from sfasync.models import Checkpoint, Extent, Leftover, VirtualDisk, VirtualMachine
from sfasync.platform.plain import PlainTarget, PlainTargetDisk

from .memory import MemoryDisk


class TrackedDisk:
    """A disk of a running VM. Checkpoints are numbered; each remembers what was written since."""

    def __init__(self, name: str, content: bytes) -> None:
        self.name = name
        self.content = bytearray(content)
        self.checkpoints: dict[str, set[tuple[int, int]]] = {}
        self.sizes: dict[str, int] = {}

    def write(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data
        for changed in self.checkpoints.values():
            changed.add((offset, len(data)))

    def resize(self, size: int) -> None:
        """Cut the end off, or append zeros: a change, as what was there before may have been cut off since."""
        del self.content[size:]
        end = len(self.content)
        if end < size:
            self.write(end, bytes(size - end))


@dataclass
class TrackedSnapshotDisk:
    id: str
    size: int
    address: MemoryDisk
    checkpoint: Checkpoint
    ranges: list[tuple[int, int]] | None
    reason: str | None
    shares: Mapping[str, int] = field(default_factory=dict)

    def changed(self) -> AsyncIterator[Extent] | None:
        return None if self.ranges is None else self._extents(self.ranges)

    async def _extents(self, ranges: list[tuple[int, int]]) -> AsyncIterator[Extent]:
        end = 0
        for offset, length in sorted(ranges):
            start, stop = max(offset, end), min(offset + length, self.size)
            if start < stop:
                yield Extent(start, stop - start)
                end = stop


@dataclass
class TrackedSnapshot:
    platform: TrackingPlatform
    vm_id: str
    base: Mapping[str, Checkpoint]
    disks: Sequence[TrackedSnapshotDisk]
    lost: asyncio.Future[str]
    snapshot_id: str | None
    vm_name: str = "Web server"
    config: bytes | None = b'{"cpus": 2}'
    files: Mapping[str, bytes] = field(default_factory=lambda: {"nvram": b"\x01\x02"})

    async def check(self) -> None:
        if self.lost.done():
            raise LeaseLostError(self.lost.result())

    async def committed(self, disk_ids: Sequence[str]) -> None:
        if self.platform.fail_committed is not None:
            raise self.platform.fail_committed
        self.platform.kept.pop(str(self.snapshot_id), None)
        for disk in self.disks:
            if disk.id in disk_ids:
                tracked = self.platform.vm_disks[disk.id]
                for checkpoint in list(tracked.checkpoints):
                    if checkpoint != disk.checkpoint.id:
                        del tracked.checkpoints[checkpoint]


class TrackingPlatform:
    """Disks in memory with changed-block tracking.

    Attributes:
        vm_disks: The disks of its one VM.
        open_snapshots: Snapshots that were not given back.
        fail_committed: What `committed` fails with.
        fail_leaving: Leaving a snapshot fails.
        lose_after: The lease is lost when this many bytes of a snapshot were read.
        kept: Snapshots that no backup was made of, to be used again.
    """

    name = "tracking"

    def __init__(self, disks: Mapping[str, bytes]) -> None:
        self.vm_disks = {name: TrackedDisk(name, content) for name, content in disks.items()}
        self.open_snapshots = 0
        self.fail_committed: Exception | None = None
        self.fail_leaving = False
        self.lose_after: int | None = None
        self.last_view: TrackedSnapshot | None = None
        self.kept: dict[str, list[TrackedSnapshotDisk]] = {}
        self._made = 0

    @asynccontextmanager
    async def snapshot(
        self,
        vm: str,
        *,
        disks: Sequence[str] | None = None,
        base: Mapping[str, Checkpoint] | None = None,
        chain: str = "",
        reuse: str | None = None,
    ) -> AsyncIterator[TrackedSnapshot]:
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        wanted = list(self.vm_disks) if disks is None else list(disks)
        for name in wanted:
            if name not in self.vm_disks:
                raise UsageError(f"VM {vm!r} has no disk {name!r}", disk=name)
        frozen = self.kept.get(reuse) if reuse else None
        if frozen is None or [disk.id for disk in frozen] != wanted:
            self._made += 1
            reuse = f"snapshot-{self._made}"
            frozen = [self._freeze(self.vm_disks[name], dict(base or {}).get(name), lost) for name in wanted]
        self.kept = {str(reuse): frozen}
        view = TrackedSnapshot(self, vm, base or {}, frozen, lost, reuse)
        self.open_snapshots += 1
        self.last_view = view
        try:
            yield view
        finally:
            self.open_snapshots -= 1
            lost.cancel()
            if self.fail_leaving:
                raise StorageError("the snapshot is stuck")

    @asynccontextmanager
    async def restore(
        self,
        vm: str | None,
        *,
        new_name: str | None = None,
        config: bytes | None,
        files: Mapping[str, bytes],
        disks: Mapping[str, int],
        since: Mapping[str, Checkpoint] | None = None,
    ) -> AsyncIterator[PlainTarget]:
        targets = {name: PlainTargetDisk(MemoryDisk(bytes(size))) for name, size in disks.items()}
        yield PlainTarget(vm or new_name or "", targets, asyncio.get_running_loop().create_future())

    async def vms(self) -> Sequence[VirtualMachine]:
        disks = (VirtualDisk(id=name, size=len(disk.content), tracked=True) for name, disk in self.vm_disks.items())
        return [VirtualMachine(id="vm", name="Web server", state="running", disks=tuple(disks))]

    async def identify(self, vm: str) -> str:
        return "vm" if vm == "Web server" else vm

    async def cleanup(self, *, dry_run: bool = False) -> Sequence[Leftover]:
        return ()

    def _freeze(self, disk: TrackedDisk, base: Checkpoint | None, lost: asyncio.Future[str]) -> TrackedSnapshotDisk:
        ranges = None
        reason: str | None = None
        if base is None:
            reason = "no-checkpoint"
        elif base.id not in disk.checkpoints:
            reason = "cbt-expired"
        else:
            ranges = list(disk.checkpoints[base.id])
        checkpoint = Checkpoint(id=f"{disk.name}-{self._made}", disk_identity=disk.name, size=len(disk.content))
        disk.checkpoints[checkpoint.id] = set()
        source = LosingDisk(bytes(disk.content), lost, self.lose_after)
        return TrackedSnapshotDisk(disk.name, len(disk.content), source, checkpoint, ranges, reason)


class LosingDisk(MemoryDisk):
    """A frozen disk whose lease may be lost while it is read."""

    def __init__(self, content: bytes, lost: asyncio.Future[str], lose_after: int | None) -> None:
        super().__init__(content)
        self._lost = lost
        self.lose_after = lose_after

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await super().read_into(offset, buffer)
        read = sum(length for _, length in self.reads)
        if self.lose_after is not None and read >= self.lose_after and not self._lost.done():
            self._lost.set_result("the lease ran out")
