"""Several VMs at once: in turn, within the limit, and shown as one job."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from sfasync.cli.failures import SomeFailed, describe
from sfasync.cli.output import Output
from sfasync.cli.several import each_vm, matching
from sfasync.errors import BusyError, SourceError
from sfasync.models import BackupResult, DiskProgress, Progress, VirtualDisk, VirtualMachine
from sfasync.progress import ProgressCallback


class Shown(Output):
    """Keeps what would be shown."""

    def __init__(self) -> None:
        super().__init__()
        self.progress: list[Progress] = []

    def job_progress(self) -> ProgressCallback:
        return self.progress.append


class Jobs:
    """Backups that end when they are told to."""

    def __init__(self, disks: Mapping[str, int], failures: Mapping[str, Exception] | None = None) -> None:
        self.vms = [
            VirtualMachine(
                id=name, name=name, state="", disks=tuple(VirtualDisk(id=str(number)) for number in range(count))
            )
            for name, count in disks.items()
        ]
        self.failures = failures or {}
        self.running: list[str] = []
        self.ended: list[str] = []
        self.told: list[str] = []
        self.output = Shown()
        self._ends = {name: asyncio.Event() for name in disks}

    def start(self, room: int) -> asyncio.Task[None]:
        return asyncio.create_task(
            each_vm(
                self.output,
                self.vms,
                self._back_up,
                done=lambda vm, _: self.told.append(f"{vm.name} done"),
                failed=lambda vm, error: self.told.append(f"{vm.name} {error}"),
                disks=room,
            )
        )

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
        for _ in range(10):
            await asyncio.sleep(0)

    async def _back_up(self, vm: VirtualMachine, progress: ProgressCallback | None) -> BackupResult:
        self.running.append(vm.name)
        assert progress is not None
        progress(Progress(state="running", disks=(disk("0", 5),), seconds=0.0))
        try:
            await self._ends[vm.name].wait()
        finally:
            self.running.remove(vm.name)
            self.ended.append(vm.name)
        if vm.name in self.failures:
            raise self.failures[vm.name]
        return BackupResult(id="", vm=vm.id, parent=None, disks=(), limited_by="source", seconds=0.0)


def disk(name: str, done: int) -> DiskProgress:
    return DiskProgress(id=name, size=10, done=done, read=done, zero=0, skipped=0, resumed=0)


async def test_a_vm_begins_when_there_is_room_for_its_disks() -> None:
    jobs = Jobs({"a": 2, "b": 1, "c": 3, "d": 1, "e": 9, "f": 0})
    work = jobs.start(4)
    await jobs.end()
    assert jobs.running == ["a", "b"], "d would fit, but it is the turn of c"
    await jobs.end("a")
    assert jobs.running == ["b", "c"]
    await jobs.end("b", "c")
    assert jobs.running == ["d"], "e gets all the room there is"
    await jobs.end("d")
    assert jobs.running == ["e"]
    await jobs.end("e", "f")
    await work
    assert jobs.told == [f"{name} done" for name in "abcdef"]


async def test_failures_keep_nobody_from_the_others() -> None:
    jobs = Jobs({"a": 1, "b": 1, "c": 1}, {"a": BusyError("busy"), "b": SourceError("gone")})
    work = jobs.start(8)
    await jobs.end("b")
    await jobs.end("a", "c")
    with pytest.raises(SomeFailed) as caught:
        await work
    assert jobs.told == ["b gone", "a busy", "c done"]
    failure = describe(caught.value)
    assert (failure.exit, failure.code) == (20, "source")
    assert failure.message == "2 of 3 VMs failed, first b: gone"


async def test_cancelling_ends_them_all() -> None:
    jobs = Jobs({"a": 1, "b": 1, "c": 1})
    work = jobs.start(2)
    await jobs.end()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert (jobs.running, sorted(jobs.ended), jobs.told) == ([], ["a", "b"], [])


async def test_their_progress_is_that_of_one_job() -> None:
    jobs = Jobs({"a": 1, "b": 1, "c": 1})
    work = jobs.start(1)
    for name in "abc":
        await jobs.end(name)
    await work
    last = jobs.output.progress[-1]
    assert [(shown.id, shown.size, shown.done) for shown in last.disks] == [("(finished)", 20, 10), ("c/0", 10, 5)]
    assert (last.size, last.done, last.read) == (30, 15, 15)


def test_names_match_as_in_a_shell() -> None:
    vms = [VirtualMachine(id="x", name=name, state="", disks=()) for name in ("web-1", "Web-2", "db", "web-[3]")]
    for patterns, names in (
        ([], ["web-1", "Web-2", "db", "web-[3]"]),
        (["web-*"], ["web-1", "web-[3]"]),
        (["db", "[wW]eb-[12]"], ["web-1", "Web-2", "db"]),
        (["web"], []),
    ):
        assert [vm.name for vm in matching(vms, patterns)] == names
