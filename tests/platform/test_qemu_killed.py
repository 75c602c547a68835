"""Backups of QEMU disks that are killed, cancelled or cut off at any command: nothing of theirs stays for long."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import uvloop

from sfasync import Engine, LeaseLostError, PlatformError, Repository
from sfasync.platform.qemu.monitor import Monitor
from sfasync.platform.qemu.platform import QemuPlatform
from sfasync.transport.export import open_export
from sfasync.units import MiB
from tests.support.memory import MemoryDisk
from tests.support.qemu import Machine, bitmaps, daemon, made_by_us

SIZE = 2 * MiB
SOME = ["12", "23", "31", "manifest", "committed"]
COMMANDS = 60  # more than a backup takes
ALL = [*map(str, range(COMMANDS)), "manifest", "committed"]


def run(machine: Machine, repository: Path, instant: str) -> int:
    """The exit status of a backup in a process of its own, which dies at an instant."""
    places = {
        "monitor": str(machine.settings.socket),
        "nbd": str(machine.settings.nbd.socket),
        "directory": str(machine.settings.directory),
    }
    command = [sys.executable, "-m", "tests.support.dying", str(repository), json.dumps(places), instant]
    return subprocess.run(command, timeout=60, stderr=subprocess.DEVNULL).returncode


async def back_up_twice(machine: Machine, place: Path, number: int, *, clean: bool) -> None:
    """See that backups after a death are right without help, or after a clean-up, and leave nothing."""
    async with (
        await Repository.open(place) as repository,
        Engine(repository) as engine,
        QemuPlatform(machine.platform_settings()) as platform,
        await open_export(machine.address("vda")) as guest,
    ):
        if clean:
            left = await made_by_us(machine)
            (vm,) = await platform.vms()
            assert bool(left) == any("a killed run left something" in warning for warning in vm.warnings)
            found = {leftover.id for leftover in await platform.cleanup(dry_run=True)}
            assert found == set(left) == {leftover.id for leftover in await platform.cleanup() if leftover.removed}
            assert await made_by_us(machine) == []
        for _ in range(2):
            await guest.write(number * 1000, b"%d" % number)
            result = await engine.backup_vm("web-01", platform=platform)
            assert [disk.mode for disk in result.disks] == ["incremental"]
            assert result.warnings == ()
            target = MemoryDisk(bytes(SIZE))
            await engine.restore_vm(result.id, to_disks={"vda": target})
            assert bytes(target.content) == await guest.read(0, SIZE)
        assert await made_by_us(machine) == []
        assert len(await bitmaps(machine, "vda")) == 2  # and its seal
    assert machine.settings.directory is not None
    assert list(machine.settings.directory.glob("sfasync-*")) == []


def killed_at(instants: list[str], tmp_path: Path) -> int:
    """How many of the instants there are in a backup."""
    place = tmp_path / "repository"
    with daemon({"vda": SIZE}) as machine, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(make_repository(machine, place))
        for number, instant in enumerate(instants):
            status = run(machine, place, instant)
            assert status in (0, -signal.SIGKILL)
            if status == 0:
                return number
            runner.run(back_up_twice(machine, place, number, clean=number % 2 == 1))
    return len(instants)


async def make_repository(machine: Machine, place: Path) -> None:
    async with (
        await Repository.open(place, create=True) as repository,
        Engine(repository) as engine,
        QemuPlatform(machine.platform_settings()) as platform,
    ):
        await engine.backup_vm("web-01", platform=platform)


def test_a_backup_that_is_killed(tmp_path: Path) -> None:
    assert killed_at(SOME, tmp_path) == len(SOME)


@pytest.mark.faults
@pytest.mark.timeout(0)
def test_a_backup_that_is_killed_at_every_command(tmp_path: Path) -> None:
    commands = killed_at(ALL[:COMMANDS], tmp_path / "commands")
    assert 30 < commands < COMMANDS
    assert killed_at(ALL[COMMANDS:], tmp_path / "manifest") == 2


class At:
    """Calls something before the n-th command of every monitor of the block."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        self.action: Callable[[Monitor], object] = id
        execute = Monitor._execute

        async def count(monitor: Monitor, command: str, arguments: Mapping[str, object] | None) -> object:
            self.left -= 1
            if self.left == 0:
                self.action(monitor)
            return await execute(monitor, command, arguments)

        monkeypatch.setattr(Monitor, "_execute", count)


async def interrupted(machine: Machine, at: At, number: int) -> bool:
    """Take a snapshot and leave it, with an action before a command; whether it came to that."""
    at.left = number
    try:
        async with QemuPlatform(machine.platform_settings()) as platform, platform.snapshot("web-01") as view:
            await view.check()
    except (LeaseLostError, PlatformError, asyncio.CancelledError):
        pass
    came = at.left <= 0
    at.left = -1
    return came


def _cancel(task: asyncio.Task[bool], monitor: Monitor) -> None:
    task.cancel()


async def test_a_snapshot_that_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    with daemon({"vda": SIZE}) as machine:
        at = At(monkeypatch)
        for number in range(1, COMMANDS, 5):
            task = asyncio.ensure_future(interrupted(machine, at, number))
            at.action = partial(_cancel, task)
            came = await task
            assert await made_by_us(machine) == [], f"cancelled before command {number}"
            if not came:
                break
        assert not came, "there are fewer commands than that"


async def test_a_monitor_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU is there still, so what was made is removed over another connection."""
    with daemon({"vda": SIZE}) as machine:
        at = At(monkeypatch)
        at.action = lambda monitor: monitor._client._writer.transport.abort()  # type: ignore[union-attr] # it is connected
        for number in range(1, COMMANDS, 5):
            came = await interrupted(machine, at, number)
            assert await made_by_us(machine) == [], f"cut off before command {number}"
            if not came:
                break
        assert not came, "there are fewer commands than that"
