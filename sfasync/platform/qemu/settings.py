"""What has to be told about VMs that run in QEMU, or whose disks a qemu-storage-daemon serves.

Plain types throughout, so that a configuration file converts into it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from ...errors import UsageError, printable
from ...models import TlsPolicy, check_id

Quiesce: TypeAlias = Literal["auto", "require", "off"]
"""Whether the guest freezes its file systems for a snapshot: where its agent can, or else no backup, or never."""

_HOST_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\[\]:/\s]+)):([0-9]{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuNbd:
    """Where a VM's disks are served. By default a server is started on a Unix socket of its own for each job.

    QEMU has one NBD server at most. Where one is running for other purposes, it has to be told here, and is used.

    Attributes:
        socket: Unix socket of an NBD server that is running.
        host, port: Where an NBD server is over TCP, which has to be TLS.
        credentials: Directory with ``server-cert.pem``, ``server-key.pem`` and ``ca-cert.pem`` on QEMU's host, with
            which a server is started at `host` and `port`; None where one is running there.
        tls: Whom to believe over TLS, and who we are.
    """

    socket: Path | None = None
    host: str | None = None
    port: int = 10809
    credentials: Path | None = None
    tls: TlsPolicy | None = None

    def __post_init__(self) -> None:
        if self.socket is not None and self.host is not None:
            raise UsageError("an NBD server is on a Unix socket or at a host, not both")
        if self.host is not None and self.tls is None:
            raise UsageError(f"an NBD server at host '{printable(self.host)}' needs 'tls': over TCP disks go encrypted")
        if self.credentials is not None and self.host is None:
            raise UsageError("'credentials' are those of an NBD server at a 'host'")
        if self.credentials is not None and (self.tls is None or self.tls.cert_file is None):
            raise UsageError("'tls' needs our certificate ('cert_file'): the server lets nobody in without one")
        if not 0 < self.port < 65536:
            raise UsageError(f"port of the NBD server must be 1 to 65535, not {self.port}")


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuVm:
    """A VM.

    Attributes:
        socket: Unix socket of a QMP monitor of its own, for nobody else; QEMU runs on this host then.
        address: ``HOST:PORT`` of the monitor instead. Whoever reaches it owns the VM: let it be a tunnel.
        agent: Unix socket of the guest agent.
        quiesce: Whether the guest freezes its file systems.
        disks: Devices or nodes by the id that backups have for the disk; empty for all that can be written.
        files: Small files of the VM that backups keep with its disks, by name: its definition, its BIOS variables.
        nbd: Where its disks are served.
        directory: For sockets and for what the guest overwrites while a backup reads; on QEMU's host, and for QEMU and
            us alone. None for one in ``/var/tmp``, which suits a QEMU of the same user.
        reserve: Take all the space that the guest could need there at once, not as it is needed.
    """

    socket: Path | None = None
    address: str | None = None
    agent: Path | None = None
    quiesce: Quiesce = "auto"
    disks: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    nbd: QemuNbd = field(default_factory=QemuNbd)
    directory: Path | None = None
    reserve: bool = False

    def __post_init__(self) -> None:
        if (self.socket is None) == (self.address is None):
            raise UsageError("a VM has the 'socket' of its monitor, or the 'address'")
        if self.address is not None:
            self.host_and_port  # noqa: B018 - refuses what is none
            if self.directory is None or self.nbd.host is None:
                raise UsageError("with a monitor at an 'address', 'directory' and 'nbd.host' have to be told as well")
        if self.quiesce not in get_args(Quiesce):
            raise UsageError(f"quiesce '{printable(self.quiesce)}' is none of {', '.join(get_args(Quiesce))}")
        if self.quiesce == "require" and self.agent is None:
            raise UsageError("quiesce 'require' needs the socket of the 'agent'")
        for disk in self.disks:
            check_id("disk", disk)

    @property
    def host_and_port(self) -> tuple[str, int] | None:
        """Where the monitor is over TCP; None where it is a Unix socket.

        Raises:
            UsageError: The address is none.
        """
        if self.address is None:
            return None
        match = _HOST_PORT.fullmatch(self.address)
        if match is None or not 0 < int(match[3]) < 65536:
            raise UsageError(f"'{printable(self.address)}' is no address of a monitor: HOST:PORT")
        return match[1] or match[2], int(match[3])

    @property
    def monitor(self) -> str:
        """The monitor, for messages and to tell it from others."""
        return str(self.socket.absolute()) if self.socket is not None else str(self.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuTimeouts:
    """Seconds.

    Attributes:
        connect: For connection and greeting of a monitor or an agent.
        command: For one command of a monitor.
        freeze: How long the guest may take to freeze its file systems, and how long it is asked to thaw them.
        clean: How long what was made for a job is waited for until it is gone.
    """

    connect: float = 5.0
    command: float = 60.0
    freeze: float = 30.0
    clean: float = 4.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            if not 0 < getattr(self, entry.name) < float("inf"):
                raise UsageError(f"timeout '{entry.name}' must be more than 0 seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuSettings:
    """VMs of QEMU.

    Attributes:
        vms: By name.
        timeouts: When to give up.
    """

    vms: Mapping[str, QemuVm]
    timeouts: QemuTimeouts = field(default_factory=QemuTimeouts)

    def __post_init__(self) -> None:
        for vm in self.vms:
            check_id("VM", vm)
