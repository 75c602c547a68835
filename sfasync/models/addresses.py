"""Where an NBD export is, and how its server and we prove who we are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from ..errors import UsageError
from .checks import within
from .options import MOST_CONNECTIONS
from .styles import TlsStyle


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsPolicy:
    """How a server proves who it is, and how we do. There is no way to switch verification off.

    Attributes:
        style: How TLS begins. `starttls` is NBD's own way; `direct` is for servers behind a TLS proxy, and some others.
        ca_file: Certificates (PEM) of the authorities to believe; None for those of the system.
        ca_text: The same certificates as text, in place of a file: PEM, or one in base64 without the lines around it.
        cert_file: Our certificate chain (PEM), where the server asks for one.
        key_file: The private key of `cert_file` (PEM).
        hostname: The name that the server's certificate must carry; None for the host connected to, and `localhost` on
            a Unix socket.
        check_hostname: Whether it must carry that name. Without, every certificate of the authorities is good; so they
            must be named, and not be those of the system.
        fingerprint: SHA-256 of the server's certificate (DER) in hex; when given, it must match as well.
        psk_file: Pre-shared keys, one `identity:hexkey` a line, as for nbdkit and qemu; needs Python 3.13.
        psk_identity: Which line of `psk_file` to use; None for the first.
    """

    style: TlsStyle = "starttls"
    ca_file: Path | None = None
    ca_text: str | None = field(default=None, repr=False)
    cert_file: Path | None = None
    key_file: Path | None = None
    hostname: str | None = None
    check_hostname: bool = True
    fingerprint: str | None = None
    psk_file: Path | None = None
    psk_identity: str | None = None

    def __post_init__(self) -> None:
        if self.style not in get_args(TlsStyle):
            raise UsageError(f"TLS style {self.style!r} is not known; there are {', '.join(get_args(TlsStyle))}")
        if self.ca_file is not None and self.ca_text is not None:
            raise UsageError("the certificates of authorities come from a file or as text, not both")
        if not self.check_hostname and self.ca_file is None and self.ca_text is None:
            raise UsageError("a certificate without the right name is only accepted from authorities that are given")

    def completed(self, default: TlsPolicy | None) -> TlsPolicy:
        """This policy; one that says neither whom to believe nor who we are has that from `default`."""
        own = (self.ca_file, self.ca_text, self.cert_file, self.fingerprint, self.psk_file)
        if default is None or any(value is not None for value in own):
            return self
        return replace(default, style=self.style, hostname=self.hostname)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportAddress:
    """Where an NBD export is: a TCP host and port, or a Unix socket, and the name of the export.

    Attributes:
        host: Host name or address; None on a Unix socket.
        port: TCP port; 10809 is NBD's own.
        socket: Path of a Unix socket; None over TCP.
        export: Name of the export; the empty name asks for the server's default.
        tls: Policy of a connection that must be TLS; None for a plain one.
        connections: Most connections that may be made to it at once; None for as many as the caller's limits allow.
        rate: Bytes a second that its server gives to one connection; None where that is not known. Nothing is slowed
            down to it: it tells what limited a job.
    """

    host: str | None = None
    port: int = 10809
    socket: Path | None = None
    export: str = ""
    tls: TlsPolicy | None = None
    connections: int | None = None
    rate: int | None = None

    def __post_init__(self) -> None:
        if (self.host is None) == (self.socket is None):
            raise UsageError("an export address has either a host or a Unix socket")
        if self.connections is not None:
            within("connections", self.connections, 1, MOST_CONNECTIONS)

    @property
    def tls_style(self) -> TlsStyle | None:
        """How TLS begins; None for a plain connection."""
        return None if self.tls is None else self.tls.style

    @property
    def peer(self) -> str:
        """The server, for messages: ``host:port`` or the path of the socket."""
        if self.socket is not None:
            return str(self.socket)
        return f"[{self.host}]:{self.port}" if ":" in (self.host or "") else f"{self.host}:{self.port}"
