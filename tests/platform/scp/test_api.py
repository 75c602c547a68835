"""Each operation: what is sent, and what is made of the answer."""

from __future__ import annotations

import email
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

import pytest

from sfasync.errors import BusyError, CbtExpiredError, PlatformError, UsageError
from sfasync.platform.scp.answers import (
    Area,
    CbtDisk,
    CbtStatus,
    ChangedAreas,
    Cluster,
    Host,
    HostInterface,
    InterfaceUse,
    PlatformVersion,
    Resource,
    Server,
    Storage,
)
from sfasync.platform.scp.api import Created, ScpApi
from sfasync.platform.scp.settings import Dialect

from .support import QUICK, RESOURCE, SERVER, SNAPSHOT, TASK, FakePlatform, Reply, answer, pages, refusal

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


# --- every operation -------------------------------------------------------------------------------------------------

OF = f"/janus/20180725/servers/{SERVER}"
STARTED = {"task_id": TASK}
FILES = "/janus/20180725/clusters/cluster-1/files/"


@dataclass(frozen=True, slots=True)
class Operation:
    """One call.

    Attributes:
        call: Makes it.
        place: Where it is asked for.
        reply: What the platform answers, in its envelope.
        result: What is made of that.
        query, body: What is sent.
    """

    call: Callable[[ScpApi], Awaitable[object]]
    place: str
    reply: object
    result: object
    query: dict[str, str] = field(default_factory=dict)
    body: object = None


PAGING = {"page_num": "0", "page_size": "100"}

CALLS = [
    Operation(
        lambda scp: scp.version(),
        "GET /janus/20180725/platform",
        {"version": "SCP6.8.0B", "region_info": {"region_id": "RegionOne"}},
        PlatformVersion(version="SCP6.8.0B"),
    ),
    Operation(
        lambda scp: scp.clusters(),
        "GET /janus/20210725/clusters",
        {"data": [{"id": "c", "az_id": "a", "ip": "10.0.0.1", "status": "normal"}], "next_page_num": ""},
        [Cluster(id="c", az_id="a")],
        PAGING,
    ),
    Operation(
        lambda scp: scp.hosts(),
        "GET /janus/20240725/hosts",
        {"data": [{"id": "host-005056d861e", "ip": "10.0.0.2", "status": "running"}], "next_page_num": None},
        [Host(id="host-005056d861e", ip="10.0.0.2")],
        PAGING,
    ),
    Operation(
        lambda scp: scp.host_interfaces("host-1"),
        "GET /janus/20180725/hosts/host-1/interfaces",
        {"data": [{"ip": "10.0.0.2", "communication_interface": [{"function": "mgmt", "ip": "10.0.0.3"}]}]},
        [HostInterface(ip="10.0.0.2", communication_interface=(InterfaceUse(function="mgmt", ip="10.0.0.3"),))],
        {"function": "mgmt"},
    ),
    Operation(
        lambda scp: scp.storages(),
        "GET /janus/20200725/storages",
        {"data": [{"id": "1fd63ecb_vs_vol_rep3", "name": "a", "total_mb": "1.5"}], "next_page_num": ""},
        [Storage(id="1fd63ecb_vs_vol_rep3", name="a")],
        PAGING,
    ),
    Operation(
        lambda scp: scp.server(SERVER),
        f"GET /janus/20240725/servers/{SERVER}",
        {"id": SERVER, "name": "web-01", "status": "stopped"},
        Server(id=SERVER, name="web-01", status="stopped"),
    ),
    Operation(
        lambda scp: scp.create_server_from_config({"az_id": "a", "name": "n"}),
        "POST /janus/20180725/servers/config",
        STARTED | {"uuid": SERVER},
        Created(SERVER, TASK),
        body={"az_id": "a", "name": "n"},
    ),
    Operation(
        lambda scp: scp.edit_server(SERVER, {"name": "n"}), f"PUT {OF}/config", STARTED, TASK, body={"name": "n"}
    ),
    Operation(lambda scp: scp.delete_server(SERVER), f"DELETE {OF}", None, None, body={"force": 0}),
    Operation(lambda scp: scp.delete_server(SERVER, for_good=True), f"DELETE {OF}", STARTED, TASK, body={"force": 1}),
    Operation(lambda scp: scp.power(SERVER, "start"), f"POST {OF}/start", STARTED, TASK),
    Operation(lambda scp: scp.power(SERVER, "stop", force=True), f"POST {OF}/stop", STARTED, TASK, body={"force": 1}),
    Operation(lambda scp: scp.delete_snapshot(SERVER, SNAPSHOT), f"DELETE {OF}/snapshots/{SNAPSHOT}", STARTED, TASK),
    Operation(
        lambda scp: scp.cbt_status(SERVER),
        f"GET {OF}/cbt/status",
        {"server_id": SERVER, "is_enabled": True, "disks": [{"id": "ide0", "is_enabled": 1}]},
        CbtStatus(is_enabled=True, disks=(CbtDisk(id="ide0", is_enabled=True),)),
    ),
    Operation(
        lambda scp: scp.set_cbt(SERVER, "enable", ["ide0"]),
        f"PUT {OF}/cbt/status",
        STARTED,
        TASK,
        body={"type": "enable", "disk_ids": ["ide0"]},
    ),
    Operation(lambda scp: scp.set_cbt(SERVER, "reset"), f"PUT {OF}/cbt/status", STARTED, TASK, body={"type": "reset"}),
    Operation(
        lambda scp: scp.changed_areas(SERVER, "ide0", SNAPSHOT, "4294967299", 65536),
        f"GET {OF}/cbt/changed-areas",
        {"changed_area": [{"start": 65536, "length": 200}], "start_offset": 65536, "length": 1 << 30},
        ChangedAreas(start_offset=65536, length=1 << 30, changed_area=(Area(start=65536, length=200),)),
        {"disk_id": "ide0", "snapshot_id": SNAPSHOT, "checkpoint_id": "4294967299", "start_offset": "65536"},
    ),
    Operation(
        lambda scp: scp.create_resource(SERVER, "backup", 1800, "host-1"),
        "POST /janus/20180725/backup-resources",
        STARTED | {"resource_id": RESOURCE},
        Created(RESOURCE, TASK),
        body={"server_id": SERVER, "type": "backup", "lock_time": 1800, "host_id": "host-1"},
    ),
    Operation(
        lambda scp: scp.resource(RESOURCE),
        f"GET /janus/20180725/backup-resources/{RESOURCE}",
        {"ca_cert": "Zm9v", "remain_time": 1799, "server_id": SERVER, "status": "running"},
        Resource(ca_cert="Zm9v", remain_time=1799.0, server_id=SERVER, status="running"),
    ),
    Operation(
        lambda scp: scp.renew_resource(RESOURCE, 1800),
        f"PUT /janus/20180725/backup-resources/{RESOURCE}",
        STARTED,
        TASK,
        body={"lock_time": 1800},
    ),
    Operation(
        lambda scp: scp.delete_resource(RESOURCE),
        f"DELETE /janus/20180725/backup-resources/{RESOURCE}",
        STARTED,
        TASK,
    ),
    Operation(
        lambda scp: scp.attach_nfs("c", "sfasync", host_ids=["host-1"], address="10.0.0.9", export="/srv"),
        "POST /janus/20210725/storages/attachnfs",
        STARTED,
        TASK,
        body={
            "cluster_id": "c",
            "nfs_datastore": {
                "name": "sfasync",
                "description": "",
                "attached_host_ids": ["host-1"],
                "server": {"ip_address": "10.0.0.9", "export_path": "/srv"},
            },
        },
    ),
    Operation(
        lambda scp: scp.detach_storage("s", "c"),
        "DELETE /janus/20180725/storages/s",
        STARTED,
        TASK,
        body={"cluster_id": "c", "is_enforce": False},
    ),
    Operation(
        lambda scp: scp.rebase(SERVER, {"ide0": ("s", "web-01/ide0.qcow2")}),
        f"POST {OF}/rebase-backing-file",
        STARTED,
        TASK,
        body={"disks": [{"disk_id": "ide0", "datastore": "s", "path": "web-01/ide0.qcow2"}]},
    ),
    Operation(lambda scp: scp.merge(SERVER), f"POST {OF}/merge-backup-data", STARTED, TASK),
]


@pytest.mark.parametrize("generation", ["code", "errcode"])
async def test_every_operation(platform: FakePlatform, generation: str) -> None:
    """What is sent is exactly what the documents have; both envelopes are understood."""
    success: object = 0 if generation == "code" else ""
    async with api(platform) as scp:
        for operation in CALLS:
            body = json.dumps({generation: success, "data": operation.reply, "message": ""}).encode()
            platform.on(operation.place, Reply(body))
            assert await operation.call(scp) == operation.result, operation.place
            request = platform.requests[-1]
            assert f"{request.method} {request.path}" == operation.place
            assert request.query == operation.query, operation.place
            assert (request.json if request.body else None) == operation.body, operation.place


async def test_changes_that_have_no_answer_have_no_task(platform: FakePlatform) -> None:
    async with api(platform) as scp:
        for reply in (Reply(b"", 204), Reply(b"", 202), answer(None), answer([]), answer("done"), answer({})):
            platform.on(f"POST {OF}/merge-backup-data", reply)
            assert await scp.merge(SERVER) is None


async def test_a_lease_without_an_id_is_none(platform: FakePlatform) -> None:
    async with api(platform) as scp:
        for data in ({}, {"resource_id": "../../x"}, {"resource_id": 7}, None):
            platform.on("POST /janus/20180725/backup-resources", answer(data, 201))
            with pytest.raises(PlatformError):
                await scp.create_resource(SERVER, "backup", 600)


async def test_the_kind_of_a_lease_may_be_called_otherwise(platform: FakePlatform) -> None:
    platform.on("POST /janus/20180725/backup-resources", answer(STARTED | {"resource_id": RESOURCE}, 201))
    dialect = Dialect(resource_member="resource_type", backup_kind="Backup", restore_kind="Recovery")
    async with ScpApi(platform.settings(dialect=dialect), pace=QUICK) as scp:
        await scp.create_resource(SERVER, "restore", 600)
    assert platform.requests[-1].json["resource_type"] == "Recovery"


async def test_ids_that_lead_elsewhere_are_not_sent(platform: FakePlatform) -> None:
    """T27."""
    evil = "../../x"
    async with api(platform) as scp:
        for call in (
            scp.server(evil),
            scp.snapshot(SERVER, evil),
            scp.changed_areas(SERVER, evil, SNAPSHOT, 0, 0),
            scp.create_resource(evil, "backup", 600),
            scp.resource(evil),
            scp.download_file(evil, "BIOS", SERVER),
            scp.upload_file("c", "TPM", evil, "name", b""),
            scp.rebase(SERVER, {"ide0": (evil, "x")}),
            scp.set_cbt(SERVER, "enable", [evil]),
            scp.wait(evil),
        ):
            with pytest.raises(UsageError):
                await call
    assert platform.requests == []


async def test_what_is_no_text(platform: FakePlatform) -> None:
    """Names come from command lines, which may hold any bytes."""
    platform.on("GET /janus/20240725/servers", pages([]))
    async with api(platform) as scp:
        assert await scp.servers(name="web-\udcff") == []
        with pytest.raises(UsageError, match="no text of Unicode"):
            await scp.create_server_from_config({"name": "web-\udcff"})


async def test_checkpoints_that_are_none(platform: FakePlatform) -> None:
    async with api(platform) as scp:
        for checkpoint in ("", "x", "-1", "1e3", str(1 << 64), "9" * 5000):
            with pytest.raises(UsageError, match="is no number of 64 bits"):
                await scp.changed_areas(SERVER, "ide0", SNAPSHOT, checkpoint, 0)


async def test_tracking_that_has_expired(platform: FakePlatform) -> None:
    async with api(platform) as scp:
        for text in ("The VM CBT has expired. Please reset it.", "虚拟机CBT已过期"):
            platform.on(f"GET {OF}/cbt/changed-areas", refusal(400, text))
            with pytest.raises(CbtExpiredError):
                await scp.changed_areas(SERVER, "ide0", SNAPSHOT, 1, 0)


# --- files -----------------------------------------------------------------------------------------------------------


async def test_a_file_is_downloaded(platform: FakePlatform) -> None:
    content = b"PK\x03\x04" + bytes(range(256)) * 100
    platform.on(f"GET {FILES}download", Reply(content))
    async with api(platform) as scp:
        assert await scp.download_file("cluster-1", "TPM", SERVER, SNAPSHOT) == content
        platform.on(f"GET {FILES}download", Reply(b""))
        assert await scp.download_file("cluster-1", "BIOS", SERVER) == b""
        platform.on(f"GET {FILES}download", refusal(404))
        assert await scp.download_file("cluster-1", "BIOS", SERVER) is None
        platform.on(f"GET {FILES}download", refusal(400))
        with pytest.raises(PlatformError):
            await scp.download_file("cluster-1", "BIOS", SERVER)
        platform.on(f"GET {FILES}download", Reply(raw=b"HTTP/1.1 200 OK\r\n\r\nhalf of it"))
        with pytest.raises(PlatformError, match="whether the file is whole"):
            await scp.download_file("cluster-1", "BIOS", SERVER)
    query = platform.came(f"GET {FILES}download")[0].query
    assert query == {"file_type": "TPM", "server_id": SERVER, "snapshot_id": SNAPSHOT}


@pytest.mark.parametrize("upload", ["multipart", "raw"])
async def test_a_file_is_uploaded(platform: FakePlatform, upload: Literal["multipart", "raw"]) -> None:
    content = b"\r\n--" + bytes(range(256))
    platform.on(f"POST {FILES}upload", answer({"success": True}))
    async with ScpApi(platform.settings(dialect=Dialect(upload=upload)), pace=QUICK) as scp:
        await scp.upload_file("cluster-1", "BIOS", "s", 'my "bios"\r\n.bin', content, server_id=SERVER)
    request = platform.requests[-1]
    assert request.query == {
        "file_type": "BIOS",
        "storage_id": "s",
        "file_name": 'my "bios"\r\n.bin',
        "server_id": SERVER,
    }
    kind = request.header("Content-Type") or ""
    if upload == "raw":
        assert (kind, request.body) == ("application/octet-stream", content)
    else:  # as another reader understands it
        whole = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + request.body)
        _, part = whole.walk()
        assert part.get_payload(decode=True) == content
        assert part.get_param("name", header="Content-Disposition") == "file"
