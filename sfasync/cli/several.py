"""Several VMs backed up by one command: as many at once as the limits allow, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar

from ..shares import Room
from .failures import SomeFailed
from .output import Output

if TYPE_CHECKING:
    from ..models import DiskProgress, Progress, VirtualMachine
    from ..progress import ProgressCallback

_T = TypeVar("_T")

_FINISHED = "(finished)"


def matching(vms: Sequence[VirtualMachine], patterns: Sequence[str]) -> list[VirtualMachine]:
    """The VMs whose names match a pattern as of a shell, or all if there is none, in their order."""
    return [vm for vm in vms if not patterns or any(fnmatchcase(vm.name, pattern) for pattern in patterns)]


async def each_vm(
    output: Output,
    vms: Sequence[VirtualMachine],
    work: Callable[[VirtualMachine, ProgressCallback | None], Coroutine[Any, Any, _T]],
    *,
    done: Callable[[VirtualMachine, _T], None],
    failed: Callable[[VirtualMachine, Exception], None],
    disks: int,
) -> None:
    """Do something with each VM. It begins when its disks can be moved at once, so that no snapshot waits.

    Args:
        output: Shows how far they all are.
        vms: In the order in which they begin.
        work: Called for each, with what to tell its progress to.
        done, failed: Told of each, when it has ended.
        disks: How many may be moved at the same time.

    Raises:
        SomeFailed: When all have ended, if something failed.
    """
    room = Room()
    together = _Together(output.job_progress())
    failures: list[tuple[VirtualMachine, Exception]] = []

    async def one(vm: VirtualMachine) -> None:
        async with room.taken(max(1, len(vm.disks)), disks):
            try:
                result = await work(vm, together.callback(vm))
            except Exception as error:  # noqa: BLE001 - nothing that befalls one VM may keep the others from theirs
                failures.append((vm, error))
                failed(vm, error)
            else:
                done(vm, result)
            together.end(vm)

    async with asyncio.TaskGroup() as group:
        for vm in vms:
            group.create_task(one(vm))
    if failures:
        vm, first = failures[0]
        raise SomeFailed(f"{len(failures)} of {len(vms)} VMs failed, first {vm.name}", first)


class _Together:
    """The progress of several jobs as that of one; what has ended is added up."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        from ..models import DiskProgress  # most commands move one VM, or none

        self._callback = callback
        self._began = time.monotonic()
        self._running: dict[str, tuple[DiskProgress, ...]] = {}
        self._finished = DiskProgress(id=_FINISHED, size=0, done=0, read=0, zero=0, skipped=0, resumed=0)

    def callback(self, vm: VirtualMachine) -> ProgressCallback | None:
        """What the job of a VM calls; None if nobody looks."""
        if self._callback is None:
            return None
        show = self._callback

        def update(progress: Progress) -> None:
            self._running[vm.id] = tuple(replace(disk, id=f"{vm.name}/{disk.id}") for disk in progress.disks)
            show(self._whole())

        return update

    def end(self, vm: VirtualMachine) -> None:
        """The job of a VM has ended."""
        for disk in self._running.pop(vm.id, ()):
            sums = {name: getattr(self._finished, name) + getattr(disk, name) for name in _SUMMED}
            self._finished = replace(self._finished, **sums)

    def _whole(self) -> Progress:
        from ..models import Progress

        finished = (self._finished,) if self._finished.size else ()
        running = (disk for disks in self._running.values() for disk in disks)
        return Progress(state="running", disks=(*finished, *running), seconds=time.monotonic() - self._began)


_SUMMED = ("size", "done", "read", "zero", "skipped", "resumed")
