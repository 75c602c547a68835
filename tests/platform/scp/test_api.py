"""Each operation: what is sent, and what is made of the answer."""

from __future__ import annotations

import pytest

from sfasync.errors import BusyError, UsageError
from sfasync.platform.scp.api import Created, ScpApi

from .support import QUICK, SERVER, SNAPSHOT, TASK, FakePlatform, answer, pages, refusal

SNAPSHOTS = f"/janus/20210725/servers/{SERVER}/snapshots"
CREATE = f"POST /janus/20190725/servers/{SERVER}/snapshots"


def api(platform: FakePlatform) -> ScpApi:
    return ScpApi(platform.settings(), pace=QUICK)


def server_item(number: int) -> dict[str, object]:
    return {
        "id": f"1b54ff34-0000-4000-8000-{number:012}",
        "name": f"web-{number:02}",
        "vm_id": 2786761839857 + number,
        "status": "running",
        "encrypted": 0,
        "is_stopped": 0,
        "advance_param": {"turbo_mode_enabled": False},
        "disks": [{"id": "virtio0", "size_mb": 20480.0, "storage_id": "1fd63ecb_vs_vol_rep3"}],
        "networks": [{"vif_id": "net0"}],
    }


async def test_servers_are_listed_page_by_page(platform: FakePlatform) -> None:
    platform.on("GET /janus/20240725/servers", pages([server_item(number) for number in range(250)]))
    async with api(platform) as scp:
        servers = await scp.servers()
    assert [server.name for server in servers] == [f"web-{number:02}" for number in range(250)]
    assert servers[7].vm_id == 2786761839864
    assert servers[0].encrypted is False
    assert servers[0].disks is not None
    assert servers[0].disks[0].size == 20 << 30
    assert [request.query["page_num"] for request in platform.came("GET /janus/20240725/servers")] == ["0", "1", "2"]


async def test_an_older_platform_has_its_servers_elsewhere(platform: FakePlatform) -> None:
    platform.on("GET /janus/20200725/servers", pages([server_item(1)]))
    async with api(platform) as scp:
        assert len(await scp.servers()) == 1
        assert len(await scp.servers()) == 1
    assert len(platform.came("GET /janus/20240725/servers")) == 1  # it is not asked for again


async def test_a_snapshot_is_created(platform: FakePlatform) -> None:
    platform.on(CREATE, answer({"resource_id": SNAPSHOT, "task_id": TASK}, 201))
    platform.on(f"GET /janus/20180725/tasks/{TASK}", answer({"status": "finish", "progress": 100}))
    async with api(platform) as scp:
        created = await scp.create_snapshot(SERVER, "sfasync-1", "made for a test")
        await scp.wait(created.task_id)
    assert created == Created(SNAPSHOT, TASK)
    (request,) = platform.came(CREATE)
    assert request.json == {"name": "sfasync-1", "description": "made for a test"}


async def test_a_snapshot_that_was_created_twice_is_the_first(platform: FakePlatform) -> None:
    platform.on(CREATE, refusal(409, "exists"))
    platform.on("GET " + SNAPSHOTS, answer([{"id": SNAPSHOT, "name": "sfasync-1", "is_latest": 1}]))
    async with api(platform) as scp:
        assert await scp.create_snapshot(SERVER, "sfasync-1") == Created(SNAPSHOT, None)
        with pytest.raises(BusyError):
            await scp.create_snapshot(SERVER, "sfasync-2")


@pytest.mark.parametrize("name", ["", "current", "x" * 91])
async def test_names_that_a_snapshot_cannot_have(platform: FakePlatform, name: str) -> None:
    async with api(platform) as scp:
        with pytest.raises(UsageError):
            await scp.create_snapshot(SERVER, name)
    assert platform.requests == []
