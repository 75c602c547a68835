"""Where disks are served, from a table.

No public interface of the platform tells the address of its NBD service, so somebody who knows has to: a table in code
or in a TOML file. Disks that are not in the table have a template, if there is one::

    host = "hci-01.example"                     # for all disks that are not listed below
    port = 10809
    export = "{vm_id}/{disk_id}@{snapshot_id}"
    connections = 1                             # most to one disk, where the service allows several at all

    [tls]                                       # for connections of mode nbdssl
    style = "direct"                            # TLS from the first byte; "starttls" is the default
    ca_file = "hci-ca.pem"                      # relative to this file
    hostname = "hci.example"                    # what the certificate must carry; the host connected to if absent
    check_hostname = true                       # false: any certificate of the authorities in ca_file is good

    [[disks]]
    vm_id = "2786761839857"
    disk_id = "ide0"
    uri = "nbds://10.0.0.7/ide0"                # or host, port, export: what differs from the above
"""

from __future__ import annotations

import string
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from .errors import UsageError, printable
from .models import MOST_CONNECTIONS, EndpointRequest, ExportAddress, TlsPolicy, TlsStyle
from .nbd.uri import parse_uri

_FIELDS: Final = ("vm_id", "disk_id", "snapshot_id", "server_id", "resource_id")
_FILE_LIMIT: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointTemplate:
    """Addresses that follow a rule.

    Attributes:
        host: Host name or address of the NBD service.
        port: Its TCP port; 10809 is NBD's own and may not be the platform's.
        export: Name of the export, with ``{vm_id}``, ``{disk_id}``, ``{snapshot_id}``, ``{server_id}`` and
            ``{resource_id}`` replaced; a brace is written twice.
        tls: Policy for mode ``nbdssl``; None where there is only plain NBD.
        connections: Most connections to one disk; None for as many as the caller's limits allow.
        rate: Bytes a second that the service gives to one connection; None where that is not known.
    """

    host: str
    port: int = 10809
    export: str = ""
    tls: TlsPolicy | None = None
    connections: int | None = None
    rate: int | None = None

    def __post_init__(self) -> None:
        _pieces(self.export)

    def address(self, request: EndpointRequest) -> ExportAddress:
        """The address of a disk.

        Raises:
            UsageError: The request lacks something that the template needs.
        """
        if request.mode == "nbdssl" and self.tls is None:
            raise UsageError(f"no TLS is described for {printable(self.host)}; mode nbdssl needs it")
        export = "".join(text + _value(request, field) for text, field in _pieces(self.export))
        return ExportAddress(
            host=self.host,
            port=self.port,
            export=export,
            tls=self.tls if request.mode == "nbdssl" else None,
            connections=self.connections,
            rate=self.rate,
        )


Endpoint: TypeAlias = str | ExportAddress | EndpointTemplate
"""An NBD URI, an address, or a rule that makes one."""


class TableResolver:
    """An `EndpointResolver` that looks addresses up.

    Args:
        table: Where each disk is, by (VM id, disk id).
        otherwise: The rule for disks that are not in the table; None to refuse them.

    Raises:
        UsageError: A URI of the table is malformed, or names a file that is missing.
    """

    def __init__(
        self, table: Mapping[tuple[str, str], Endpoint] | None = None, *, otherwise: EndpointTemplate | None = None
    ) -> None:
        self._table = {
            disk: parse_uri(place) if isinstance(place, str) else place for disk, place in (table or {}).items()
        }
        self._otherwise = otherwise

    def __repr__(self) -> str:
        return f"<TableResolver of {len(self._table)} disks>"

    @classmethod
    def from_file(cls, path: Path | str) -> TableResolver:
        """The table of a TOML file, which is read now; blocks for that.

        Raises:
            UsageError: The file cannot be read, or what it says cannot be used; the message names the place.
        """
        path = Path(path)
        try:
            return _Reader(path.parent, _parsed(path)).resolver()
        except UsageError as error:
            raise UsageError(f"{printable(str(path))}: {error}", path=str(path)) from error

    async def resolve(self, request: EndpointRequest) -> ExportAddress:
        """As `EndpointResolver.resolve`; does not wait."""
        place = self._table.get((request.vm_id, request.disk_id), self._otherwise)
        if place is None:
            raise UsageError(
                f"the table has no address for disk '{printable(request.disk_id)}' of VM '{printable(request.vm_id)}'",
                disk=request.disk_id,
            )
        return place.address(request) if isinstance(place, EndpointTemplate) else place


# --- templates -------------------------------------------------------------------------------------------------------


def _pieces(template: str) -> list[tuple[str, str | None]]:
    """The template as pairs of text and the field behind it.

    Raises:
        UsageError: It is malformed, or has a field that is not known.
    """
    pieces: list[tuple[str, str | None]] = []
    try:
        for text, field, spec, conversion in string.Formatter().parse(template):
            if field is not None and (field not in _FIELDS or spec or conversion):
                known = ", ".join(f"{{{name}}}" for name in _FIELDS)
                raise UsageError(f"the template of the export has '{{{printable(field)}}}'; there are {known}")
            pieces.append((text, field))
    except ValueError as error:
        raise UsageError(f"the template of the export is malformed: {error}; write a brace twice") from error
    return pieces


def _value(request: EndpointRequest, field: str | None) -> str:
    if field is None:
        return ""
    value: str | None = getattr(request, field)
    if value is None:
        raise UsageError(
            f"the name of the export needs a {field}, and disk '{printable(request.disk_id)}' is opened without one",
            disk=request.disk_id,
        )
    return value


# --- the file --------------------------------------------------------------------------------------------------------

_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class _Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    style: TlsStyle = "starttls"
    ca_file: str | None = None
    ca_text: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    hostname: str | None = None
    check_hostname: bool = True
    fingerprint: str | None = None
    psk_file: str | None = None
    psk_identity: str | None = None


class _Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    vm_id: str
    disk_id: str
    uri: str | None = None
    host: str | None = None
    port: _Port | None = None
    export: str | None = None


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str | None = None
    port: _Port = 10809
    export: str = ""
    tls: _Tls | None = None
    connections: Annotated[int, msgspec.Meta(ge=1, le=MOST_CONNECTIONS)] | None = None
    disks: list[_Disk] = []


def _parsed(path: Path) -> _Table:
    try:
        with path.open("rb") as file:
            text = file.read(_FILE_LIMIT + 1)
        if len(text) > _FILE_LIMIT:
            raise UsageError(f"more than {_FILE_LIMIT} bytes are no table of disks")
        return msgspec.convert(tomllib.loads(text.decode()), _Table)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # TOML's, UTF-8's and msgspec's errors are values errors
        raise UsageError(f"is not a table of disks: {printable(str(error))}") from error


class _Reader:
    """Turns what a file says into a resolver."""

    def __init__(self, directory: Path, table: _Table) -> None:
        self._directory = directory
        self._table = table
        self._policy = None if table.tls is None else self._tls(table.tls)

    def resolver(self) -> TableResolver:
        places: dict[tuple[str, str], Endpoint] = {}
        for disk in self._table.disks:
            key = (disk.vm_id, disk.disk_id)
            name = f"disk '{printable(disk.disk_id)}' of VM '{printable(disk.vm_id)}'"
            if key in places:
                raise UsageError(f"{name} is there twice")
            try:
                places[key] = self._place(disk)
            except UsageError as error:
                raise UsageError(f"{name}: {error}") from error
        host = self._table.host
        return TableResolver(places, otherwise=None if host is None else self._template(host))

    def _place(self, disk: _Disk) -> Endpoint:
        if disk.uri is not None:
            if (disk.host, disk.port, disk.export) != (None, None, None):
                raise UsageError("a URI says host, port and export already")
            return parse_uri(disk.uri)
        host = disk.host or self._table.host
        if host is None:
            raise UsageError("has neither a URI nor a host")
        return self._template(host, disk.port, disk.export)

    def _template(self, host: str, port: int | None = None, export: str | None = None) -> EndpointTemplate:
        return EndpointTemplate(
            host=host,
            port=self._table.port if port is None else port,
            export=self._table.export if export is None else export,
            tls=self._policy,
            connections=self._table.connections,
        )

    def _tls(self, said: _Tls) -> TlsPolicy:
        values: dict[str, Any] = {field.name: getattr(said, field.name) for field in fields(TlsPolicy)}
        for name in ("ca_file", "cert_file", "key_file", "psk_file"):
            if values[name] is not None:
                values[name] = self._directory / values[name]
        return TlsPolicy(**values)
