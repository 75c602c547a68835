"""Backups of VMs of the lab that are killed: the next one, or a clean-up, leaves nothing of theirs behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from sfasync import Engine, Repository
from sfasync.models import Retry
from sfasync.platform.scp.platform import ScpPlatform
from sfasync.units import MiB

from ...support.laboratory import Laboratory, laboratory

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])  # the contract runs on both

VM = "web-01"

# The victim kills itself at one of its calls: before it is sent, or when it was answered and nothing is noted of that.
SCRIPT = """
import asyncio, os, signal, sys
from pathlib import Path
from sfasync import Engine, Repository
from sfasync.credentials import Password
from sfasync.platform.scp import http
from sfasync.platform.scp.platform import ScpPlatform
from sfasync.platform.scp.settings import NbdSettings, ScpSettings, ScpTimeouts

directory, url, port, what, when, method, path, number = sys.argv[1:]
exchange = http.Server.exchange
seen = 0

async def watched(self, how, target, *args, **kwargs):
    global seen
    hit = method in ("", how) and path in target
    seen += hit
    if hit and seen == int(number) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    answer = await exchange(self, how, target, *args, **kwargs)
    if hit and seen == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return answer

http.Server.exchange = watched

async def main():
    place = Path(directory)
    settings = ScpSettings(
        url=url, credentials=Password("backup", os.environ["PASSWORD"]), ca_file=place / "lab-ca.pem", enable_cbt=True,
        nbd=NbdSettings(port=int(port), networks=("127.0.0.0/8",)), timeouts=ScpTimeouts(poll=0.02),
    )
    async with (
        ScpPlatform(settings, directory=place / "journal") as platform,
        await Repository.open(place / "repository") as repository,
        Engine(repository) as engine,
    ):
        if what == "backup":
            await engine.backup_vm("web-01", platform=platform)
        else:
            await engine.restore_vm(what, platform=platform, new_name="copy")

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Laboratory]:
    with laboratory() as running:
        running.add(VM, [4 * MiB, 3 * MiB])
        yield running


@pytest.fixture
async def repository(lab: Laboratory) -> AsyncIterator[Repository]:
    async with await Repository.open(lab.directory / "repository", create=True) as repository:
        yield repository


@pytest.fixture
async def platform(lab: Laboratory) -> AsyncIterator[ScpPlatform]:
    async with ScpPlatform(lab.settings(), directory=lab.directory / "journal") as platform:
        yield platform


def killed(lab: Laboratory, when: str, method: str, path: str, number: int = 1, *, what: str = "backup") -> bool:
    """Make a backup that kills itself, or restore one to a new VM; whether it came to that."""
    arguments = [str(lab.directory), lab.told["url"], str(lab.told["port"]), what, when, method, path, str(number)]
    environment = {**os.environ, "PASSWORD": lab.told["password"]}
    victim = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], env=environment, timeout=120)
    assert victim.returncode in (0, -signal.SIGKILL)
    return victim.returncode != 0


def nothing_left(lab: Laboratory) -> bool:
    journal = lab.directory / "journal"
    return lab.left() == {} and (not journal.exists() or list(journal.iterdir()) == [])


@pytest.mark.parametrize(
    ("when", "method", "path", "heal"),
    [
        ("after", "POST", "/snapshots", "cleanup"),
        ("before", "POST", "/backup-resources", "backup"),
        ("after", "POST", "/backup-resources", "cleanup"),
        ("after", "DELETE", "/backup-resources", "backup"),
    ],
)
async def test_what_a_killed_backup_made_is_removed(
    lab: Laboratory, platform: ScpPlatform, repository: Repository, when: str, method: str, path: str, heal: str
) -> None:
    assert killed(lab, when, method, path)
    if heal == "cleanup":
        assert all(left.removed for left in await platform.cleanup())
    else:
        async with Engine(repository) as engine:
            assert (await engine.backup_vm(VM, platform=platform)).disks
    assert nothing_left(lab)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_killed_at_every_call(lab: Laboratory, platform: ScpPlatform, repository: Repository, when: str) -> None:
    number = 1
    while killed(lab, when, "", "", number):
        if number % 2:
            assert all(left.removed for left in await platform.cleanup()), number
        else:
            async with Engine(repository, retry=Retry(attempts=1, outage=0)) as engine:
                assert (await engine.backup_vm(VM, platform=platform)).disks
        assert nothing_left(lab), number
        number += 1
    assert number > 15
    assert nothing_left(lab)


async def test_a_vm_that_a_killed_restore_made_is_removed(
    lab: Laboratory, platform: ScpPlatform, repository: Repository
) -> None:
    """The platform has made it, and its id is nowhere."""
    async with Engine(repository) as engine:
        saved = await engine.backup_vm(VM, platform=platform)
    assert killed(lab, "after", "POST", "/servers/config", what=saved.id)
    async with asyncio.timeout(30):
        while "copy" not in lab.ask("vms"):
            await asyncio.sleep(0.02)
    [left] = await platform.cleanup()
    assert (left.kind, left.removed, left.problem) == ("virtual machine", True, "")
    assert lab.ask("vms") == [VM]
    assert nothing_left(lab)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_restores_killed_at_every_call(
    lab: Laboratory, platform: ScpPlatform, repository: Repository, when: str
) -> None:
    async with Engine(repository) as engine:
        saved = await engine.backup_vm(VM, platform=platform)
    number = 1
    while killed(lab, when, "", "", number, what=saved.id):
        assert all(left.removed for left in await platform.cleanup()), number
        assert nothing_left(lab), number
        for name in set(lab.ask("vms")) - {VM}:  # it was finished, or nearly
            lab.ask("discard", vm=name)
        number += 1
    assert number > 10


async def test_the_snapshot_of_a_killed_backup_is_used_again(
    lab: Laboratory, platform: ScpPlatform, repository: Repository
) -> None:
    assert killed(lab, "before", "DELETE", "/backup-resources")
    [name] = lab.left()["snapshots"]
    [left] = [one for one in await platform.cleanup(dry_run=True) if one.kind == "snapshot"]
    identity = await platform.identify(VM)
    async with platform.snapshot(identity, chain=f"{repository.id}/{identity}", reuse=left.id) as view:
        assert view.snapshot_id == left.id
        assert lab.left()["snapshots"] == [name]
    assert nothing_left(lab)
