"""What the platform answers, as far as anybody here asks for it; members that are not known are passed over.

One that nobody reads is not named: where a platform has it otherwise than the documents, the whole answer would be
refused for it. One that the platform did not send, or sent as null, is None: not told is not the same as no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from ...errors import UsageError
from .envelope import decoded, malformed
from .paths import answered_id, checked_checkpoint

Id = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@:-]{0,199}\Z")]
"""What something is called by. Other ids are taken as they come, and refused when they should stand in a path."""

MB = 1 << 20
GB = 1 << 30

_MAX_CONFIG = 1 << 20
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformVersion:
    """Which platform it is.

    Attributes:
        version: As in ``SCP6.11.1``.
    """

    version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Az:
    """A resource pool."""

    id: Id
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster of hosts.

    Attributes:
        id: What calls about files and storages want.
        az_id: The resource pool that it is, which creating a VM wants.
    """

    id: Id
    az_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host of a cluster.

    Attributes:
        ip: Of its management.
    """

    id: Id
    ip: str | None = None
    cluster_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceUse:
    """What an interface is used for."""

    function: str | None = None
    ip: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInterface:
    """An interface of a host."""

    ip: str | None = None
    communication_interface: tuple[InterfaceUse, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A datastore."""

    id: Id
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerDisk:
    """A disk of a VM, as its list has it.

    Attributes:
        id: ``ide0`` or ``virtio0``; calls want the id that a snapshot's details have, which may be another.
    """

    id: Id
    size_mb: float | None = None
    size_gb: float | None = None
    storage_id: str | None = None
    storage_file: str | None = None

    @property
    def size(self) -> int | None:
        """Bytes; None if it is not told."""
        return _bytes(self.size_mb, self.size_gb)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advanced:
    """Parameters of a VM that few have."""

    turbo_mode_enabled: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A VM.

    Attributes:
        id: On the platform.
        vm_id: On its cluster, a number.
        status: ``running`` and ``stopped`` are known.
        power_state: ``on`` or ``off``.
        vmtype: ``vm`` and ``derive`` are VMs of users.
        encrypted: Whether its disks are.
        cipher: How, as the platform says it.
        instant_vm: Whether a quick recovery is going on.
        snap: Whether it has snapshots.
        revert_mode: Of a desktop: 1 where its disk is put back at each start.
    """

    id: Id
    name: str
    vm_id: int | None = None
    az_id: str | None = None
    host_id: str | None = None
    status: str | None = None
    power_state: str | None = None
    type: str | None = None
    vmtype: str | None = None
    os_name: str | None = None
    application: str | None = None
    revert_mode: int | None = None
    encrypted: bool | None = None
    cipher: Any = None
    advance_param: Advanced | None = None
    disks: tuple[ServerDisk, ...] | None = None
    storage_id: str | None = None
    backup_policy_enable: bool | None = None
    instant_vm: bool | None = None
    snap: bool | None = None

    @property
    def turbo(self) -> bool:
        """Whether its disks are served past the part that tracks changes; such VMs cannot be backed up."""
        return bool(self.advance_param and self.advance_param.turbo_mode_enabled)


@dataclass(frozen=True, slots=True, kw_only=True)
class CbtDisk:
    """Whether changes of a disk are tracked."""

    id: Id
    is_enabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CbtStatus:
    """Whether changes of a VM are tracked; if not, those of none of its disks are."""

    is_enabled: bool
    disks: tuple[CbtDisk, ...] | None = None

    def tracked(self, disk: str) -> bool:
        """Whether changes of one disk are tracked; a disk that is not in the list goes with its VM."""
        states = {known.id: known.is_enabled for known in self.disks or ()}
        return self.is_enabled and states.get(disk, True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A snapshot of a VM, as the list has it.

    Attributes:
        type: ``VS`` of the storage, ``qcow2`` internal, ``external_qcow2``.
    """

    id: Id
    name: str | None = None
    type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotDisk:
    """A disk of a frozen VM.

    Attributes:
        device_id: The disk's id in every call.
        size: Bytes, as far as the configuration tells; the NBD service says it exactly.
        serial: The serial number that its guest sees; None if there is none.
    """

    device_id: str
    size: int | None
    serial: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotDetails:
    """A snapshot, with what was frozen.

    Attributes:
        checkpoint_id: The point from which changes can be asked for later, a decimal number of up to 64 bits; None
            where there is none, which the platform also writes as 0.
        disk_checkpoint_ids: The same by disk, where the platform tells it so.
        config: The VM's configuration, JSON exactly as it came.
        disks: The disks in it.
        bios_type: ``CUSTOM`` where there is a file to be saved.
        tpm_enabled: Whether there may be one of the TPM.
        encrypted: Whether the disks are.
        datastore_id: Where the VM is.
    """

    id: str
    name: str | None = None
    type: str | None = None
    checkpoint_id: str | None = None
    disk_checkpoint_ids: Mapping[str, str] = field(default_factory=dict)
    config: bytes = field(repr=False)
    disks: tuple[SnapshotDisk, ...] = ()
    bios_type: str | None = None
    tpm_enabled: bool = False
    encrypted: bool = False
    datastore_id: str | None = None

    def checkpoint(self, disk: str) -> str | None:
        """The checkpoint for one disk."""
        return self.disk_checkpoint_ids.get(disk, self.checkpoint_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """A range that has changed, in bytes."""

    start: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedAreas:
    """What one answer says about one region of a disk. Nothing of it is checked: order, overlap and end are open.

    Attributes:
        changed_area: What has changed in the region.
        start_offset, length: The region, in bytes.
    """

    start_offset: int
    length: int
    changed_area: tuple[Area, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A backup resource: the lease on a VM.

    Attributes:
        status: ``running`` when it can be used; pending, expired, occupied, cancelled, released, failed.
        remain_time: Seconds until the platform takes it back.
        ca_cert: Certificate of the cluster's authority, in base64 without the lines around it.
        host_id: The host that serves the disks.
    """

    status: str
    remain_time: float | None = None
    server_id: str | None = None
    ca_cert: str | None = field(default=None, repr=False)
    host_id: str | None = None


# --- snapshots: members whose names differ --------------------------------------------------------------------------


def snapshot_details(raw: msgspec.Raw, operation: str) -> SnapshotDetails:
    """The details of a snapshot. Names are read without regard to case and underscores: sources differ in them.

    Raises:
        PlatformError: They are not what they should be.
    """
    members = _named(decoded(raw, dict[str, msgspec.Raw], operation))
    if "vmconf" not in members:
        raise malformed(operation, "there is no vmconf")
    config = bytes(members["vmconf"])
    if len(config) > _MAX_CONFIG:
        raise malformed(operation, f"a vmconf of {len(config)} bytes is none")
    if not _within(_MAX_DEPTH, decoded(config, object, operation)):  # it is kept, and read long after, by others
        raise malformed(operation, f"the vmconf is nested more than {_MAX_DEPTH} deep")
    conf = _named(decoded(config, dict[str, msgspec.Raw], operation))
    hardware = _members(conf.get("hardwareoption"), operation)
    advanced = _members(conf.get("advancedoption"), operation)
    bios = _members(hardware.get("bios"), operation)
    return SnapshotDetails(
        id=answered_id("snapshot_id", _value(members, "id", str, operation) or ""),
        name=_value(members, "name", str, operation),
        type=_value(members, "type", str, operation),
        checkpoint_id=_checkpoint(members.get("checkpointid"), operation),
        disk_checkpoint_ids=_disk_checkpoints(members.get("diskcheckpointids"), operation),
        config=config,
        disks=_disks(hardware.get("disks"), operation),
        bios_type=_value(bios, "biostype", str, operation),
        tpm_enabled=bool(_value(advanced, "tpmenabled", bool, operation)),
        encrypted=bool(_value(advanced, "encrypted", bool, operation)),
        datastore_id=_value(conf, "datastoreid", str, operation),
    )


def _within(levels: int, value: object) -> bool:
    """Whether JSON is nested no deeper than that."""
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_within(levels - 1, each) for each in inner)


def _named(members: Mapping[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    return {name.replace("_", "").lower(): value for name, value in members.items()}


def _members(raw: msgspec.Raw | None, operation: str) -> dict[str, msgspec.Raw]:
    return {} if raw is None else _named(decoded(raw, dict[str, msgspec.Raw] | None, operation) or {})


def _value(members: Mapping[str, msgspec.Raw], name: str, kind: Any, operation: str) -> Any:
    return decoded(members[name], kind | None, operation) if name in members else None


def _checkpoint(raw: msgspec.Raw | None, operation: str) -> str | None:
    value: str | int | None = None if raw is None else decoded(raw, str | int | None, operation)
    try:
        checkpoint = checked_checkpoint(str(value or 0))
    except UsageError as error:
        raise malformed(operation, error) from None
    return None if checkpoint == "0" else checkpoint


def _disk_checkpoints(raw: msgspec.Raw | None, operation: str) -> dict[str, str]:
    if raw is None:
        return {}
    found = {}
    for entry in decoded(raw, list[dict[str, msgspec.Raw]] | None, operation) or []:
        members = _named(entry)
        checkpoint = _checkpoint(members.get("checkpointid"), operation)
        disk = _value(members, "id", str, operation)
        if checkpoint is not None and disk is not None:
            found[answered_id("disk_id", disk)] = checkpoint
    return found


def _disks(raw: msgspec.Raw | None, operation: str) -> tuple[SnapshotDisk, ...]:
    entries: Sequence[dict[str, msgspec.Raw]] = (
        () if raw is None else decoded(raw, list[dict[str, msgspec.Raw]] | None, operation) or ()
    )
    disks = []
    for entry in entries:
        members = _named(entry)
        disk = answered_id("disk_id", _value(members, "deviceid", str, operation) or "")
        size = _bytes(
            _value(members, "sizemb", float, operation),
            _value(members, "sizegb", float, operation),
        )
        advanced = _members(members.get("advancedconfig"), operation)
        serial = _value(advanced, "serialnumber", str, operation) or None
        disks.append(SnapshotDisk(device_id=disk, size=size, serial=serial))
    if len({disk.device_id for disk in disks}) != len(disks):
        raise malformed(operation, "a disk is there twice")
    return tuple(disks)


def _bytes(size_mb: float | None, size_gb: float | None) -> int | None:
    """A size in bytes; megabytes are told more exactly than gigabytes."""
    if size_mb is not None:
        return _scaled(size_mb, MB)
    return None if size_gb is None else _scaled(size_gb, GB)


def _scaled(size: float, unit: int) -> int | None:
    """None for what can be no size: 63 TB are the most that the platform allows."""
    return round(size * unit) if 0 < size * unit < 1 << 60 else None
