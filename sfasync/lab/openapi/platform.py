"""Log-in, and what the platform consists of."""

from __future__ import annotations

from typing import Any

from ..configuration import STORAGE_ID
from .envelope import Answer, Refusal, page, text_in
from .site import HOST_ID, HOST_IP, Call, Operation, Site

_VERSION = "SCP6.11.3"
_HCI_VERSION = "6.11.3"


async def public_key(site: Site, call: Call) -> Answer:
    """What passwords are encrypted with."""
    return Answer({"public_key": site.accounts.modulus})


async def authenticate(site: Site, call: Call) -> Answer:
    """A token for a password; the second generation encrypts it in another way."""
    auth = call.members.get("auth")
    credentials = auth.get("passwordCredentials") if isinstance(auth, dict) else None
    if not isinstance(credentials, dict):
        raise Refusal(400, "auth.passwordCredentials is missing")
    user, password = text_in(credentials, "username"), text_in(credentials, "password")
    answer = site.accounts.log_in(user, password, oaep="/v2/" in call.path)
    if answer is None:
        raise Refusal(401, "the user name or the password is wrong")
    return Answer(answer)


async def version(site: Site, call: Call) -> Answer:
    """The platform's version."""
    return Answer(
        {
            "version": _VERSION,
            "region_info": {"region_id": "RegionOne"},
            "dcluster_info": {"cluster_ip": HOST_IP, "cluster_port": "443", "leader_ip": HOST_IP, "mode": "single"},
            "manage_mode": "local",
        }
    )


async def system_version(site: Site, call: Call) -> Answer:
    """The platform's version, another way."""
    return Answer({"build_version": _VERSION, "custom_version": []})


async def zones(site: Site, call: Call) -> Answer:
    """The resource pools."""
    return Answer(page([_zone(site)], call.query))


async def clusters(site: Site, call: Call) -> Answer:
    """The clusters."""
    return Answer(page([_cluster(site)], call.query))


async def hosts(site: Site, call: Call) -> Answer:
    """The hosts."""
    inventory = site.hypervisor.inventory
    host = {
        "id": HOST_ID,
        "ip": HOST_IP,
        "name": "lab",
        "status": "running",
        "cluster_id": inventory.cluster_id,
        "az_id": inventory.zone_id,
    }
    wanted = _matches(host, call, "az_id", "cluster_id")
    return Answer(page([host] if wanted else [], call.query))


async def interfaces(site: Site, call: Call) -> Answer:
    """The interfaces of a host."""
    if call.ids["host_id"] != HOST_ID:
        raise Refusal(404, "the host does not exist")
    interface = {
        "name": "lo",
        "ip": HOST_IP,
        "netmask": "255.0.0.0",
        "mac": "00:00:00:00:00:00",
        "mtu": 65536,
        "speed": 10000,
        "communication_interface": [{"function": "mgmt", "ip": HOST_IP, "netmask": "255.0.0.0"}],
    }
    return Answer(page([interface] if call.query.get("function", "mgmt") == "mgmt" else [], call.query))


async def storages(site: Site, call: Call) -> Answer:
    """The datastores."""
    known = {STORAGE_ID: "lab"} | site.storages
    items = [
        {
            "id": storage_id,
            "name": name,
            "type": "vs" if storage_id == STORAGE_ID else "nfs",
            "status": "running",
            "total_mb": 1 << 20,
            "used_mb": 0,
            "ratio": 0,
            "shared": 1,
            "cluster_id": site.hypervisor.inventory.cluster_id,
            "host_ids": [HOST_ID],
            "storage_tag_id": "lab",
            "supported_allocate_types": ["off", "metadata", "full"],
        }
        for storage_id, name in known.items()
    ]
    return Answer(page(items, call.query))


async def task(site: Site, call: Call) -> Answer:
    """A task."""
    found = site.tasks.find(call.ids["task_id"])
    if found is None:
        raise Refusal(404, "the task does not exist")
    return Answer(found.shown())


async def tasks(site: Site, call: Call) -> Answer:
    """The tasks, the last first."""
    shown = [each.shown() for each in site.tasks.all()]
    return Answer(page([each for each in shown if _matches(each, call, "object_id", "status")], call.query))


def _zone(site: Site) -> dict[str, Any]:
    return {
        "id": site.hypervisor.inventory.zone_id,
        "name": "lab",
        "status": "normal",
        "type": "hci",
        "tag": "lab",
        "version": _HCI_VERSION,
        "description": "",
    }


def _cluster(site: Site) -> dict[str, Any]:
    return {
        "id": site.hypervisor.inventory.cluster_id,
        "az_id": site.hypervisor.inventory.zone_id,
        "ip": HOST_IP,
        "controller_ip": HOST_IP,
        "name": "lab",
        "status": "normal",
        "type": "hci",
        "version": _HCI_VERSION,
        "arch_type": "hci_x86",
    }


def _matches(item: dict[str, Any], call: Call, *filters: str) -> bool:
    return all(call.query[name] == item[name] for name in filters if name in call.query)


OPERATIONS = (
    Operation("GET", "/janus/public-key", public_key, open=True),
    Operation("GET", "/janus/v2/public-key", public_key, open=True),
    Operation("POST", "/janus/authenticate", authenticate, open=True),
    Operation("POST", "/janus/v2/authenticate", authenticate, open=True),
    Operation("GET", "/janus/20180725/platform", version),
    Operation("GET", "/janus/20180725/system/version", system_version),
    Operation("GET", "/janus/20180725/azs", zones),
    Operation("GET", "/janus/20210725/clusters", clusters),
    Operation("GET", "/janus/20240725/hosts", hosts),
    Operation("GET", "/janus/20180725/hosts/{host_id}/interfaces", interfaces),
    Operation("GET", "/janus/20200725/storages", storages),
    Operation("GET", "/janus/20180725/tasks", tasks),
    Operation("GET", "/janus/20180725/tasks/{task_id}", task),
)
