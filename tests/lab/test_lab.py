"""A lab in this process: what it serves, and what of it outlives the process."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sfasync.errors import ExportError, UsageError
from sfasync.lab import Lab, MachineSpec
from sfasync.lab.hypervisor import ExpiredError
from sfasync.lab.machines import Snapshot
from sfasync.models import ExportAddress, TlsPolicy, TlsStyle
from sfasync.transport.export import open_export
from sfasync.units import KiB, MiB

from ..support.servers import require
from .caller import S18, caller


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    require("qemu-storage-daemon")
    async with Lab(["web-01:2x64M"]) as running:
        yield running


@pytest.fixture
def sockets() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sfasync-test-") as directory:
        yield Path(directory)


async def frozen(lab: Lab, snapshot_id: str) -> Snapshot:
    """A snapshot of the first machine, taken from inside."""
    return await lab.site.hypervisor.freeze(
        lab.vms[0].machine, snapshot_id=snapshot_id, name="a snapshot", description="", progress=lambda percent: None
    )


async def test_a_frozen_disk_is_read_over_tls(lab: Lab, tmp_path: Path) -> None:
    disk = lab.vm("web-01").disk("ide0")
    await disk.write(5 * MiB, b"before")
    async with caller(lab) as platform:
        server = await platform.server("web-01")
        await platform.snapshot(server)
        await disk.write(5 * MiB, b"after!")
        resource = await platform.resource(server)
        told = await platform.call("GET", f"{S18}/backup-resources/{resource}")
        assert told["status"] == "running"
        certificates = tmp_path / "certificates"
        certificates.mkdir()
        pem = f"-----BEGIN CERTIFICATE-----\n{told['ca_cert']}\n-----END CERTIFICATE-----\n"
        (certificates / "ca-cert.pem").write_text(pem)
        copy = tmp_path / "copy"
        uri = f"nbds://127.0.0.1:{lab.port}/{resource}/ide0?tls-certificates={certificates}"
        process = await asyncio.create_subprocess_exec("nbdcopy", uri, copy)
        assert await process.wait() == 0
        with copy.open("rb") as file:
            file.seek(5 * MiB)
            assert file.read(6) == b"before"
        assert copy.stat().st_size == 64 * MiB


@pytest.mark.parametrize("style", [None, "starttls", "direct"])
async def test_ways_to_read_a_disk(style: TlsStyle | None) -> None:
    require("qemu-storage-daemon")
    data = os.urandom(MiB)
    async with Lab(["web-01:8M"], tls_style=style or "starttls") as lab, caller(lab) as platform:
        await lab.vm("web-01").disk("ide0").write(3 * MiB, data)
        server = await platform.server("web-01")
        await platform.snapshot(server)
        resource = await platform.resource(server)
        ca_cert = (await platform.call("GET", f"{S18}/backup-resources/{resource}"))["ca_cert"]
        tls = None if style is None else TlsPolicy(style=style, ca_text=ca_cert)
        address = ExportAddress(host="127.0.0.1", port=lab.port, export=f"{resource}/ide0", tls=tls)
        async with await open_export(address) as export:
            assert (export.size, export.read_only) == (8 * MiB, True)
            assert await export.read(3 * MiB, MiB) == data
            zeros = [extent.length async for extent in export.extents() if extent.zero]
            assert sum(zeros) == 7 * MiB
        for name in ("", "inside-1", f"{resource}/ide1", "../../x"):
            with pytest.raises(ExportError):
                await open_export(ExportAddress(host="127.0.0.1", port=lab.port, export=name, tls=tls))


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\0\0\0\3",
        b"\0\0\0\3GARBAGE!" * 3,
        b"\0\0\0\3IHAVEOPT\0\0\0\7\xff\xff\xff\xff",
        b"\0\0\0\3IHAVEOPT\0\0\0\7\0\0\0\2ab",
    ],
    ids=["nothing", "flags", "garbage", "a long option", "a short option"],
)
async def test_a_client_that_makes_no_sense_is_dropped(lab: Lab, said: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
    writer.write(said)
    writer.write_eof()
    assert (await reader.read()).startswith(b"NBDMAGICIHAVEOPT")
    writer.close()
    await writer.wait_closed()
    while lab.site.gateway.connections:
        await asyncio.sleep(0)


async def test_disks_are_frozen_at_one_moment(lab: Lab) -> None:
    """A counter that is written to both disks in turn differs by one at most, whenever the snapshot is taken."""
    vm, hypervisor = lab.vm("web-01"), lab.site.hypervisor
    counter, stop = 0, asyncio.Event()

    async def count() -> None:
        nonlocal counter
        async with (
            vm.disk("ide0").opened() as first,
            vm.disk("ide1").opened() as second,
            await open_export(first) as one,
            await open_export(second) as two,
        ):
            while not stop.is_set():
                counter += 1
                for disk in (one, two):
                    await disk.write(4 * MiB, counter.to_bytes(8, "big") * 64)

    async with asyncio.TaskGroup() as group:
        group.create_task(count())
        for number in range(3):
            before = counter
            while counter < before + 3:
                await asyncio.sleep(0)
            await frozen(lab, f"number {number}")
        stop.set()
    for snapshot in vm.snapshots:
        seen = []
        for disk_id in ("ide0", "ide1"):
            await hypervisor.serve_frozen("seen", snapshot, disk_id)
            try:
                async with await open_export(ExportAddress(socket=lab.site.hypervisor.socket, export="seen")) as disk:
                    seen.append(int.from_bytes(await disk.read(4 * MiB, 8), "big"))
            finally:
                await hypervisor.withdraw("seen")
        assert seen[0] - seen[1] in (0, 1)
        assert seen[0] > 0


async def test_machines_outlive_the_lab(tmp_path: Path) -> None:
    require("qemu-storage-daemon")
    async with Lab(["web-01:64M"], directory=tmp_path) as lab:
        hypervisor, machine = lab.site.hypervisor, lab.vm("web-01").machine
        await hypervisor.track(machine, ["ide0"], on=True)
        await frozen(lab, "first")
        await lab.vm("web-01").disk("ide0").write(MiB, b"x")
    (tmp_path / "half-made.qcow2").touch()
    async with Lab(["web-01:1M", "web-02:1M"], directory=tmp_path) as lab:
        assert not (tmp_path / "half-made.qcow2").exists()
        hypervisor, machine = lab.site.hypervisor, lab.vm("web-01").machine
        await lab.vm("web-01").disk("ide0").write(2 * MiB, b"x")
        second = await frozen(lab, "second")
        first = machine.snapshots[0].checkpoint
        assert await hypervisor.changed(machine, second, "ide0", first) == [(MiB, 64 * KiB), (2 * MiB, 64 * KiB)]
        assert len(lab.vms) == 2


async def test_changes_expire_with_the_storage_daemon(tmp_path: Path, sockets: Path) -> None:
    require("qemu-storage-daemon")
    async with Lab(["web-01:64M"], directory=tmp_path, sockets=sockets) as lab:
        hypervisor, machine = lab.site.hypervisor, lab.vm("web-01").machine
        await hypervisor.track(machine, ["ide0"], on=True)
        first = await frozen(lab, "first")
        async with caller(lab) as platform:
            resource = await platform.resource(machine.id)
            address = ExportAddress(host="127.0.0.1", port=lab.port, export=f"{resource}/ide0")
            await (await open_export(address)).aclose()
            os.kill(int((sockets / "storage.pid").read_text()), signal.SIGKILL)
            body = {"name": "n"}
            made = await platform.call("POST", f"/janus/20190725/servers/{machine.id}/snapshots", json=body)
            assert (await platform.end_of(made["task_id"]))["status"] == "failure"
    async with Lab(directory=tmp_path) as lab:
        hypervisor, machine = lab.site.hypervisor, lab.vm("web-01").machine
        second = await frozen(lab, "second")
        with pytest.raises(ExpiredError):
            await hypervisor.changed(machine, second, "ide0", first.checkpoint)


async def test_only_the_guest_of_a_running_vm_writes(lab: Lab) -> None:
    lab.vm("web-01").switch(running=False)
    with pytest.raises(UsageError, match="switched off"):
        await lab.vm("web-01").disk("ide0").write(0, b"x")
    with pytest.raises(UsageError, match="no VM 'web-02'"):
        lab.vm("web-02")
    with pytest.raises(UsageError, match="no disk 'ide2'"):
        lab.vm("web-01").disk("ide2")


@pytest.mark.parametrize("text", ["", "a", "a:", "a:1", "a:1x", "a:100x1M", "-a:1M", "a/b:1M", "a:1M\n"])
def test_machines_that_are_described_wrongly(text: str) -> None:
    with pytest.raises(UsageError):
        MachineSpec.parse(text)


def test_machines_that_are_described_well() -> None:
    assert MachineSpec.parse("db.prod-2:512M") == MachineSpec(name="db.prod-2", disks=(512 * MiB,))
    assert len(MachineSpec.parse("big:64x1T").disks) == 64
