"""Disks that are NBD exports (or any `Source` and `Sink`), with nobody behind them to freeze them or to track changes.

What the caller names is read as it is: freezing is the caller's part (export a snapshot, or stop the writer), and so is
telling one frozen state from another. Every backup reads the whole map; the repository still stores only what it does
not have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import UsageError

if TYPE_CHECKING:
    from ..interfaces import Sink, Source
    from ..models import Checkpoint, ExportAddress, Extent, Leftover, VirtualMachine

_NOTHING: Final = MappingProxyType[str, Any]({})


class PlainDisk(NamedTuple):
    """A disk as the caller named it."""

    id: str
    address: ExportAddress | Source
    size: int | None = None
    checkpoint: Checkpoint | None = None
    reason: str | None = "no-cbt"
    shares: Mapping[str, int] = _NOTHING

    def changed(self) -> AsyncIterator[Extent] | None:
        """Nobody tracks changes here."""
        return None


class PlainSnapshot(NamedTuple):
    """The disks as they are; nothing is frozen, and nothing can be lost: `lost` never comes."""

    vm_id: str
    disks: Sequence[PlainDisk]
    lost: asyncio.Future[str]
    snapshot_id: str | None = None
    config: bytes | None = None
    files: Mapping[str, bytes] = _NOTHING

    @property
    def vm_name(self) -> str:
        return self.vm_id

    async def check(self) -> None:
        """There is no lease that could have ended."""

    async def committed(self, disk_ids: Sequence[str]) -> None:
        """There are no checkpoints to drop."""


class PlainTargetDisk(NamedTuple):
    """A disk to write, as the caller named it."""

    address: ExportAddress | Sink
    reason: str | None = "no-cbt"
    shares: Mapping[str, int] = _NOTHING

    def changed(self) -> AsyncIterator[Extent] | None:
        """Nobody tracks changes here."""
        return None


class PlainTarget(NamedTuple):
    """Disks to write, as the caller named them; `lost` never comes."""

    vm_id: str
    disks: Mapping[str, PlainTargetDisk]
    lost: asyncio.Future[str]

    @property
    def vm_name(self) -> str:
        return self.vm_id

    async def check(self) -> None:
        """Nothing can be lost."""

    async def finish(self) -> Sequence[str]:
        """There is no VM to bring up."""
        return ()


class PlainPlatform:
    """The platform of disks that the caller names one by one.

    Args:
        sources: For backups, where each disk is read.
        sinks: For restores, where each disk is written.
        snapshot_id: What the caller calls the frozen state that the sources are in; None if they are not frozen.
    """

    name = "plain"

    def __init__(
        self,
        sources: Mapping[str, ExportAddress | Source] | None = None,
        sinks: Mapping[str, ExportAddress | Sink] | None = None,
        *,
        snapshot_id: str | None = None,
    ) -> None:
        self._sources = dict(sources or {})
        self._sinks = dict(sinks or {})
        self._snapshot_id = snapshot_id

    @asynccontextmanager
    async def snapshot(
        self,
        vm: str,
        *,
        disks: Sequence[str] | None = None,
        base: Mapping[str, Checkpoint] | None = None,
        chain: str = "",
        reuse: str | None = None,
    ) -> AsyncIterator[PlainSnapshot]:
        """The named disks, as they are; `base`, `chain` and `reuse` mean nothing here."""
        wanted = list(self._sources) if disks is None else list(disks)
        _refuse_unknown(vm, wanted, self._sources)
        named = [PlainDisk(disk, self._sources[disk]) for disk in wanted]
        yield PlainSnapshot(vm, named, asyncio.get_running_loop().create_future(), self._snapshot_id)

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
        """The named targets of the disks; there is no VM to make or to configure."""
        name = vm or new_name or ""
        _refuse_unknown(name, list(disks), self._sinks)
        named = {disk: PlainTargetDisk(self._sinks[disk]) for disk in disks}
        yield PlainTarget(name, named, asyncio.get_running_loop().create_future())

    async def vms(self) -> Sequence[VirtualMachine]:
        """Nobody lists VMs here."""
        return ()

    async def identify(self, vm: str) -> str:
        """VMs are what the caller calls them."""
        return vm

    async def cleanup(self, *, dry_run: bool = False) -> Sequence[Leftover]:
        """Nothing is made here that could be left behind."""
        return ()


def _refuse_unknown(vm: str, wanted: list[str], known: Mapping[str, object]) -> None:
    for disk in wanted:
        if disk not in known:
            raise UsageError(f"no address given for disk {disk!r} of {vm!r}", disk=disk)
