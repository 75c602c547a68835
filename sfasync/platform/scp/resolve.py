"""Where the cluster serves a disk. **None of it is public**, so every part has a setting (`NbdSettings`).

No answer of the platform has an address of the NBD service in it. What it does tell is the host that holds a lease, or
that a VM runs on, and the address of that host's management interface, which is where backup data travels unless
somebody has configured another interface. Port, name of the export and the way TLS begins are settings alone. What the
platform tells is not believed blindly: a disk's content goes only to networks that are ours, in the configuration or by
the list of the cluster's hosts.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from ...errors import PlatformError, UsageError, printable
from ...models import EndpointRequest, ExportAddress, TlsPolicy
from ...resolvers import EndpointTemplate
from .answers import Host
from .api import ScpApi
from .settings import NbdSettings, ScpSettings

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_MANAGEMENT: Final = "mgmt"
_REMEMBERED: Final = 64


@dataclass(frozen=True, slots=True)
class _Place:
    """What all disks of a leased VM have in common."""

    host: str
    ca_cert: str | None


class ResourceResolver:
    """An `EndpointResolver` for disks of VMs that are leased: requests have a ``resource_id`` and a ``server_id``.

    Args:
        api: The platform.
        settings: What is known of its NBD service.
    """

    def __init__(self, api: ScpApi, settings: ScpSettings) -> None:
        self._api = api
        self._settings = settings
        self._known: dict[str, _Place] = {}

    def __repr__(self) -> str:
        return f"<ResourceResolver of {self._settings.origin}>"

    async def resolve(self, request: EndpointRequest) -> ExportAddress:
        """As `EndpointResolver.resolve`.

        Raises:
            UsageError: The settings are not enough to find the disk, or do not allow to go where it is.
            PlatformError: The platform does not answer, or what it answers cannot be an address of a host.
        """
        if request.resource_id is None or request.server_id is None:
            raise UsageError(
                f"disk '{printable(request.disk_id)}' is served only while its VM is leased", disk=request.disk_id
            )
        place = self._known.get(request.resource_id)
        if place is None:
            resource = await self._api.resource(request.resource_id)
            place = _Place(await self._host(resource.host_id, request.server_id), resource.ca_cert)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[request.resource_id] = place
        return address_of(self._settings, request, host=place.host, ca_cert=place.ca_cert)

    async def _host(self, host_id: str | None, server_id: str) -> str:
        """The host of the NBD service."""
        nbd = self._settings.nbd
        if nbd.host is not None:
            return nbd.host
        host_id = host_id or (await self._api.server(server_id)).host_id
        if host_id is None:
            raise UsageError("the platform does not tell which host serves the disks; set nbd.host")
        if host_id in nbd.hosts:
            return nbd.hosts[host_id]
        hosts = await self._api.hosts()
        told = next((host.ip for host in hosts if host.id == host_id and host.ip), None)
        return str(allowed_address(nbd, host_id, told or await self._management(host_id), hosts))

    async def _management(self, host_id: str) -> str:
        """The address of a host's management interface."""
        for interface in await self._api.host_interfaces(host_id, _MANAGEMENT):
            uses = interface.communication_interface or ()
            for ip in (*(use.ip for use in uses if use.function == _MANAGEMENT), interface.ip):
                if ip:
                    return ip
        raise UsageError(
            f"the platform does not tell the address of host '{printable(host_id)}', which serves the disks; "
            "set nbd.hosts"
        )


def allowed_address(nbd: NbdSettings, host_id: str, told: str, hosts: Sequence[Host]) -> Address:
    """The address that the platform tells of a host, if data may go there.

    Raises:
        PlatformError: It is none, or one that no host of a cluster can have.
        UsageError: It is in none of the networks that are allowed.
    """
    where = f"host '{printable(host_id)}', which is to serve the disks, "
    try:
        address = ipaddress.ip_address(told)
    except ValueError:
        raise PlatformError(f"{where}has '{printable(told)}' for its address, and that is none") from None
    if nbd.networks:
        if not any(address in ipaddress.ip_network(network) for network in nbd.networks):
            raise UsageError(f"{where}has the address {address}, which is in none of nbd.networks")
        return address
    if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
        raise PlatformError(f"{where}cannot have the address {address}; if it is right, name it in nbd.networks")
    if address not in {_parsed(host.ip) for host in hosts}:
        raise UsageError(
            f"{where}has the address {address}, which is in the list of the clusters' hosts none; if it is right, name "
            "its network in nbd.networks"
        )
    return address


def address_of(settings: ScpSettings, request: EndpointRequest, *, host: str, ca_cert: str | None) -> ExportAddress:
    """The address of a disk on a host. Pure.

    Args:
        settings: Port, export, TLS, connections.
        request: The disk.
        host: Host name or address of the NBD service.
        ca_cert: The authority to believe, from the lease; None for those of the system.

    Raises:
        UsageError: The name of the export needs something that the request has not.
    """
    nbd = settings.nbd
    tls = (
        TlsPolicy(style=nbd.tls_style, ca_text=ca_cert, hostname=nbd.hostname, check_hostname=nbd.check_hostname)
        if request.mode == "nbdssl"
        else None
    )
    template = EndpointTemplate(
        host=host,
        port=nbd.port,
        export=nbd.export,
        tls=tls,
        connections=settings.connections,
        rate=settings.bandwidth * 1_000_000 // 8,
    )
    return template.address(request)


def _parsed(ip: str | None) -> Address | None:
    try:
        return None if ip is None else ipaddress.ip_address(ip)
    except ValueError:
        return None
