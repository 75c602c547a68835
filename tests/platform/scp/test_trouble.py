"""What the platform does wrong while a VM of the lab is backed up: the right error, and nothing is left behind."""

from __future__ import annotations

import asyncio
import random
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from sfasync import Engine, Repository
from sfasync.errors import AuthenticationError, BusyError, LeaseLostError, PlatformError, SfasyncError, SourceError
from sfasync.models import Retry
from sfasync.platform.scp import lease, undo
from sfasync.platform.scp.platform import ScpPlatform
from sfasync.platform.scp.settings import ScpTimeouts
from sfasync.units import MiB

from ...support.laboratory import Laboratory, laboratory

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])  # the contract runs on both

_VM = "web-01"
_IMPATIENT = ScpTimeouts(connect=10.0, request=20.0, retry=0.1, blocked=0.1, task=30.0, poll=0.02)


@pytest.fixture(scope="module")
def lab() -> Iterator[Laboratory]:
    with laboratory(lease_speed=30.0) as running:
        running.add(_VM, [16 * MiB, 3 * MiB])
        running.write(_VM, "ide0", 0, random.Random(1).randbytes(16 * MiB))
        yield running


@pytest.fixture
def journal(lab: Laboratory) -> Path:
    return lab.directory / "journal"


@pytest.fixture
async def platform(lab: Laboratory, journal: Path) -> AsyncIterator[ScpPlatform]:
    settings = lab.settings(timeouts=_IMPATIENT, lease_seconds=60)
    async with ScpPlatform(settings, directory=journal) as platform:
        yield platform
        lab.behave()
        left = await platform.cleanup()
        assert all(one.removed for one in left), left
    assert lab.left() == {}
    assert list(journal.iterdir()) == []


@pytest.fixture
async def engine(lab: Laboratory, tmp_path: Path) -> AsyncIterator[Engine]:
    async with (
        await Repository.init(lab.directory / "repositories" / tmp_path.name) as repository,
        Engine(repository, retry=Retry(attempts=1, outage=0)) as engine,
    ):
        yield engine


ALWAYS = -1


@pytest.mark.parametrize(
    ("fault", "count", "path", "error", "exit_code"),
    [
        ("unauthorized", ALWAYS, "", AuthenticationError, 13),
        ("unavailable", ALWAYS, "", PlatformError, 20),
        pytest.param("rate-limited", ALWAYS, "", PlatformError, 20, marks=pytest.mark.faults),
        ("echo-credentials", ALWAYS, "snapshots", PlatformError, 20),
        pytest.param("truncated-json", ALWAYS, "/servers", PlatformError, 20, marks=pytest.mark.faults),
        pytest.param("deep-json", 1, "/servers", PlatformError, 20, marks=pytest.mark.faults),
        pytest.param("huge-body", 1, "/servers", PlatformError, 20, marks=pytest.mark.faults),
        pytest.param("redirect-http", 1, "/servers", PlatformError, 20, marks=pytest.mark.faults),
        ("redirect-host", 1, "/servers", PlatformError, 20),
        ("endless-pages", ALWAYS, "", PlatformError, 20),
        ("traversal-id", 1, "snapshots", PlatformError, 20),
        ("traversal-id", 1, "backup-resources", PlatformError, 20),
        ("busy", 1, "", BusyError, 11),
        ("failed-task", 1, "", PlatformError, 20),
        ("nbd-killed", 1, "", SourceError, 20),
        ("lease-cancelled", 1, "", LeaseLostError, 24),
        ("snapshot-deleted", 1, "", LeaseLostError, 24),
    ],
)
async def test_what_ends_a_backup(
    lab: Laboratory,
    platform: ScpPlatform,
    engine: Engine,
    caplog: pytest.LogCaptureFixture,
    fault: str,
    count: int,
    path: str,
    error: type[SfasyncError],
    exit_code: int,
) -> None:
    lab.misbehave(fault, count, path)
    with pytest.raises(error) as caught:
        await engine.backup_vm(_VM, platform=platform)
    assert caught.value.exit_code == exit_code
    assert lab.told["password"] not in caplog.text + str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))
    lab.behave()
    assert (await engine.backup_vm(_VM, platform=platform)).disks


async def test_what_does_not(lab: Laboratory, platform: ScpPlatform, engine: Engine) -> None:
    lab.misbehave("unauthorized", 1, "snapshots")
    assert (await engine.backup_vm(_VM, platform=platform)).disks


async def test_a_lease_is_renewed_as_long_as_it_is_needed(
    lab: Laboratory, platform: ScpPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease of 60 s lasts for 2 s in this lab."""
    monkeypatch.setattr(lease, "_LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(lease, "_SHORTEST_PAUSE", 0.1)
    async with platform.snapshot(_VM) as view:
        async with asyncio.timeout(30):
            while lab.ask("renewals") < 3:
                await asyncio.sleep(0.05)
        await view.check()
        assert not view.lost.done()


async def test_a_lease_that_is_not_renewed_is_lost(
    lab: Laboratory, platform: ScpPlatform, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "_LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(lease, "_SHORTEST_PAUSE", 0.1)
    lab.misbehave("lease-not-renewed", ALWAYS)
    async with platform.snapshot(_VM) as view:
        async with asyncio.timeout(30):
            reason = await asyncio.shield(view.lost)
        assert "backup resource" in reason or "ran out" in reason
        with pytest.raises(LeaseLostError, match="took the snapshot back"):
            await view.check()
    assert "accepted to renew the lease on the VM, and did not" in caplog.text


async def test_what_cannot_be_removed_is_said_and_removed_later(
    lab: Laboratory, platform: ScpPlatform, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async def sabotage() -> None:
        async with platform.snapshot(_VM):
            lab.misbehave("unavailable", ALWAYS, "/snapshots/")

    with pytest.raises(PlatformError, match=r"snapshot .* was not removed .*; 'sfasync cleanup' tries again"):
        await sabotage()
    assert len(lab.left()["snapshots"]) == 1
    [left] = await platform.cleanup(dry_run=True)
    assert (left.kind, left.removed, left.problem) == ("snapshot", False, "")
    [left] = await platform.cleanup()
    assert not left.removed
    assert left.problem
    lab.behave()
    [left] = await platform.cleanup()
    assert left.removed
    assert lab.left() == {}


async def test_a_platform_that_died_is_not_waited_for_again(
    lab: Laboratory, platform: ScpPlatform, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was, when it was asked what became of the snapshot; what stays is named, and found by the next one."""
    monkeypatch.setattr(undo, "_UNDO_SILENT", 0.2)
    timeouts = replace(_IMPATIENT, request=0.5, retry=120.0)
    settings = lab.settings(timeouts=timeouts, lease_seconds=60)
    try:
        async with asyncio.timeout(60), ScpPlatform(settings, directory=journal) as patient:
            with pytest.raises(ZeroDivisionError) as caught:
                async with patient.snapshot(_VM) as view:
                    lab.process.send_signal(signal.SIGSTOP)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(1.5):
                            await view.check()
                    raise ZeroDivisionError
    finally:
        lab.process.send_signal(signal.SIGCONT)
    lease_, snapshot = caught.value.__notes__
    assert re.fullmatch(
        r"also: backup resource \S+ was not removed \(.* gave no answer .*; 'sfasync cleanup' .*", lease_
    )
    assert re.fullmatch(r"also: snapshot \S+ was not removed \(.* gave no answer .*; 'sfasync cleanup' .*", snapshot)
    left = await platform.cleanup(dry_run=True)
    assert [one.kind for one in left] == ["snapshot", "backup resource"]


async def test_a_cancelled_backup_ends_soon_and_leaves_nothing(
    lab: Laboratory, platform: ScpPlatform, engine: Engine
) -> None:
    """Also while the platform takes the snapshot: it is removed when there is one."""
    loop = asyncio.get_running_loop()
    lab.misbehave("slow-task")
    async with engine.start_backup(_VM, platform=platform) as job:
        async with asyncio.timeout(30):
            while not lab.ask("tasks"):
                await asyncio.sleep(0.02)
        began = loop.time()
        job.cancel()
        await job.ended()
        assert loop.time() - began < 5.0
        with pytest.raises(asyncio.CancelledError):
            await job.result()
