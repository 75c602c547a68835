"""What a platform tells, and what it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .styles import TransportMode

if TYPE_CHECKING:
    from .addresses import ExportAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRequest:
    """The disk whose address a resolver is asked for.

    Attributes:
        vm_id: The VM, as the platform numbers it.
        disk_id: The disk within the VM.
        snapshot_id: The snapshot to read; None for the disk itself, to be written.
        server_id: The VM's id on the management plane, where that is another one and known.
        resource_id: The platform's lease on the VM, where there is one.
        mode: What is to be spoken.
    """

    vm_id: str
    disk_id: str
    snapshot_id: str | None = None
    server_id: str | None = None
    resource_id: str | None = None
    mode: TransportMode = "nbd"


@dataclass(frozen=True, slots=True)
class MetadataContext:
    """A metadata context that an NBD server has for an export (proto.md, "Metadata querying").

    Attributes:
        address: The export.
        name: The context, as ``qemu:dirty-bitmap:NAME``.
    """

    address: ExportAddress
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualDisk:
    """A disk of a VM, as its platform lists it.

    Attributes:
        id: Its id within the VM, as backups name it.
        size: Bytes; None where only opening the disk tells.
        tracked: Whether its changes are tracked; None where the platform does not say.
    """

    id: str
    size: int | None = None
    tracked: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualMachine:
    """A VM of a platform.

    Attributes:
        id: The platform's id of it.
        name: Its name, for people; not always unique.
        state: The platform's word for its state (`running`, `stopped`).
        disks: Its disks, in the platform's order.
        refusal: Why it cannot be backed up, as one sentence; None if it can.
        warnings: What somebody who backs it up should know.
    """

    id: str
    name: str
    state: str
    disks: tuple[VirtualDisk, ...]
    refusal: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Something of ours that a killed run has left on a platform.

    Attributes:
        kind: What it is, as the platform calls it: `snapshot`, `backup resource`, `virtual machine`, `bitmap`,
            `export`, `node`, `job`, `server`, `object`, `file`.
        id: The platform's id of it.
        vm: The VM it belongs to; empty where it belongs to none.
        removed: Whether it is gone now.
        problem: Why it is not; empty if it is, or if nobody tried.
    """

    kind: str
    id: str
    vm: str
    removed: bool
    problem: str = ""
