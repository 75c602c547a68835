"""The example service, driven over HTTP against a real NBD server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.fastapi_service import create_app

from ..support.servers import nbdkit


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(tmp_path / "repository")
    # httpx calls the application without starting it up.
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client,
    ):
        yield client


async def start(client: httpx.AsyncClient, vm: str, **disks: str) -> str:
    answer = await client.post("/backups", json={"vm": vm, "disks": disks})
    assert answer.status_code == 202
    href: str = answer.json()["href"]
    return href


async def when(client: httpx.AsyncClient, href: str, state: str, *, read: int = 0) -> dict[str, Any]:
    """The job when it is in that state and has read that many bytes."""
    async with asyncio.timeout(30):
        while True:
            job: dict[str, Any] = (await client.get(href)).json()
            if job["state"] == state and job["read"] >= read:
                return job
            await asyncio.sleep(0.01)  # the request stays within this process and gives nobody else a turn


async def test_a_backup_from_start_to_list(client: httpx.AsyncClient) -> None:
    with nbdkit("pattern", "8M") as a, nbdkit("memory", "1M") as b:
        href = await start(client, "web-01", vda=a.uri, vdb=b.uri)
        job = await when(client, href, "done")
    assert job["done"] == job["size"] == 9 << 20
    assert sorted(disk["id"] for disk in job["disks"]) == ["vda", "vdb"]
    (backup,) = (await client.get("/backups", params={"vm": "web-01"})).json()
    assert backup["id"] == job["backup"]
    assert backup["disks"] == {"vda": 8 << 20, "vdb": 1 << 20}
    assert (await client.get("/backups", params={"vm": "other"})).json() == []


async def test_progress_and_cancel(client: httpx.AsyncClient) -> None:
    with nbdkit("pattern", "64M", "rate=16M", filters=("rate",)) as server:
        href = await start(client, "web-01", vda=server.uri)
        await when(client, href, "running", read=1)
        assert (await client.delete(href)).status_code == 202
        async with asyncio.timeout(5):
            job = await when(client, href, "cancelled")
    assert job["size"] == 64 << 20
    assert 0 < job["read"] < job["size"]
    assert "backup" not in job
    assert (await client.get("/backups")).json() == []


async def test_failures_are_told(client: httpx.AsyncClient, tmp_path: Path) -> None:
    job = await when(client, await start(client, "web-01", vda=f"nbd+unix:///?socket={tmp_path}/none"), "failed")
    assert job["error"]["code"] == "connect"
    for disks in ({"vda": "http://host/"}, {}):
        answer = await client.post("/backups", json={"vm": "web-01", "disks": disks})
        assert answer.status_code == 400
        assert answer.json()["message"]
    assert (await client.get("/jobs/none")).status_code == 404


async def test_leaving_cancels_what_runs(tmp_path: Path) -> None:
    with nbdkit("pattern", "64M", "rate=16M", filters=("rate",)) as server:
        app = create_app(tmp_path / "repository")
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                await when(client, await start(client, "web-01", vda=server.uri), "running")
        assert [job.progress().state for job in app.state.service.jobs.values()] == ["cancelled"]
