"""How a Sangfor Cloud Platform is reached, and what about it is not public and has to be told.

Plain types throughout, so that a configuration file converts into it. Defaults are those of the vendor's documents;
where these are silent, or contradict each other, the default is a guess and its attribute says so.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from ...credentials import Credentials
from ...errors import UsageError, printable
from ...models import TlsStyle, TransportMode
from .paths import check_overrides

Variant: TypeAlias = Literal["v1", "v2", "v3", "v4", "v6"]
"""Which headers a signature covers; see `signing`."""

Padding: TypeAlias = Literal["pkcs1", "oaep-sha1", "oaep-sha256"]
"""How a password is encrypted for the login."""

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ORIGIN = re.compile(rf"https://(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|{_HOST.pattern})(?::(?P<port>[0-9]{{1,5}}))?/?")
_WORD = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningSettings:
    """How requests are signed with an access key. No document says which form a platform insists on.

    Attributes:
        variant: The form that is tried first.
        fallback: The form that is tried when the first is refused (401), or ``none``.
        region, service: Scope of the signature; None for what clients use with the variant, as below. Platforms refuse
            a wrong one.
    """

    variant: Variant = "v3"
    fallback: Variant | Literal["none"] = "v1"
    region: str | None = None
    service: str | None = None

    def __post_init__(self) -> None:
        _known("signing variant", self.variant, get_args(Variant))
        _known("signing variant", self.fallback, (*get_args(Variant), "none"))
        for name in ("region", "service"):
            value = getattr(self, name)
            if value is not None and not _WORD.fullmatch(value):
                raise UsageError(f"signing {name} '{printable(value)}' must be letters, digits, '.', '_' and '-'")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScpTimeouts:
    """Seconds.

    Attributes:
        connect: For name resolution, TCP and TLS.
        request: For one exchange, from the request to the last byte of the answer.
        retry: How long one call goes on while the platform is busy, limits our rate, or cannot be reached. What a run
            has made is removed in 5 s each, or left to `sfasync cleanup`, where it gave no answer before.
        blocked: How long to wait after the platform blocked the calls of the login, which it does for a minute.
        task: How long a task of the platform may take.
        poll: Between two looks at a task.
    """

    connect: float = 10.0
    request: float = 60.0
    retry: float = 120.0
    blocked: float = 60.0
    task: float = 3600.0
    poll: float = 3.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            if not 0 < getattr(self, entry.name) < float("inf"):
                raise UsageError(f"timeout '{entry.name}' must be more than 0 seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdSettings:
    """Where the cluster serves disks. **Nothing of this is public**: the defaults are guesses, meant to be corrected.

    Attributes:
        host: Host of the NBD service; None for the management address of the host that the lease names.
        hosts: Addresses of the NBD service by platform host id, for a separate backup network.
        port: TCP port; 10809 is NBD's own.
        export: Name of the export, with ``{vm_id}``, ``{disk_id}``, ``{snapshot_id}``, ``{server_id}`` and
            ``{resource_id}`` replaced.
        tls_style: How TLS begins in mode ``nbdssl``.
        check_hostname: Whether the certificate must carry the host's name; the authority is checked in any case.
        hostname: The name that the certificate must carry; None for the host connected to.
        networks: Where the service may be, in CIDR form; empty for the addresses that the platform's hosts have.
    """

    host: str | None = None
    hosts: Mapping[str, str] = field(default_factory=dict)
    port: int = 10809
    export: str = "{resource_id}/{disk_id}"
    tls_style: TlsStyle = "starttls"
    check_hostname: bool = True
    hostname: str | None = None
    networks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise UsageError(f"port of the NBD service must be 1 to 65535, not {self.port}")
        _known("TLS style", self.tls_style, get_args(TlsStyle))
        for network in self.networks:
            try:
                ipaddress.ip_network(network)
            except ValueError:
                raise UsageError(f"network '{printable(network)}' is not of the form 10.0.0.0/24") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """Where the platform's documents contradict each other, or clients saw something else.

    Attributes:
        padding: How the password is encrypted; `pkcs1` is the first form of the login, the others belong to the second,
            which is there from 6.11.3 on.
        resource_member: What the kind of a backup resource is called.
        backup_kind, restore_kind: Its two values.
        upload: How a file is sent: as a form, or as it is.
        encode_colon: Whether the colon in the id of a backup resource is sent as ``%3A``.
        expired: What the platform says when changed blocks are not to be had any more and tracking must be reset.
    """

    padding: Padding = "pkcs1"
    resource_member: str = "type"
    backup_kind: str = "backup"
    restore_kind: str = "restore"
    upload: Literal["multipart", "raw"] = "multipart"
    encode_colon: bool = False
    expired: tuple[str, ...] = ("CBT has expired", "CBT已过期", "CBT已失效")

    def __post_init__(self) -> None:
        _known("padding", self.padding, get_args(Padding))
        _known("form of an upload", self.upload, ("multipart", "raw"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScpSettings:
    """One platform.

    Attributes:
        url: Where its REST interface is: ``https://scp.example`` or ``https://scp.example:4430``.
        product: The platform, or a cluster that is asked without it, of which hardly anything is public.
        credentials: Ours: an access key, or an account's user and password.
        ca_file: Certificates (PEM) of the authorities to believe; None for those of the system.
        fingerprint: SHA-256 of the platform's certificate in hex; given alone, it is all that is checked, with
            `ca_file` both are.
        hostname: The name that the platform's certificate must carry; None for that of the host in `url`.
        signing: How requests are signed, with an access key.
        paths: Paths to use instead of the documented ones, by operation.
        dialect: What has to be said otherwise to this platform.
        timeouts: When to give up.
        page_size: Items of a list asked for at once, 1 to 100.
        lease_seconds: How long a backup resource lasts unless it is renewed, 60 to 7200.
        nbd: Where disks are served.
        enable_cbt: Turn on the tracking of changed blocks where it is off.
        transport: What is spoken with the NBD service: ``nbdssl``, or ``nbd`` on a network where nobody listens.
        keep_last_snapshot: Leave the last snapshot in place until the next one is made.
        trust_allocation: Believe the platform about what was never written, and do not read it.
        encrypted_allowed: Back up encrypted VMs, whose backups are of use only where the key is.
        power_on: Start a VM when it is restored.
        connections: Connections to one disk.
        bandwidth: Megabits a second that the platform gives to one connection, as its setting *Transfer Speed per
            Backup Task* says. Nothing is slowed down to it: it tells what limited a backup.
        disks_per_datastore, disks_per_host: Disks open at the same time.
    """

    url: str
    product: Literal["scp", "hci"] = "scp"
    credentials: Credentials | None = None
    ca_file: Path | None = None
    fingerprint: str | None = None
    hostname: str | None = None
    signing: SigningSettings = field(default_factory=SigningSettings)
    paths: Mapping[str, str] = field(default_factory=dict)
    dialect: Dialect = field(default_factory=Dialect)
    timeouts: ScpTimeouts = field(default_factory=ScpTimeouts)
    page_size: int = 100
    lease_seconds: int = 1800
    nbd: NbdSettings = field(default_factory=NbdSettings)
    enable_cbt: bool = False
    transport: TransportMode = "nbdssl"
    keep_last_snapshot: bool = False
    trust_allocation: bool = False
    encrypted_allowed: bool = False
    power_on: bool = False
    connections: int = 1
    bandwidth: int = 800
    disks_per_datastore: int = 9
    disks_per_host: int = 16

    def __post_init__(self) -> None:
        if not _is_origin(self.url):
            raise UsageError(f"'{printable(_without_user(self.url))}' is no address of a platform: https://HOST[:PORT]")
        if self.hostname is not None and not _HOST.fullmatch(self.hostname):
            raise UsageError(f"'{printable(self.hostname)}' is no name that a certificate can carry")
        _known("product", self.product, ("scp", "hci"))
        check_overrides(self.paths)
        for name, low, high in (
            ("page_size", 1, 100),
            ("lease_seconds", 60, 7200),
            ("connections", 1, 16),
            ("bandwidth", 8, 9900),
            ("disks_per_datastore", 1, 256),
            ("disks_per_host", 1, 128),
        ):
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"'{name}' must be {low} to {high}, not {getattr(self, name)}")

    @property
    def origin(self) -> str:
        """The URL without a slash at its end."""
        return self.url.rstrip("/")


def _known(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{what} '{printable(value)}' is not known; there are {', '.join(known)}")


def _is_origin(url: str) -> bool:
    match = _ORIGIN.fullmatch(url)
    if match is None or not 0 < int(match["port"] or 443) < 65536:
        return False
    try:
        ipaddress.IPv6Address(match["address"] or "::")
    except ValueError:
        return False
    return True


def _without_user(url: str) -> str:
    """The URL without what stands before an ``@``, which may be a password."""
    return url.rpartition("@")[2]
