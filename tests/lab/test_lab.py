"""The lab, called as the platform's reference says, and read with the tools of libnbd and QEMU."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sfasync.lab import Lab
from sfasync.units import MiB

from ..support.servers import require
from .caller import S18, caller


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    require("qemu-storage-daemon")
    async with Lab(["web-01:2x64M"]) as running:
        yield running


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
