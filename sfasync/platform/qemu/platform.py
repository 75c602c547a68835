"""VMs of QEMU, and disks of qemu-storage-daemon, by their QMP monitors."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

from ...errors import PlatformError, SfasyncError, UsageError, printable
from ...models import Checkpoint, Leftover, VirtualMachine
from ...tasks import run_all
from ...workers import Workers
from .listing import clean, describe
from .restore import QemuTarget, open_target
from .settings import QemuSettings, QemuVm
from .snapshot import QemuSnapshot, open_snapshot

_logger = logging.getLogger(__name__)

_FILE_LIMIT: Final = 64 << 20


class QemuPlatform:
    """VMs of QEMU; an asynchronous context manager, which holds nothing between two calls but a thread.

    Args:
        settings: Which VMs there are, and how they are reached.
    """

    name = "qemu"

    def __init__(self, settings: QemuSettings) -> None:
        self._settings = settings
        self._workers = Workers(1, "sfasync-qemu")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._workers.close()

    @asynccontextmanager
    async def snapshot(
        self,
        vm: str,
        *,
        disks: Sequence[str] | None = None,
        base: Mapping[str, Checkpoint] | None = None,
        chain: str = "",
        reuse: str | None = None,
    ) -> AsyncIterator[QemuSnapshot]:
        """Freeze disks at one moment; `reuse` means nothing here. Otherwise as of `Platform`.

        Raises:
            UsageError: A VM or disk that is not there.
            BusyError: Somebody else is connected to the VM's monitor.
            PlatformError: QEMU refuses or fails.
        """
        settings = self._vm(vm)
        files = {name: await self._workers.run(_read, path) for name, path in settings.files.items()}
        async with open_snapshot(
            vm, settings, self._settings.timeouts, ids=disks, base=base or {}, chain=chain, files=files
        ) as view:
            yield view

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
    ) -> AsyncIterator[QemuTarget]:
        """Serve the disks of a VM that is powered off, or of a qemu-storage-daemon, to be written.

        Raises:
            UsageError: The VM runs, a disk is not there or too small, or a new VM is wanted: no monitor makes one.
            BusyError: Somebody else is connected to the VM's monitor.
            PlatformError: QEMU refuses or fails.
        """
        if vm is None:
            raise UsageError(
                f"QEMU makes no new VM {printable(new_name or '')!r}: make its images with qemu-img, serve them with "
                "qemu-storage-daemon, and restore to that"
            )
        async with open_target(vm, self._vm(vm), self._settings.timeouts, sizes=disks, since=since or {}) as target:
            yield target

    async def vms(self) -> Sequence[VirtualMachine]:
        """The VMs of the settings, each as its monitor describes it."""
        vms = self._settings.vms.items()
        found = await run_all(describe(vm, settings, self._settings.timeouts) for vm, settings in vms)
        return sorted(found, key=lambda vm: vm.name)

    async def identify(self, vm: str) -> str:
        """The name of the VM, which is its id."""
        self._vm(vm)
        return vm

    async def cleanup(self, *, dry_run: bool = False) -> Sequence[Leftover]:
        """Remove what killed runs have left in QEMU, but for the bitmaps that record changes.

        A VM whose monitor somebody else is connected to is left alone: a backup of it may be going on. One that fails
        keeps nobody from the others.

        Raises:
            SfasyncError: The first failure; what was removed elsewhere is logged.
        """
        found: list[Leftover] = []
        failures: list[SfasyncError] = []

        async def clean_one(vm: str, settings: QemuVm) -> None:
            try:
                found.extend(await clean(vm, settings, self._settings.timeouts, dry_run=dry_run))
            except SfasyncError as error:
                failures.append(error)

        await run_all(clean_one(vm, settings) for vm, settings in self._settings.vms.items())
        if failures:
            for leftover in found:
                _logger.warning("%s: left over, removed: %s %s", leftover.vm, leftover.kind, leftover.id)
            for other in failures[1:]:
                _logger.warning("%s", other)
            raise failures[0]
        return found

    def _vm(self, vm: str) -> QemuVm:
        settings = self._settings.vms.get(vm)
        if settings is None:
            known = ", ".join(repr(name) for name in self._settings.vms) or "none"
            raise UsageError(f"there is no VM '{printable(vm)}' in the configuration; there are {known}")
        return settings


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise PlatformError(f"cannot read {printable(str(path))}: {printable(str(error.strerror))}") from error
    if len(data) > _FILE_LIMIT:
        raise PlatformError(
            f"{printable(str(path))} has more than {_FILE_LIMIT >> 20} MiB; it is no small file of a VM"
        )
    return data
