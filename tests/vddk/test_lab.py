"""The kit's two workflows with nothing but the platform's address and credentials, against the lab."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from sfasync import vddk
from sfasync.errors import BusyError, TlsError, UsageError
from sfasync.platform.scp.api import ScpApi
from sfasync.units import KiB, MiB

from ..support.laboratory import Laboratory, laboratory
from .support import journal

SIZE = 3 * MiB


@pytest.fixture(scope="module")
def lab() -> Iterator[Laboratory]:
    with laboratory() as running:
        yield running


@pytest.fixture
def vm(lab: Laboratory, request: pytest.FixtureRequest) -> str:
    name = str(request.node.name).replace("[", "-").replace("]", "").removeprefix("test_")[:60].replace("_", "-")
    lab.add(name, [SIZE, SIZE])
    lab.write(name, "ide0", MiB, b"content" * 1000)
    return name


@pytest.fixture
async def snapshot(lab: Laboratory, vm: str) -> AsyncIterator[str]:
    """Taken by the program itself, by REST, as the vendor's workflow has it."""
    async with ScpApi(lab.settings()) as api:
        [server] = await api.servers(name=vm)
        created = await api.create_snapshot(server.id, "mine")
        await api.wait(created.task_id)
        assert created.id is not None
        yield created.id
        await api.wait(await api.delete_snapshot(server.id, created.id))
    assert lab.left() == {}


def access(lab: Laboratory) -> vddk.Access:
    return vddk.Access(settings=lab.settings(credentials=None), credentials=lab.access_key)


@pytest.mark.parametrize("mode", ["nbd", "nbdssl"])
async def test_backup(lab: Laboratory, initialised: None, vm: str, snapshot: str, mode: str) -> None:
    frozen = {disk: lab.content(vm, disk) for disk in ("ide0", "ide1")}
    lab.write(vm, "ide0", MiB, b"changed" * 1000)
    connection = await vddk.connect(access(lab), mode=mode, vm_id=vm, snapshot_id=snapshot)
    for name, content in frozen.items():
        disk = await vddk.open(connection, name)
        assert disk.read_only
        assert vddk.get_transport_mode(disk) == mode
        assert await vddk.read(disk, 0, disk.sector_count) == content
        await vddk.close(disk)
    assert len(lab.left()["leases"]) == 1
    await vddk.disconnect(connection)
    assert "leases" not in lab.left()


async def test_recovery(lab: Laboratory, initialised: None, vm: str) -> None:
    lab.switch(vm, running=False)
    connection = await vddk.connect(access(lab), mode="nbd_ssl", vm_id=vm)
    disk = await vddk.open(connection, "ide1")
    await vddk.write(disk, 2048, b"r" * 64 * KiB)
    await vddk.close(disk)
    await vddk.disconnect(connection)
    assert lab.left() == {}
    assert lab.content(vm, "ide1") == bytes(MiB) + b"r" * 64 * KiB + bytes(SIZE - MiB - 64 * KiB)


async def test_a_lease_of_the_program_itself_is_used(
    lab: Laboratory, initialised: None, vm: str, snapshot: str
) -> None:
    async with ScpApi(lab.settings()) as api:
        [server] = await api.servers(name=vm)
        created = await api.create_resource(server.id, "backup", 600)
        await api.wait(created.task_id)
        assert created.id is not None
        connection = await vddk.connect(
            access(lab), mode="nbdssl", vm_id=str(server.vm_id), snapshot_id=snapshot, resource_id=created.id
        )
        disk = await vddk.open(connection, "ide0")
        assert await vddk.read(disk, 2048, 1) == (b"content" * 100)[:512]
        other = await vddk.connect(access(lab), mode="nbdssl", vm_id=vm, snapshot_id=snapshot)
        with pytest.raises(BusyError):
            await vddk.open(other, "ide0")
        await vddk.disconnect(other)
        await vddk.close(disk)
        await vddk.disconnect(connection)
        assert len(lab.left()["leases"]) == 1  # that of the program
        await api.wait(await api.delete_resource(created.id))


async def test_a_vm_that_is_not_there(lab: Laboratory, initialised: None) -> None:
    connection = await vddk.connect(access(lab), mode="nbdssl", vm_id="nobody")
    with pytest.raises(UsageError, match="no VM 'nobody'"):
        await vddk.open(connection, "ide0")
    await vddk.disconnect(connection)


async def test_whom_to_believe_is_not_guessed(lab: Laboratory, initialised: None) -> None:
    """Without the authority of the lab its certificate is nobody's."""
    connection = await vddk.connect(
        vddk.Access(scp=lab.told["url"], credentials=lab.access_key), mode="nbdssl", vm_id="1"
    )
    with pytest.raises(TlsError):
        await vddk.open(connection, "ide0")
    await vddk.disconnect(connection)


@pytest.mark.parametrize("opened", [True, False])
async def test_what_a_killed_process_held_is_given_back(
    lab: Laboratory, initialised: None, vm: str, snapshot: str, opened: bool
) -> None:
    script = f"""
import asyncio, os, signal
from pathlib import Path
from sfasync import vddk
from sfasync.platform.scp.settings import NbdSettings, ScpSettings

async def main():
    vddk.init()
    settings = ScpSettings(
        url={lab.told["url"]!r}, ca_file=Path({str(lab.directory / "lab-ca.pem")!r}),
        nbd=NbdSettings(port={lab.told["port"]}, networks=("127.0.0.0/8",)),
    )
    credentials = vddk.AccessKey({lab.access_key.access_key!r}, os.environ["SECRET"])
    access = vddk.Access(settings=settings, credentials=credentials)
    connection = await vddk.connect(access, mode="nbdssl", vm_id={vm!r}, snapshot_id={snapshot!r})
    disk = await vddk.open(connection, "ide0")
    if not {opened}:
        await vddk.close(disk)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    environment = {**os.environ, "SECRET": lab.access_key.secret_key}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert len(lab.left()["leases"]) == 1
    assert await vddk.cleanup(access(lab)) == 1 + opened
    assert "leases" not in lab.left()
    assert await vddk.cleanup(access(lab)) == 0
    assert journal() == []
