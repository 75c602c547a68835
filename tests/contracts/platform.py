"""What every `Platform` promises the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from sfasync.endpoints import Endpoints
from sfasync.errors import SfasyncError
from sfasync.interfaces import Platform, RestoreDisk, SnapshotDisk, Source
from sfasync.models import NO_RETRY, Checkpoint, ExportAddress, Extent, Limits, Timeouts
from sfasync.workers import Workers


@dataclass(frozen=True)
class PlatformCase:
    """A platform with one VM.

    Attributes:
        platform: To be tried.
        vm: Id of the VM.
        sizes: Bytes of its disks, by disk id; at least two disks.
        tracks: Whether it knows what changed.
    """

    platform: Platform
    vm: str
    sizes: Mapping[str, int]
    tracks: bool


@asynccontextmanager
async def changes(disk: SnapshotDisk | RestoreDisk) -> AsyncIterator[AsyncIterator[Extent] | None]:
    """What the platform says of changes, as the engine reads it."""
    workers = Workers(1, "contract")
    try:
        async with Endpoints(Limits(), Timeouts(), workers, NO_RETRY).changes(disk.changed()) as changed:
            yield changed
    finally:
        workers.close()


class PlatformContract:
    """Inherit, and bring a fixture `platform_case`."""

    async def test_a_snapshot_has_all_disks_in_order(self, platform_case: PlatformCase) -> None:
        async with platform_case.platform.snapshot(platform_case.vm) as view:
            assert view.vm_id == platform_case.vm
            assert view.vm_name
            assert [disk.id for disk in view.disks] == list(platform_case.sizes)
            for disk in view.disks:
                assert disk.size in (None, platform_case.sizes[disk.id])
                assert isinstance(disk.address, ExportAddress | Source)

    async def test_a_vm_is_known_by_its_id(self, platform_case: PlatformCase) -> None:
        assert await platform_case.platform.identify(platform_case.vm) == platform_case.vm
        for vm in await platform_case.platform.vms():
            assert await platform_case.platform.identify(vm.id) == vm.id
            names = [other.name for other in await platform_case.platform.vms()]
            if names.count(vm.name) == 1:
                assert await platform_case.platform.identify(vm.name) == vm.id

    async def test_disks_can_be_chosen(self, platform_case: PlatformCase) -> None:
        last = list(platform_case.sizes)[-1]
        async with platform_case.platform.snapshot(platform_case.vm, disks=[last]) as view:
            assert [disk.id for disk in view.disks] == [last]

    async def test_an_unknown_disk_is_refused_by_name(self, platform_case: PlatformCase) -> None:
        with pytest.raises(SfasyncError, match="no-such-disk"):
            async with platform_case.platform.snapshot(platform_case.vm, disks=["no-such-disk"]):
                pytest.fail("the snapshot was made")

    async def test_without_a_base_nothing_is_known_to_have_changed(self, platform_case: PlatformCase) -> None:
        async with platform_case.platform.snapshot(platform_case.vm) as view:
            for disk in view.disks:
                assert disk.changed() is None
                assert disk.reason

    async def test_a_checkpoint_is_bound_to_its_disk(self, platform_case: PlatformCase) -> None:
        async with platform_case.platform.snapshot(platform_case.vm) as view:
            checkpoints = [disk.checkpoint for disk in view.disks if disk.checkpoint is not None]
        assert len(checkpoints) == (len(platform_case.sizes) if platform_case.tracks else 0)
        assert len({(point.disk_identity, point.id) for point in checkpoints}) == len(checkpoints)

    async def test_changes_since_a_base_cover_nothing_outside_the_disk(self, platform_case: PlatformCase) -> None:
        base = await self.base(platform_case)
        async with platform_case.platform.snapshot(platform_case.vm, base=base, chain="chain") as view:
            for disk in view.disks:
                assert (disk.reason is None) == platform_case.tracks
                position = 0
                async with changes(disk) as changed:
                    assert (changed is not None) == platform_case.tracks
                    if changed is not None:
                        async for extent in changed:
                            assert extent.offset >= position
                            position = extent.end
                assert position <= platform_case.sizes[disk.id]

    async def test_committed_may_be_called_again(self, platform_case: PlatformCase) -> None:
        async with platform_case.platform.snapshot(platform_case.vm) as view:
            await view.check()
            await view.committed(list(platform_case.sizes))
            await view.committed(list(platform_case.sizes))

    async def test_a_snapshot_that_stands_is_not_lost(self, platform_case: PlatformCase) -> None:
        async with platform_case.platform.snapshot(platform_case.vm) as view:
            lost = asyncio.ensure_future(view.lost)
            await asyncio.sleep(0)
            assert not lost.done()
            lost.cancel()

    async def test_an_error_inside_passes_through(self, platform_case: PlatformCase) -> None:
        with pytest.raises(ZeroDivisionError):
            async with platform_case.platform.snapshot(platform_case.vm):
                raise ZeroDivisionError
        async with platform_case.platform.snapshot(platform_case.vm) as view:
            assert len(view.disks) == len(platform_case.sizes)

    async def test_a_vm_that_is_listed_is_the_one_that_is_backed_up(self, platform_case: PlatformCase) -> None:
        for vm in await platform_case.platform.vms():
            if vm.id == platform_case.vm:
                assert vm.refusal is None
                assert vm.state
                assert [disk.id for disk in vm.disks] == list(platform_case.sizes)
                for disk in vm.disks:
                    assert disk.size in (None, platform_case.sizes[disk.id])

    async def test_nothing_is_left_behind(self, platform_case: PlatformCase) -> None:
        base = await self.base(platform_case)
        with pytest.raises(ZeroDivisionError):
            async with platform_case.platform.snapshot(platform_case.vm, base=base, chain="chain"):
                raise ZeroDivisionError
        assert list(await platform_case.platform.cleanup(dry_run=True)) == []
        assert list(await platform_case.platform.cleanup()) == []

    async def test_a_base_that_nobody_knows_is_no_base(self, platform_case: PlatformCase) -> None:
        disk, size = next(iter(platform_case.sizes.items()))
        unknown = {disk: Checkpoint(id="no-such-checkpoint", disk_identity="no-such-disk", size=size)}
        async with platform_case.platform.snapshot(platform_case.vm, base=unknown, chain="chain") as view:
            assert view.disks[0].changed() is None
            assert view.disks[0].reason

    async def test_a_base_that_was_not_committed_stays_good(self, platform_case: PlatformCase) -> None:
        base = await self.base(platform_case)
        for _ in range(2):
            async with platform_case.platform.snapshot(platform_case.vm, base=base, chain="chain") as view:
                assert all((disk.reason is None) == platform_case.tracks for disk in view.disks)

    async def test_targets_are_at_least_as_large_as_asked(self, platform_case: PlatformCase) -> None:
        async with platform_case.platform.restore(
            platform_case.vm, config=None, files={}, disks=platform_case.sizes
        ) as target:
            assert set(target.disks) == set(platform_case.sizes)
            for disk, place in target.disks.items():
                if not isinstance(place.address, ExportAddress):
                    assert place.address.size >= platform_case.sizes[disk]
            await target.finish()

    @staticmethod
    async def base(case: PlatformCase) -> dict[str, Checkpoint]:
        """A checkpoint of each disk that has one."""
        async with case.platform.snapshot(case.vm, chain="chain") as view:
            base = {disk.id: disk.checkpoint for disk in view.disks if disk.checkpoint is not None}
            await view.committed(list(base))
        return base
