"""The interface of the lab, called by hand as the platform's reference describes it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from sfasync.lab import Lab, MachineSpec
from sfasync.units import GiB, KiB, MiB

from ..support.servers import require
from .caller import S18, S24, Caller, caller

pytestmark = pytest.mark.one_loop  # what is looked at is the interface; the other tests run the lab on both

SNAPSHOTS = "/janus/20210725/servers/{}/snapshots"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
async def lab(directory: Path) -> AsyncIterator[Lab]:
    require("qemu-storage-daemon")
    machine = MachineSpec(name="web-01", disks=(64 * MiB, 2 * GiB + 512))
    async with Lab([machine], directory=directory, lease_speed=100) as running:
        yield running


@pytest.fixture
async def platform(lab: Lab) -> AsyncIterator[Caller]:
    async with caller(lab) as made:
        yield made


async def changed(platform: Caller, server: str, disk: str, snapshot: str, checkpoint: str) -> list[tuple[int, int]]:
    """All areas, from as many calls as it takes; what the calls cover has no gap."""
    areas, start, size = [], 0, {"ide0": 64 * MiB, "ide1": 2 * GiB + 512}[disk]
    while start < size:
        query = {"disk_id": disk, "snapshot_id": snapshot, "checkpoint_id": checkpoint, "start_offset": start}
        answer = await platform.call("GET", f"{S18}/servers/{server}/cbt/changed-areas", params=query)
        assert answer["start_offset"] == start
        assert answer["length"] > 0
        areas += [(area["start"], area["length"]) for area in answer["changed_area"]]
        start += answer["length"]
    assert start == size
    return areas


# --- who may call ----------------------------------------------------------------------------------------------------


async def test_log_in(lab: Lab) -> None:
    async with caller(lab, logged_in=False) as platform:
        assert (await platform.refused("GET", f"{S24}/servers"))[0] == 401
        assert (await platform.log_in(lab.accounts.user, "wrong")).status_code == 401
        answer = await platform.log_in(lab.accounts.user, lab.accounts.password)
        token = answer.json()["data"]["access"]["token"]
        assert token["expires"] > token["issued_at"]
        await platform.server("web-01")
        lab.misbehave("token-expired")
        for _ in range(2):
            assert (await platform.refused("GET", f"{S24}/servers"))[0] == 401
        await platform.log_in(lab.accounts.user, lab.accounts.password)
        await platform.server("web-01")


@pytest.mark.parametrize("kind", [hashes.SHA1(), hashes.SHA256()])  # noqa: S303 - the platform signs with both
async def test_log_in_of_the_second_generation(lab: Lab, kind: hashes.HashAlgorithm) -> None:
    async with caller(lab, logged_in=False) as platform:
        modulus = int((await platform.call("GET", "/janus/v2/public-key"))["public_key"].strip(), 16)
        oaep = padding.OAEP(mgf=padding.MGF1(kind), algorithm=kind, label=None)
        encrypted = rsa.RSAPublicNumbers(65537, modulus).public_key().encrypt(lab.accounts.password.encode(), oaep)
        credentials = {"username": lab.accounts.user, "password": encrypted.hex()}
        body = {"auth": {"passwordCredentials": credentials}}
        assert (await platform.http.post("/janus/v2/authenticate", json=body)).status_code == 200
        assert (await platform.http.post("/janus/authenticate", json=body)).status_code == 401


def signature(lab: Lab, *, path: str, date: str, region: str, service: str, names: str, lines: str) -> str:
    key = b"AWS4" + lab.accounts.secret_key.encode()
    for part in (date[:8], region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    canonical = f"GET\n{path}\n\n{lines}\n{names}\n{hashlib.sha256(b'').hexdigest()}"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{date}\n{date[:8]}/{region}/{service}/aws4_request\n{digest}"
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


@pytest.mark.parametrize(
    ("names", "lines", "cookie", "region", "service"),
    [
        ("cookie;x-amz-date", "cookie:aCMPAuthToken=0123\nx-amz-date:{date}\n", True, "regionOne", "sdk-api"),
        ("cookie;x-amz-date", "cookie:\nx-amz-date:{date}\n", False, "regionOne", "sdk-api"),
        ("cookie;x-amz-date", "x-amz-date:{date}\n", False, "regionOne", "sdk-api"),
        ("x-amz-date", "x-amz-date:{date}\n", False, "cn-south-1", "open-api"),
        ("path;x-amz-date", "x-amz-date:{date}\n", False, "cn-south-1", "open-api"),
        ("cookie;x-amz-date", "cookie:aCMPAuthToken=0123\nx-amz-date:{date}\n", True, "cn-south-1", "sdk-api"),
    ],
    ids=["V1", "V1 without a cookie", "V2", "V3", "V4", "V6"],
)
async def test_signed_calls(lab: Lab, names: str, lines: str, cookie: bool, region: str, service: str) -> None:
    path = f"{S18}/azs"
    date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    how = {"path": path, "date": date, "region": region, "service": service}
    signed = signature(lab, **how, names=names, lines=lines.format(date=date))
    scope = f"{lab.accounts.access_key}/{date[:8]}/{region}/{service}/aws4_request"
    headers = {
        "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={names}, Signature={signed}",
        "X-Amz-Date": date,
    } | ({"Cookie": "aCMPAuthToken=0123"} if cookie else {})
    async with caller(lab, logged_in=False) as platform:
        await platform.call("GET", path, headers=headers, params={"page_num": 0})  # the query is not signed
        assert (await platform.refused("GET", f"{S18}/platform", headers=headers))[0] == 401
        other = {"Authorization": headers["Authorization"].replace(f"/{region}/", "/elsewhere/")}
        assert (await platform.refused("GET", path, headers=headers | other))[0] == 401


# --- what there is ---------------------------------------------------------------------------------------------------


async def test_where_the_host_is(platform: Caller) -> None:
    server = await platform.call("GET", f"{S24}/servers/{await platform.server('web-01')}")
    (cluster,) = (await platform.call("GET", "/janus/20210725/clusters"))["data"]
    (host,) = (await platform.call("GET", f"{S24}/hosts", params={"cluster_id": cluster["id"]}))["data"]
    assert (host["id"], host["ip"]) == (server["host_id"], "127.0.0.1")
    path = f"{S18}/hosts/{host['id']}/interfaces"
    (interface,) = (await platform.call("GET", path, params={"function": "mgmt"}))["data"]
    assert interface["ip"] == host["ip"]
    assert (await platform.call("GET", path, params={"function": "vs"}))["data"] == []
    assert (await platform.call("GET", f"{S18}/platform"))["version"].startswith("SCP6.11")
    (storage,) = (await platform.call("GET", "/janus/20200725/storages"))["data"]
    assert storage["id"] == server["storage_id"]
    (zone,) = (await platform.call("GET", f"{S18}/azs"))["data"]
    assert zone["id"] == server["az_id"] == cluster["az_id"]


async def test_pages(lab: Lab, platform: Caller) -> None:
    for number in range(2, 4):
        await lab.site.hypervisor.add(MachineSpec(name=f"web-0{number}", disks=(MiB,)))
    names, page = [], "0"
    while page:
        data = await platform.call("GET", f"{S24}/servers", params={"page_num": page, "page_size": 2})
        assert data["total_size"] == 3
        names += [each["name"] for each in data["data"]]
        page = data["next_page_num"]
    assert names == ["web-01", "web-02", "web-03"]
    assert (await platform.refused("GET", f"{S24}/servers", params={"page_size": 101}))[0] == 400


async def test_envelopes(platform: Caller) -> None:
    old = (await platform.http.get(f"{S18}/servers/{uuid.uuid4()}/cbt/status")).json()
    assert (old["code"], old["data"]) == (404, None)
    new = (await platform.http.get(f"{S24}/servers/{uuid.uuid4()}")).json()
    assert new["errcode"].startswith("0x")
    assert "code" not in new
    assert (await platform.http.get("/janus/20990101/nothing")).status_code == 404


# --- snapshots and changes -------------------------------------------------------------------------------------------


async def test_snapshots(platform: Caller) -> None:
    server = await platform.server("web-01")
    first = await platform.snapshot(server, "first")
    second = await platform.snapshot(server, "second")
    listed = await platform.call("GET", SNAPSHOTS.format(server))
    assert [(each["id"], each["name"], each["is_latest"]) for each in listed] == [
        (first, "first", 0),
        (second, "second", 1),
    ]
    details = await platform.call("GET", f"{S18}/servers/{server}/snapshots/{first}")
    assert details["checkpoint_id"] == "0"
    disks = details["vmconf"]["hardware_option"]["disks"]
    assert [disk["device_id"] for disk in disks] == ["ide0", "ide1"]
    await platform.done("DELETE", f"{S18}/servers/{server}/snapshots/{first}")
    assert [each["id"] for each in await platform.call("GET", SNAPSHOTS.format(server))] == [second]
    assert (await platform.refused("GET", f"{S18}/servers/{server}/snapshots/{first}"))[0] == 404
    refused = await platform.refused("POST", f"/janus/20190725/servers/{server}/snapshots", json={"name": "current"})
    assert refused[0] == 400


async def test_changes_are_those_between_two_snapshots(lab: Lab, platform: Caller) -> None:
    disk, server = lab.vm("web-01").disk("ide1"), await platform.server("web-01")
    await disk.write(3 * MiB, b"allocated")
    status = f"{S18}/servers/{server}/cbt/status"
    assert (await platform.call("GET", status))["is_enabled"] is False
    await platform.done("PUT", status, json={"type": "enable"})
    assert all(each["is_enabled"] for each in (await platform.call("GET", status))["disks"])
    checkpoints, snapshots = [], []
    for number in range(3):
        snapshots.append(await platform.snapshot(server, f"number {number}"))
        details = await platform.call("GET", f"{S18}/servers/{server}/snapshots/{snapshots[-1]}")
        checkpoints.append(details["checkpoint_id"])
        await disk.write((number + 1) * GiB // 2 + 100, os.urandom(64 * KiB))  # touches two blocks
    first, second = (GiB // 2, 128 * KiB), (GiB, 128 * KiB)
    assert await changed(platform, server, "ide1", snapshots[0], "0") == [(3 * MiB, 64 * KiB)]
    assert await changed(platform, server, "ide1", snapshots[1], checkpoints[0]) == [first]
    assert await changed(platform, server, "ide1", snapshots[2], checkpoints[1]) == [second]
    assert await changed(platform, server, "ide1", snapshots[2], checkpoints[0]) == [first, second]
    assert await changed(platform, server, "ide0", snapshots[2], checkpoints[0]) == []
    for snapshot in snapshots[:2]:  # what was recorded outlives the snapshots
        await platform.done("DELETE", f"{S18}/servers/{server}/snapshots/{snapshot}")
    assert await changed(platform, server, "ide1", snapshots[2], checkpoints[0]) == [first, second]


async def test_a_reset_expires_checkpoints(platform: Caller) -> None:
    server = await platform.server("web-01")
    status, areas = (f"{S18}/servers/{server}/cbt/{what}" for what in ("status", "changed-areas"))
    await platform.done("PUT", status, json={"type": "enable", "disk_ids": ["ide0"]})
    first = await platform.snapshot(server)
    details = await platform.call("GET", f"{S18}/servers/{server}/snapshots/{first}")
    await platform.done("PUT", status, json={"type": "reset"})
    second = await platform.snapshot(server)
    query = {"disk_id": "ide0", "snapshot_id": second, "checkpoint_id": details["checkpoint_id"], "start_offset": 0}
    assert await platform.refused("GET", areas, params=query) == (400, "The VM CBT has expired. Please reset it.")
    later = await platform.call("GET", f"{S18}/servers/{server}/snapshots/{second}")
    assert int(later["checkpoint_id"]) >> 32 == (int(details["checkpoint_id"]) >> 32) + 1
    status_code, message = await platform.refused("GET", areas, params=query | {"disk_id": "ide1"})
    assert (status_code, message) == (400, "CBT of the disk is not enabled")


# --- backup resources ------------------------------------------------------------------------------------------------


async def test_a_lease_is_renewed_and_runs_out(lab: Lab, platform: Caller) -> None:
    server = await platform.server("web-01")
    resource = await platform.resource(server, lock_time=7200)
    path = f"{S18}/backup-resources/{resource}"
    told = await platform.call("GET", path)
    assert (told["status"], told["server_id"]) == ("running", server)
    assert 60 < told["remain_time"] <= 7200
    other = await platform.resource(server)
    assert (await platform.call("GET", f"{S18}/backup-resources/{other}"))["status"] == "occupied"
    await platform.done("DELETE", f"{S18}/backup-resources/{other}")
    assert (await platform.refused("PUT", path, json={"lock_time": 59}))[0] == 400
    await platform.done("PUT", path.replace(":", "%3A"), json={"lock_time": 60})
    while (told := await platform.call("GET", path))["status"] == "running":
        assert told["remain_time"] <= 60
        await asyncio.sleep(0.05)
    assert (told["status"], told["remain_time"]) == ("expired", -1)
    assert lab.site.leases.all() == []
    assert (await platform.refused("PUT", path, json={"lock_time": 60}))[0] == 400


async def test_disks_are_written_while_the_vm_is_off(lab: Lab, platform: Caller) -> None:
    server = await platform.server("web-01")
    await platform.done("PUT", f"{S18}/servers/{server}/cbt/status", json={"type": "enable"})
    body = {"server_id": server, "type": "restore", "lock_time": 7200}
    made = await platform.call("POST", f"{S18}/backup-resources", json=body)
    task = await platform.end_of(made["task_id"])
    assert (task["status"], task["progress"]) == ("failure", -1)
    assert "shut down" in task["description"]
    await platform.done("DELETE", f"{S18}/backup-resources/{made['resource_id']}")
    await platform.done("POST", f"{S18}/servers/{server}/stop", json={"force": 1})
    resource = await platform.resource(server, "restore", 7200)
    uri = f"nbd://127.0.0.1:{lab.port}/{resource}/ide0"
    command = ("qemu-io", "--format=raw", "-c", "write -P 85 1M 4k", uri)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0
    started = await platform.call("POST", f"{S18}/servers/{server}/start")
    assert (await platform.end_of(started["task_id"]))["status"] == "failure"
    await platform.done("DELETE", f"{S18}/backup-resources/{resource}")
    await platform.done("POST", f"{S18}/servers/{server}/start")
    snapshot = await platform.snapshot(server)
    query = {"disk_id": "ide0", "snapshot_id": snapshot, "checkpoint_id": 0, "start_offset": 0}
    path = f"{S18}/servers/{server}/cbt/changed-areas"
    assert (await platform.refused("GET", path, params=query))[1] == "The VM CBT has expired. Please reset it."
    await platform.done("PUT", f"{S18}/servers/{server}/cbt/status", json={"type": "reset"})
    snapshot = await platform.snapshot(server)
    assert await changed(platform, server, "ide0", snapshot, "0") == [(MiB, 64 * KiB)]


async def test_exports_end_with_the_lease(lab: Lab, platform: Caller) -> None:
    server = await platform.server("web-01")
    snapshot = await platform.snapshot(server)
    resource = await platform.resource(server, lock_time=7200)
    for name, status in (("ide0", 0), (f"{snapshot}/ide1", 0), ("ide9", 1), (f"{uuid.uuid4()}/ide0", 1)):
        uri = f"nbd://127.0.0.1:{lab.port}/{resource}/{name}"
        process = await asyncio.create_subprocess_exec("nbdinfo", "--size", uri, stdout=-3, stderr=-3)
        assert await process.wait() == status, name
    exports = lab.site.leases.all()[0].exports
    assert exports == [f"{resource}/ide0", f"{resource}/{snapshot}/ide1"]
    await platform.done("DELETE", f"{S18}/backup-resources/{resource}")
    uri = f"nbd://127.0.0.1:{lab.port}/{resource}/ide0"
    process = await asyncio.create_subprocess_exec("nbdinfo", "--size", uri, stdout=-3, stderr=-3)
    assert await process.wait() == 1
    assert (await platform.refused("GET", f"{S18}/backup-resources/{resource}"))[0] == 404


# --- VMs -------------------------------------------------------------------------------------------------------------


async def test_a_vm_from_the_configuration_of_a_snapshot(lab: Lab, platform: Caller, directory: Path) -> None:
    server = await platform.server("web-01")
    snapshot = await platform.snapshot(server)
    config = (await platform.call("GET", f"{S18}/servers/{server}/snapshots/{snapshot}"))["vmconf"]
    zone = (await platform.call("GET", f"{S18}/azs"))["data"][0]["id"]
    body = config | {"name": "copy", "az_id": zone, "source": "CREATE_BY_OTHER"}
    made = await platform.done("POST", f"{S18}/servers/config", json=body)
    copy = await platform.call("GET", f"{S24}/servers/{made['uuid']}")
    assert (copy["name"], copy["status"]) == ("copy", "stopped")
    assert [(disk["id"], disk["size_gb"] * GiB) for disk in copy["disks"]] == [
        ("ide0", 64 * MiB),
        ("ide1", 2 * GiB + 512),
    ]
    disks = [{"device_id": "ide0", "size_gb": 1}, {"device_id": "ide3", "size_gb": 2}]
    edit = {"hardware_option": {"disks": disks}, "description": "changed"}
    await platform.done("PUT", f"{S18}/servers/{made['uuid']}/config", json=edit)
    sizes = {disk.id: disk.size for disk in lab.vm("copy").machine.disks}
    assert sizes == {"ide0": GiB, "ide1": 2 * GiB + 512, "ide3": 2 * GiB}
    assert (await platform.refused("POST", f"{S18}/servers/config", json=body | {"az_id": "nowhere"}))[0] == 400
    too_large = body | {"hardware_option": {"disks": [*disks, {"device_id": "ide4", "size_gb": 1e15}]}}
    refused = await platform.call("POST", f"{S18}/servers/config", json=too_large)
    assert (await platform.end_of(refused["task_id"]))["status"] == "failure"
    assert len(lab.vms) == 2
    await platform.done("DELETE", f"{S18}/servers/{made['uuid']}", json={"force": 1})
    assert len(list(directory.glob("*.qcow2"))) == 4  # two disks, and two of the snapshot
    assert (await platform.refused("GET", f"{S24}/servers/{made['uuid']}"))[0] == 404


async def test_files(lab: Lab, platform: Caller) -> None:
    server = await platform.server("web-01")
    (cluster,) = (await platform.call("GET", "/janus/20210725/clusters"))["data"]
    files = f"{S18}/clusters/{cluster['id']}/files"
    bios, tpm = os.urandom(70_000) + b"\r\n--\n", os.urandom(1000)
    query = {"file_type": "BIOS", "storage_id": "s", "file_name": "bios.bin", "server_id": server}
    form = {"file": ("bios.bin", bios)}
    assert (await platform.call("POST", f"{files}/upload", params=query, files=form))["success"] is True
    await platform.call("POST", f"{files}/upload", params=query | {"file_type": "TPM"}, content=tpm)
    snapshot = await platform.snapshot(server)
    query = {"file_type": "BIOS", "server_id": server}
    assert (await platform.http.get(f"{files}/download", params=query)).content == bios
    query = {"file_type": "TPM", "server_id": server, "snapshot_id": snapshot}
    assert (await platform.http.get(f"{files}/download", params=query)).content == tpm
    details = await platform.call("GET", f"{S18}/servers/{server}/snapshots/{snapshot}")
    assert details["vmconf"]["hardware_option"]["bios"]["bios_type"] == "CUSTOM"
    assert details["vmconf"]["advanced_option"]["tpm_enabled"] is True
    await lab.site.hypervisor.add(MachineSpec(name="plain", disks=(MiB,)))
    query = {"file_type": "TPM", "server_id": await platform.server("plain"), "snapshot_id": snapshot}
    assert (await platform.refused("GET", f"{files}/download", params=query))[0] == 404


async def test_quick_recovery_is_answered(platform: Caller) -> None:
    server = await platform.server("web-01")
    (cluster,) = (await platform.call("GET", "/janus/20210725/clusters"))["data"]
    export = {"ip_address": "192.0.2.1", "export_path": "/backups"}
    body = {"cluster_id": cluster["id"], "nfs_datastore": {"name": "instant", "server": export}}
    await platform.done("POST", "/janus/20210725/storages/attachnfs", json=body)
    stores = (await platform.call("GET", "/janus/20200725/storages"))["data"]
    (store,) = [each["id"] for each in stores if each["name"] == "instant"]
    disks = {"disks": [{"disk_id": "ide0", "datastore": store, "path": "web-01/ide0.raw"}]}
    path = f"{S18}/servers/{server}"
    assert (await platform.refused("POST", f"{path}/rebase-backing-file", json=disks))[0] == 400
    await platform.done("POST", f"{path}/stop")
    await platform.done("POST", f"{path}/rebase-backing-file", json=disks)
    assert (await platform.call("GET", f"{S24}/servers/{server}"))["instant_vm"] == 1
    await platform.done("POST", f"{path}/merge-backup-data")
    assert (await platform.call("GET", f"{S24}/servers/{server}"))["instant_vm"] == 0
    await platform.done("DELETE", f"{S18}/storages/{store}", json={"cluster_id": cluster["id"]})


# --- the same call again ---------------------------------------------------------------------------------------------


async def test_a_token_makes_a_call_count_once(platform: Caller) -> None:
    server = await platform.server("web-01")
    path = f"/janus/20190725/servers/{server}/snapshots"
    headers = {"X-Client-Token": str(uuid.uuid4())}
    first = await platform.done("POST", path, json={"name": "once"}, headers=headers)
    assert await platform.call("POST", path, json={"name": "once"}, headers=headers) == first
    assert len(await platform.call("GET", SNAPSHOTS.format(server))) == 1
    assert (await platform.refused("POST", path, json={"name": "twice"}, headers=headers))[0] == 429


# --- misbehaviour ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status"),
    [("unauthorized", 401), ("rate-limited", 429), ("unavailable", 503), ("echo-credentials", 500)],
)
async def test_refusals_on_request(lab: Lab, platform: Caller, fault: str, status: int) -> None:
    lab.misbehave(fault, 2, path="/azs")
    await platform.server("web-01")
    for _ in range(2):
        answer = await platform.http.get(f"{S18}/azs")
        assert answer.status_code == status
        assert answer.headers.get("Retry-After") == ("1" if status == 429 else None)
        assert (lab.accounts.password in answer.text) == (fault == "echo-credentials")
    await platform.call("GET", f"{S18}/azs")


async def test_redirects_on_request(lab: Lab, platform: Caller) -> None:
    lab.misbehave("redirect-http")
    assert (await platform.http.get(f"{S18}/azs")).headers["location"].startswith("http://127.0.0.1")
    lab.misbehave("redirect-host")
    assert "elsewhere.invalid" in (await platform.http.get(f"{S18}/azs")).headers["location"]


async def test_answers_that_are_wrong_on_request(lab: Lab, platform: Caller) -> None:
    lab.misbehave("truncated-json")
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        (await platform.http.get(f"{S18}/azs")).json()
    lab.misbehave("deep-json")
    assert (await platform.http.get(f"{S18}/azs")).content.startswith(b"[" * 100_000)
    lab.misbehave("endless-pages", -1)
    data = await platform.call("GET", f"{S18}/azs", params={"page_num": 1000})
    assert data["next_page_num"] == "1001"
    lab.misbehave("endless-pages", 0)
    lab.misbehave("huge-body")
    async with platform.http.stream("GET", f"{S18}/azs") as answer:
        received = 0
        async for piece in answer.aiter_bytes():
            received += len(piece)
            if received > 20 * MiB:
                break
    server = await platform.server("web-01")
    lab.misbehave("traversal-id")
    made = await platform.call("POST", f"/janus/20190725/servers/{server}/snapshots", json={"name": "n"})
    assert made["resource_id"] == "../../x"


async def test_tasks_that_go_wrong_on_request(lab: Lab, platform: Caller) -> None:
    server = await platform.server("web-01")
    path = f"/janus/20190725/servers/{server}/snapshots"
    lab.misbehave("busy")
    assert (await platform.refused("POST", path, json={"name": "n"}))[0] == 409
    lab.misbehave("failed-task")
    made = await platform.call("POST", path, json={"name": "n"})
    assert (await platform.end_of(made["task_id"]))["status"] == "failure"
    assert await platform.call("GET", SNAPSHOTS.format(server)) == []
    resource = await platform.resource(server, lock_time=60)
    lab.misbehave("lease-not-renewed")
    await platform.done("PUT", f"{S18}/backup-resources/{resource}", json={"lock_time": 7200})
    assert (await platform.call("GET", f"{S18}/backup-resources/{resource}"))["remain_time"] <= 60


async def test_changed_areas_that_are_wrong_on_request(lab: Lab, platform: Caller) -> None:
    server = await platform.server("web-01")
    await platform.done("PUT", f"{S18}/servers/{server}/cbt/status", json={"type": "enable"})
    snapshot = await platform.snapshot(server)
    path = f"{S18}/servers/{server}/cbt/changed-areas"
    query = {"disk_id": "ide1", "snapshot_id": snapshot, "checkpoint_id": 0, "start_offset": 0}
    good = await platform.call("GET", path, params=query)
    assert (good["start_offset"], good["length"]) == (0, GiB)
    lab.misbehave("cbt-repeated-page")
    assert await platform.call("GET", path, params=query | {"start_offset": GiB}) == good
    lab.misbehave("cbt-missing-page")
    missing = await platform.call("GET", path, params=query)
    assert (missing["start_offset"], missing["length"]) == (0, GiB)
    lab.misbehave("cbt-expired")
    assert (await platform.refused("GET", path, params=query))[1] == "The VM CBT has expired. Please reset it."


@pytest.mark.parametrize("fault", ["nbd-killed", "snapshot-deleted", "lease-cancelled"])
async def test_what_goes_away_while_a_disk_is_read(lab: Lab, platform: Caller, fault: str) -> None:
    server = await platform.server("web-01")
    await lab.vm("web-01").disk("ide0").fill(0, None, 1)
    await platform.snapshot(server)
    resource = await platform.resource(server, lock_time=7200)
    lab.misbehave(fault)
    uri = f"nbd://127.0.0.1:{lab.port}/{resource}/ide0"
    process = await asyncio.create_subprocess_exec("nbdcopy", uri, "null:", stderr=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 1
    told = await platform.call("GET", f"{S18}/backup-resources/{resource}")
    assert told["status"] == ("cancelled" if fault == "lease-cancelled" else "running")
    snapshots = await platform.call("GET", SNAPSHOTS.format(server))
    assert len(snapshots) == (0 if fault == "snapshot-deleted" else 1)
    if fault == "nbd-killed":
        await platform.done("DELETE", f"{S18}/backup-resources/{resource}")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", lab.port)
        resource = await platform.resource(server)
        _, writer = await asyncio.open_connection("127.0.0.1", lab.port)
        writer.transport.abort()
