"""Where disks are served, as far as settings and platform tell, and where data does not go (T27)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sfasync.errors import PlatformError, UsageError
from sfasync.models import EndpointRequest, ExportAddress, TlsPolicy
from sfasync.platform.scp.api import ScpApi
from sfasync.platform.scp.resolve import ResourceResolver, address_of
from sfasync.platform.scp.settings import NbdSettings, ScpSettings

from .support import QUICK, RESOURCE, SERVER, FakePlatform, answer, pages

REQUEST = EndpointRequest(
    vm_id="2786761839857", disk_id="ide0", server_id=SERVER, snapshot_id="5e1c", resource_id=RESOURCE, mode="nbdssl"
)
HOSTS = [{"id": "host-1", "ip": "10.1.2.3"}, {"id": "host-2", "ip": "10.1.2.4"}]


def cluster(fake: FakePlatform, hosts: list[dict[str, str]], *, holder: str | None = "host-1") -> None:
    """A cluster with these hosts; the lease names the one that serves the disks, or nobody does."""
    fake.on(f"GET /janus/20180725/backup-resources/{RESOURCE}", answer({"status": "running", "host_id": holder}))
    fake.on("GET /janus/20240725/hosts", pages(hosts))
    fake.on(f"GET /janus/20240725/servers/{SERVER}", answer({"id": SERVER, "name": "web-01", "host_id": "host-2"}))


async def resolved(fake: FakePlatform, nbd: NbdSettings, request: EndpointRequest = REQUEST) -> ExportAddress:
    settings = fake.settings(nbd=nbd)
    async with ScpApi(settings, pace=QUICK) as api:
        return await ResourceResolver(api, settings).resolve(request)


async def test_the_host_of_the_lease(platform: FakePlatform) -> None:
    cluster(platform, HOSTS)
    address = await resolved(platform, NbdSettings(port=4000))
    assert (address.host, address.port, address.export) == ("10.1.2.3", 4000, f"{RESOURCE}/ide0")
    assert address.connections == 1


async def test_the_host_of_the_vm_where_the_lease_names_none(platform: FakePlatform) -> None:
    cluster(platform, HOSTS, holder=None)
    assert (await resolved(platform, NbdSettings())).host == "10.1.2.4"


async def test_a_backup_network_of_its_own(platform: FakePlatform) -> None:
    cluster(platform, HOSTS)
    assert (await resolved(platform, NbdSettings(hosts={"host-1": "172.16.0.1"}))).host == "172.16.0.1"
    assert (await resolved(platform, NbdSettings(host="nbd.example"))).host == "nbd.example"


async def test_the_management_interface_where_the_list_has_no_address(platform: FakePlatform) -> None:
    cluster(platform, [{"id": "host-1"}, {"id": "host-2", "ip": "10.1.2.4"}])
    uses = [{"function": "vs", "ip": "10.9.9.9"}, {"function": "mgmt", "ip": "10.1.2.5"}]
    platform.on(
        "GET /janus/20180725/hosts/host-1/interfaces", answer([{"name": "eth0", "communication_interface": uses}])
    )
    assert (await resolved(platform, NbdSettings(networks=("10.1.0.0/16",)))).host == "10.1.2.5"
    with pytest.raises(UsageError, match=r"10\.1\.2\.5, which is in the list .* none"):
        await resolved(platform, NbdSettings())
    platform.on("GET /janus/20180725/hosts/host-1/interfaces", answer([]))
    with pytest.raises(UsageError, match=r"set nbd\.hosts"):
        await resolved(platform, NbdSettings())


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "169.254.169.254", "224.0.0.1", "0.0.0.0", "evil.example", "10.1"])  # noqa: S104 - nothing listens there
async def test_where_no_host_of_a_cluster_is(platform: FakePlatform, ip: str) -> None:
    cluster(platform, [{"id": "host-1", "ip": ip}])
    with pytest.raises(PlatformError, match="host-1"):
        await resolved(platform, NbdSettings())


async def test_networks_that_are_allowed(platform: FakePlatform) -> None:
    cluster(platform, [{"id": "host-1", "ip": "127.0.0.1"}])
    assert (await resolved(platform, NbdSettings(networks=("10.0.0.0/8", "127.0.0.0/8")))).host == "127.0.0.1"
    with pytest.raises(UsageError, match=r"127\.0\.0\.1, which is in none of nbd\.networks"):
        await resolved(platform, NbdSettings(networks=("10.0.0.0/8",)))


async def test_a_vm_that_is_not_leased(platform: FakePlatform) -> None:
    with pytest.raises(UsageError, match="only while its VM is leased"):
        await resolved(platform, NbdSettings(), replace(REQUEST, resource_id=None))


def test_the_address_of_a_disk() -> None:
    nbd = NbdSettings(
        port=9, export="{vm_id}/{disk_id}@{snapshot_id}", tls_style="direct", hostname="hci", check_hostname=False
    )
    settings = ScpSettings(url="https://scp.example", nbd=nbd, connections=2)
    assert address_of(settings, REQUEST, host="10.0.0.1", ca_cert="MIIB") == ExportAddress(
        host="10.0.0.1",
        port=9,
        export="2786761839857/ide0@5e1c",
        tls=TlsPolicy(style="direct", ca_text="MIIB", hostname="hci", check_hostname=False),
        connections=2,
        rate=100_000_000,
    )
    assert address_of(settings, replace(REQUEST, mode="nbd"), host="10.0.0.1", ca_cert="MIIB").tls is None
    with pytest.raises(UsageError, match="needs a snapshot_id"):
        address_of(settings, replace(REQUEST, snapshot_id=None), host="10.0.0.1", ca_cert="MIIB")
