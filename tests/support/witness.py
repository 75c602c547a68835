"""Incremental backups of a disk that a guest writes to all the time, compared with what it had at each snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sfasync import Engine, Repository
from sfasync.nbd.uri import format_uri
from sfasync.platform.qemu.platform import QemuPlatform
from sfasync.platform.qemu.snapshot import QemuSnapshot
from sfasync.units import MiB

from .guest import Guest, guest_at_work
from .memory import MemoryDisk
from .qemu import Machine, daemon

SIZE = 12 * MiB + 512


class Witness(QemuPlatform):
    """A platform that takes down what each snapshot should have.

    Attributes:
        truth: What the disk had at the last snapshot.
    """

    truth: bytes

    def observe(self, guest: Guest, place: Path) -> None:
        self._guest = guest
        self._place = place
        self._turn = 0

    @asynccontextmanager
    async def snapshot(self, vm: str, **arguments: Any) -> AsyncIterator[QemuSnapshot]:
        """In turn: the guest stops for the moment and knows what it wrote; or goes on, and another client reads."""
        self._turn += 1
        if self._turn % 2:
            pause = self._guest.paused()
            await pause.__aenter__()
            try:
                opening = super().snapshot(vm, **arguments)
                view = await opening.__aenter__()
                self.truth = bytes(self._guest.content)
            finally:
                await pause.__aexit__(None, None, None)
            try:
                yield view
            finally:
                await opening.__aexit__(None, None, None)
        else:
            async with super().snapshot(vm, **arguments) as view:
                address = view.disks[0].address
                assert (
                    await (await asyncio.create_subprocess_exec("nbdcopy", format_uri(address), self._place)).wait()
                    == 0
                )
                self.truth = self._place.read_bytes()
                yield view


async def _incrementals(machine: Machine, place: Path, count: int, *, seed: int = 1) -> None:
    platform = Witness(machine.platform_settings())
    async with (
        await Repository.open(place / "repository", create=True) as repository,
        Engine(repository) as engine,
        platform,
        guest_at_work(machine.address("vda"), seed) as guest,
    ):
        platform.observe(guest, place / "truth")
        for number in range(count + 1):
            await guest.work(20)
            result = await engine.backup_vm("web-01", platform=platform)
            assert [disk.mode for disk in result.disks] == ["incremental" if number else "full"], result
            assert result.warnings == ()
            target = MemoryDisk(b"\xff" * SIZE)
            await engine.restore_vm(result.id, to_disks={"vda": target})
            assert target.content == platform.truth, f"backup {number}"
    assert guest.operations > 20 * count


async def incrementals(place: Path, count: int, *, seed: int = 1) -> None:
    """A full backup of a disk of a qemu-storage-daemon, and as many incremental ones.

    Raises:
        AssertionError: One of them is not what the disk had.
    """
    with daemon({"vda": SIZE}) as machine:
        await _incrementals(machine, place, count, seed=seed)
