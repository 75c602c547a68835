"""The configuration of a VM, as a backup keeps it and as the calls that make or change a VM want it. Pure.

It is JSON as it came with the snapshot and is not modelled here: what is not named below goes back as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import msgspec

from ...errors import IntegrityError, UsageError

Config: TypeAlias = dict[str, Any]

_NOT_EDITED: Final = ("az_id", "datastore_id", "host_id", "template_id", "source")
"""What a VM that is there keeps, by the platform's rules."""

_OF_ONE_VM: Final = ("mac_address", "port_id", "ipv4", "ipv6")
"""What a network adapter must not have twice in a network."""

_SOURCE: Final = "CREATEBYOTHER"
_CUSTOM: Final = "CUSTOM"


def parse(config: bytes | None) -> Config:
    """The configuration that a backup has.

    Raises:
        UsageError: It has none.
        IntegrityError: It is none.
    """
    if config is None:
        raise UsageError("the backup has no configuration of a VM; its disks can be restored to one that is there")
    try:
        return msgspec.json.decode(config, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise IntegrityError("the configuration in the backup is no JSON object") from error


def for_the_same_vm(config: Config) -> Config:
    """What brings a VM back to its configuration; where it is, it stays."""
    return {name: value for name, value in config.items() if name not in _NOT_EDITED and value not in (None, "")}


def for_a_new_vm(
    config: Config, *, name: str, az_id: str, datastore_id: str, beside: bool, bios_path: str | None
) -> Config:
    """What makes a VM like the one in the backup.

    Args:
        config: Of the backup.
        name: Of the new VM.
        az_id: The resource pool.
        datastore_id: The datastore.
        beside: The VM of the backup is there still: addresses and identity that must be unique are left to the
            platform.
        bios_path: Where the BIOS file was put; None if there is none.
    """
    new = {member: value for member, value in config.items() if value not in (None, "")}
    new |= {"name": name, "az_id": az_id, "datastore_id": datastore_id, "source": _SOURCE}
    hardware: Config = dict(_object(new.get("hardware_option")))
    if beside:
        hardware["network_adapters"] = [_anonymous(adapter) for adapter in hardware.get("network_adapters") or ()]
        new["advanced_option"] = {
            member: value for member, value in _object(new.get("advanced_option")).items() if member != "uuid"
        }
    if bios_path is not None:
        hardware["bios"] = {**_object(hardware.get("bios")), "bios_type": _CUSTOM, "path": bios_path}
    return {**new, "hardware_option": hardware}


def _anonymous(adapter: object) -> Config:
    return {member: value for member, value in _object(adapter).items() if member not in _OF_ONE_VM}


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
