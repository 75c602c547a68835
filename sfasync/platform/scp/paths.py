"""Where each operation of the platform is: method and path, newest first.

Each path carries the date of its own version, and several can be there at once. A path that answers 404 is followed by
the next. An operator whose platform has an operation elsewhere says so in the configuration, by the operation's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

from ...errors import PlatformError, UsageError, printable


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing the platform can be asked for.

    Attributes:
        method: Of HTTP.
        paths: Templates; the first that is there is used.
    """

    method: str
    paths: tuple[str, ...]


def _get(*paths: str) -> Operation:
    return Operation("GET", paths)


def _post(*paths: str) -> Operation:
    return Operation("POST", paths)


def _put(*paths: str) -> Operation:
    return Operation("PUT", paths)


def _delete(*paths: str) -> Operation:
    return Operation("DELETE", paths)


_SERVER = "/janus/20180725/servers/{server_id}"
_SNAPSHOT = _SERVER + "/snapshots/{snapshot_id}"
_RESOURCE = "/janus/20180725/backup-resources/{resource_id}"

OPERATIONS: Final[Mapping[str, Operation]] = MappingProxyType(
    {
        # who we are
        "public-key": _get("/janus/public-key"),
        "authenticate": _post("/janus/authenticate"),
        "public-key-v2": _get("/janus/v2/public-key"),
        "authenticate-v2": _post("/janus/v2/authenticate"),
        # the platform and what it manages
        "platform": _get("/janus/20180725/platform"),
        "azs": _get("/janus/20180725/azs"),
        "clusters": _get("/janus/20210725/clusters"),
        "hosts": _get("/janus/20240725/hosts"),
        "host-interfaces": _get("/janus/20180725/hosts/{host_id}/interfaces"),
        "storages": _get("/janus/20200725/storages"),
        # virtual machines
        "servers": _get(*(f"/janus/{version}/servers" for version in (20240725, 20200725, 20190725, 20180725))),
        "server": _get("/janus/20240725/servers/{server_id}"),
        "server-create": _post("/janus/20180725/servers/config"),
        "server-edit": _put(_SERVER + "/config"),
        "server-delete": _delete(_SERVER),
        "server-start": _post(_SERVER + "/start"),
        "server-stop": _post(_SERVER + "/stop"),
        # snapshots
        "snapshots": _get("/janus/20210725/servers/{server_id}/snapshots"),
        "snapshot-create": _post("/janus/20190725/servers/{server_id}/snapshots"),
        "snapshot": _get(_SNAPSHOT, "/janus/20240725/servers/{server_id}/snapshots/{snapshot_id}"),
        "snapshot-delete": _delete(_SNAPSHOT),
        # changed blocks
        "cbt-status": _get(_SERVER + "/cbt/status"),
        "cbt-set": _put(_SERVER + "/cbt/status"),
        "changed-areas": _get(_SERVER + "/cbt/changed-areas"),
        # backup resources: the lease on a VM
        "resource-create": _post("/janus/20180725/backup-resources"),
        "resource": _get(_RESOURCE),
        "resource-renew": _put(_RESOURCE),
        "resource-delete": _delete(_RESOURCE),
        # BIOS and TPM files
        "file-download": _get("/janus/20180725/clusters/{cluster_id}/files/download"),
        "file-upload": _post("/janus/20180725/clusters/{cluster_id}/files/upload"),
        # quick recovery
        "storage-attach": _post("/janus/20210725/storages/attachnfs", "/janus/20180725/storages/attachnfs"),
        "storage-detach": _delete("/janus/20180725/storages/{storage_id}"),
        "rebase": _post(_SERVER + "/rebase-backing-file"),
        "merge": _post(_SERVER + "/merge-backup-data"),
        # what takes longer
        "task": _get("/janus/20180725/tasks/{task_id}"),
        "tasks": _get("/janus/20180725/tasks"),
    }
)

HCI: Final[Mapping[str, Operation]] = MappingProxyType(
    {
        "snapshot": _get("/hci/vt/api/v1/snapshots/{snapshot_id}"),
        "storage-attach": _post("/hci/vt/api/v1/datastores/actions/attachnfs"),
        "rebase": _post("/hci/vt/api/v1/vms/{server_id}/actions/rebasebackingfile"),
    }
)
"""What is known of a cluster that is asked without the platform above it: hardly anything, and not how to log in."""

_FIELD = re.compile(r"\{([a-z_]+)\}")
_TEMPLATE = re.compile(r"(/([A-Za-z0-9._~-]+|\{[a-z_]+\}))+")
_CHECKPOINT = re.compile(r"[0-9]{1,20}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,199}")


def check_overrides(overrides: Mapping[str, str]) -> None:
    """See that paths of a configuration name operations that there are, and have their ids in them.

    Raises:
        UsageError: One does not.
    """
    for name, path in overrides.items():
        if name not in OPERATIONS:
            raise UsageError(f"there is no operation '{printable(name)}'; there are {', '.join(sorted(OPERATIONS))}")
        ids = _FIELD.findall(OPERATIONS[name].paths[0])
        given = _FIELD.findall(path)
        # The last id is what the operation is about; a platform may find the others by it.
        if not _TEMPLATE.fullmatch(path) or "/.." in path or not set(ids[-1:]) <= set(given) <= set(ids):
            needed = f"{{{ids[-1]}}} in it" if ids else "no id in it"
            raise UsageError(f"the path of '{name}', '{printable(path)}', must begin with / and have {needed}")


class Paths:
    """The paths of one platform; remembers which of several was there.

    Args:
        overrides: Paths to use instead, by operation.
        hci: Whether it is a cluster, and not the platform above it.
        encode_colon: Whether a colon in an id is sent as ``%3A``.
    """

    def __init__(self, overrides: Mapping[str, str], *, hci: bool = False, encode_colon: bool = False) -> None:
        known = HCI if hci else OPERATIONS
        self._paths = {name: operation.paths for name, operation in known.items()}
        self._paths.update((name, (path,)) for name, path in overrides.items())
        self._safe = "@" if encode_colon else "@:"

    def method(self, operation: str) -> str:
        """The method of HTTP."""
        return OPERATIONS[operation].method

    def candidates(self, operation: str) -> tuple[str, ...]:
        """Templates to try, in order.

        Raises:
            PlatformError: It is not known where the operation is.
        """
        try:
            return self._paths[operation]
        except KeyError:
            raise PlatformError(
                f"'{operation}' is not supported on this platform: no document says where it is; if you know, give its"
                " path in the settings"
            ) from None

    def found(self, operation: str, template: str) -> None:
        """A path answered: from now on it is the one, and a 404 of it means what it says."""
        self._paths[operation] = (template,)

    def fill(self, template: str, ids: Mapping[str, str]) -> str:
        """The path with its ids, as it goes on the wire.

        Raises:
            UsageError: An id cannot be one of the platform.
        """
        return _FIELD.sub(lambda match: quote(checked_id(match[1], ids[match[1]]), safe=self._safe), template)


def checked_id(what: str, value: str) -> str:
    """An id of ours, or of the platform's, that may stand in a path.

    Raises:
        UsageError: It is none: empty, too long, or made to lead somewhere else.
    """
    if not _ID.fullmatch(value) or ".." in value:
        raise UsageError(f"'{printable(value)}' is no {what.replace('_', ' ')}")
    return value


def checked_checkpoint(value: str) -> str:
    """A checkpoint that may be asked for.

    Raises:
        UsageError: It is no number of up to 64 bits.
    """
    if not _CHECKPOINT.fullmatch(value) or int(value) >= 1 << 64:
        raise UsageError(f"checkpoint '{printable(value)}' is no number of 64 bits")
    return str(int(value))


def answered_id(what: str, value: str) -> str:
    """An id that the platform gave.

    Raises:
        PlatformError: It could not stand in a path.
    """
    try:
        return checked_id(what, value)
    except UsageError as error:
        raise PlatformError(f"the platform answered with an id that cannot be one: {error}") from None
