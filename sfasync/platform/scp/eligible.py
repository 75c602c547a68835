"""Which VMs can be backed up, and what somebody who does should know. Pure.

The rules are the vendor's ("Add VMs to a Backup Policy"): VMs of users on HCI, whose disks are served in the way that
tracks changes, without snapshots inside their disk files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ...errors import printable
from .answers import Server, Snapshot

_KINDS: Final = ("vm", "derive")
_STATES: Final = ("running", "stopped")
_PROXY: Final = "Backup Proxy"
_INTERNAL: Final = "qcow2"
_REVERTS: Final = 1


def refusal(server: Server, snapshots: Iterable[Snapshot] = (), *, encrypted_allowed: bool) -> str | None:
    """Why a VM cannot be backed up, as one sentence; None if it can.

    Args:
        server: The VM; all its members are known only from its own page, not from a list.
        snapshots: Those that it has.
        encrypted_allowed: Whether its owner knows that the backup of an encrypted VM is of use only with its key.
    """
    if server.type not in (None, "hci"):
        return f"it is of type '{printable(server.type)}', and only VMs of HCI clusters can be backed up"
    if server.vmtype not in (None, *_KINDS):
        return f"it is a '{printable(server.vmtype)}' of the platform's own, no VM of a user"
    if server.os_name == _PROXY:
        return "it is a backup proxy"
    if server.turbo:
        return "its disks are in turbo mode (SPDK), in which changes are not tracked"
    if server.application == "desk" and server.revert_mode == _REVERTS:
        return "it is a desktop that is put back at each start"
    if any(snapshot.type == _INTERNAL for snapshot in snapshots):
        return "it has snapshots inside its disk files; delete these first"
    if server.encrypted and not encrypted_allowed:
        return (
            "it is encrypted, so its backup would be of use only where its key is; allow that with "
            "encrypted_allowed = true"
        )
    return None


def busy(server: Server) -> str | None:
    """Why a VM cannot be worked with just now; None if it can."""
    if server.instant_vm:
        return "a quick recovery of it is going on"
    if server.status not in (None, *_STATES):
        return f"it is {printable(server.status)}, neither running nor stopped"
    return None


def is_off(server: Server) -> bool:
    """Whether its disks can be written."""
    return server.status == "stopped" or (server.status is None and server.power_state == "off")


def warnings(server: Server) -> tuple[str, ...]:
    """What somebody who backs it up should know, one line each."""
    found = []
    if server.backup_policy_enable:
        found.append(
            "it is in a backup policy of the platform, whose own tasks may end ours; there is no promise of how recent "
            "the last backup is"
        )
    if server.encrypted:
        found.append("it is encrypted: its backup can only be restored where its key is")
    return tuple(found)
