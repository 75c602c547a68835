"""What the lab has: machines with disks, snapshots and recorded changes, as they are kept in a file.

Every snapshot of a machine whose changes are tracked ends one record of changes and begins the next. A checkpoint names
the instant between two records, as ``version << 32 | number``: a reset begins another version, and what was named in an
earlier one has expired::

    enable ──record 1── snapshot A ──record 2── snapshot B ──record 3── ...
                        checkpoint 1,1          checkpoint 1,2
                                  └── changed from A to B ──┘
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ArgumentError, StorageError, UsageError, printable
from ..files import storage_error
from ..units import MiB, parse_size

_SPECIFICATION = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63}):(?:(?P<count>[1-9][0-9]?)x)?(?P<size>[0-9]+[KMGT])"
)
_MOST_DISKS = 64
_SLOTS = tuple(f"ide{number}" for number in range(_MOST_DISKS + 1) if number != 2)
"""Ids of disks; `ide2` is the CD-ROM's slot."""

_STATE = "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """A machine to be made.

    Attributes:
        name: Its name.
        disks: Sizes of its disks in bytes.
        running: Whether it is switched on.
        facts: Members of its entry in the list of servers that are otherwise than usual (``{"encrypted": 1}``).
        settings: Members of its configuration that are otherwise than usual.
        files: Its custom BIOS and its TPM's state, by kind (`BIOS`, `TPM`).
    """

    name: str
    disks: tuple[int, ...]
    running: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> MachineSpec:
        """A machine as the command line describes it: ``web-01:2x4G`` has two disks of 4 GiB, ``web-01:512M`` has one.

        Raises:
            UsageError: It is described otherwise.
        """
        found = _SPECIFICATION.fullmatch(text)
        if found is None:
            raise UsageError(f"'{printable(text)}' does not describe a VM; NAME:COUNTxSIZE does, as web-01:2x4G")
        size = parse_size(found["size"])
        if size % MiB:
            raise UsageError(f"'{printable(text)}': the platform counts disks in MiB")
        return cls(name=found["name"], disks=(size,) * int(found["count"] or 1))

    def __post_init__(self) -> None:
        if not 1 <= len(self.disks) <= _MOST_DISKS or min(self.disks) < 512 or any(size % 512 for size in self.disks):
            raise ArgumentError(f"VM {self.name!r} needs 1 to {_MOST_DISKS} disks of whole sectors")


@dataclass(slots=True, kw_only=True)
class Disk:
    """A disk of a machine.

    Attributes:
        id: Its id within the machine.
        node: Its name within the storage; its image is the file of that name.
        size: Bytes.
        bitmap: Marks what is changed since the last checkpoint; None while changes are not tracked.
    """

    id: str
    node: str
    size: int
    bitmap: str | None = None


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """A frozen state of a machine.

    Attributes:
        id: Its id.
        name: As its creator named it.
        description: As its creator described it.
        created: Seconds since the epoch.
        checkpoint: The instant, among recorded changes; 0 where none are.
        disks: Sizes of its disks in bytes, by id.
        config: The machine's configuration.
        files: The machine's other files.
    """

    id: str
    name: str
    description: str
    created: float
    checkpoint: int
    disks: dict[str, int]
    config: dict[str, Any]
    files: dict[str, bytes]


@dataclass(slots=True, kw_only=True)
class Changes:
    """A record of changes, which ended at a checkpoint: where each tracked disk was written, by disk."""

    checkpoint: int
    areas: dict[str, list[tuple[int, int]]]


@dataclass(slots=True, kw_only=True)
class Machine:
    """A VM.

    Attributes:
        id: Its id on the management plane, a UUID.
        number: Its id on the cluster.
        name: Its name.
        running: Whether it is switched on.
        disks: Its disks.
        facts: As of `MachineSpec`.
        settings: As of `MachineSpec`.
        files: As of `MachineSpec`.
        version: Of its change tracking; a reset makes another.
        number_of_checkpoints: Within this version.
        expired: Whether tracking has to be reset before it answers again.
        snapshots: From old to new.
        changes: From old to new; they outlive the snapshots.
    """

    id: str
    number: int
    name: str
    running: bool
    disks: list[Disk]
    facts: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    version: int = 1
    number_of_checkpoints: int = 0
    expired: bool = False
    snapshots: list[Snapshot] = field(default_factory=list)
    changes: list[Changes] = field(default_factory=list)

    @property
    def tracked(self) -> bool:
        """Whether changes of some disk are."""
        return any(disk.bitmap is not None for disk in self.disks)

    def disk(self, disk_id: str) -> Disk | None:
        """The disk of that id, if there is one."""
        return next((disk for disk in self.disks if disk.id == disk_id), None)

    def snapshot(self, snapshot_id: str) -> Snapshot | None:
        """The snapshot of that id, if there is one."""
        return next((snapshot for snapshot in self.snapshots if snapshot.id == snapshot_id), None)

    def free_slot(self) -> str:
        """An id for another disk."""
        return next(slot for slot in _SLOTS if self.disk(slot) is None)

    def changed(self, disk_id: str, since: int, until: int) -> list[tuple[int, int]]:
        """What of a disk was written between two checkpoints, in order, apart from each other."""
        areas = sorted(
            area
            for record in self.changes
            if since < record.checkpoint <= until
            for area in record.areas.get(disk_id, ())
        )
        joined: list[tuple[int, int]] = []
        for start, length in areas:
            if joined and start <= sum(joined[-1]):
                joined[-1] = (joined[-1][0], max(sum(joined[-1]), start + length) - joined[-1][0])
            else:
                joined.append((start, length))
        return joined


@dataclass(slots=True, kw_only=True)
class Inventory:
    """Everything that outlives the process of a lab.

    Attributes:
        cluster_id: The one cluster.
        zone_id: The one resource pool.
        machines: The VMs.
        next_number: Of a VM on the cluster.
    """

    cluster_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    zone_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    machines: list[Machine] = field(default_factory=list)
    next_number: int = 2786761839857

    def machine(self, reference: str) -> Machine | None:
        """The machine of that id, number or name, if there is exactly one."""
        found = [each for each in self.machines if reference in (each.id, str(each.number), each.name)]
        return found[0] if len(found) == 1 else None

    @classmethod
    def load(cls, directory: Path) -> Inventory:
        """What was kept in a directory; a new one, without machines, if nothing was.

        Raises:
            StorageError: It cannot be read, or is not what `save` writes.
        """
        path = directory / _STATE
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise storage_error(error, "read", str(path)) from error
        except msgspec.MsgspecError as error:
            raise StorageError(f"{printable(str(path))} is damaged: {printable(str(error))}", path=str(path)) from error

    def save(self, directory: Path) -> None:
        """Keep it; what was kept before is there until all of this is.

        Raises:
            StorageError: It cannot be written.
        """
        path = directory / _STATE
        try:
            path.with_suffix(".new").write_bytes(msgspec.json.encode(self))
            os.replace(path.with_suffix(".new"), path)
        except OSError as error:
            raise storage_error(error, "write", str(path)) from error
