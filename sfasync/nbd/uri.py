"""NBD URIs, as https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md and nbd_connect_uri(3) have them.

::

    nbd://host[:port]/export                       TCP
    nbds://[identity@]host[:port]/export           TCP with TLS
    nbd+unix:///export?socket=PATH                 Unix socket
    nbds+unix:///export?socket=PATH                Unix socket with TLS

    socket=PATH             the Unix socket
    tls-certificates=DIR    ca-cert.pem; client-cert.pem and client-key.pem, both or neither
    tls-psk-file=FILE       pre-shared keys; the identity before the @ says which
    tls-hostname=NAME       the name that the server's certificate must carry

What is not understood is refused: a parameter that was meant to make a connection safe must not be passed over. That
`tls-verify-peer=0` is refused is on purpose; there is no unverified TLS here.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

from ..errors import UriError, printable
from ..models import ExportAddress, TlsPolicy
from . import const

_CA = "ca-cert.pem"
_CERT = "client-cert.pem"
_KEY = "client-key.pem"

_TLS_PARAMETERS = ("tls-certificates", "tls-psk-file", "tls-hostname")
_PARAMETERS = ("socket", *_TLS_PARAMETERS)

_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def parse_uri(text: str, *, is_file: Callable[[Path], bool] = os.path.isfile) -> ExportAddress:
    """The address that a URI names.

    Args:
        text: The URI.
        is_file: Tells whether a file is there; certificates and key files that are named must be.

    Raises:
        UriError: The URI is malformed, has something in it that we do not understand, or names a file that is missing.
            The message names it, and never carries a password.
    """
    parts = _split(text)
    scheme = parts.scheme
    if scheme not in ("nbd", "nbds", "nbd+unix", "nbds+unix"):
        raise UriError(f"{_shown(scheme)} is no NBD scheme; use nbd, nbds, nbd+unix or nbds+unix")
    tls, unix = scheme.startswith("nbds"), scheme.endswith("+unix")
    parameters = _parameters(parts.query)
    identity = _identity(parts)
    for name in parameters:
        if name == "socket" and not unix:
            raise UriError(f"'socket' belongs to {scheme}+unix, not to {scheme}")
        if name in _TLS_PARAMETERS and not tls:
            raise UriError(f"{name!r} needs TLS; use {scheme.replace('nbd', 'nbds')}")
    if identity is not None and "tls-psk-file" not in parameters:
        raise UriError("a user name is the identity of a pre-shared key; it needs 'tls-psk-file'")
    policy = _policy(parameters, identity, is_file) if tls else None
    export = _unquoted("export name", parts.path.removeprefix("/"))
    if unix:
        return ExportAddress(socket=_socket(parts, parameters), export=export, tls=policy)
    return ExportAddress(host=_host(parts), port=_port(parts), export=export, tls=policy)


def format_uri(address: ExportAddress) -> str:
    """The URI that `parse_uri` turns into this address.

    Raises:
        UriError: No URI says what the address says: a fingerprint, certificates as text or not in one directory under
            their usual names, one whose name does not matter, TLS from the first byte, or a number of connections.
    """
    if address.connections is not None:
        raise UriError("a URI cannot say how many connections are allowed")
    tls = address.tls
    scheme = ("nbd" if tls is None else "nbds") + ("+unix" if address.socket is not None else "")
    host = f"[{address.host}]" if address.host and ":" in address.host else quote(address.host or "", safe="")
    port = f":{address.port}" if address.socket is None and address.port != const.DEFAULT_PORT else ""
    user = f"{quote(tls.psk_identity, safe='')}@" if tls is not None and tls.psk_identity is not None else ""
    parameters = [] if address.socket is None else [("socket", str(address.socket))]
    if tls is not None:
        parameters += _policy_parameters(tls)
    query = "&".join(f"{name}={quote(value, safe='/')}" for name, value in parameters)
    return f"{scheme}://{user}{host}{port}/{quote(address.export)}" + (f"?{query}" if query else "")


# --- parts of a URI --------------------------------------------------------------------------------------------------


def _split(text: str) -> SplitResult:
    if any(c <= " " or c == "\x7f" for c in text):
        raise UriError(f"{_shown(text)} has blanks or control characters in it; write them as %20 and the like")
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise UriError(f"a malformed URI: {error}") from error
    if not parts.scheme:
        raise UriError(f"{_shown(text)} is no NBD URI; it looks like nbd://host/export")
    if parts.password is not None:
        raise UriError("a URI must not carry a password; keys belong into 'tls-psk-file'")
    if parts.fragment or text.endswith("#"):
        raise UriError("an NBD URI has no fragment; write # as %23")
    return parts


def _parameters(query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        name, equals, value = pair.partition("=")
        if name not in _PARAMETERS:
            raise UriError(f"parameter {_shown(name)} is not known; there are {', '.join(_PARAMETERS)}")
        if name in found:
            raise UriError(f"parameter {name!r} is given twice")
        found[name] = _unquoted(f"parameter {name!r}", value)
        if not equals or not found[name]:
            raise UriError(f"parameter {name!r} has no value")
    return found


def _identity(parts: SplitResult) -> str | None:
    if parts.username is None:
        return None
    identity = _unquoted("user name", parts.username)
    if not identity:
        raise UriError("the user name is empty")
    return identity


def _host(parts: SplitResult) -> str:
    host = _unquoted("host", parts.hostname or "")
    if not host:
        raise UriError(f"{parts.scheme} needs a host: {parts.scheme}://host/export")
    return host


def _port(parts: SplitResult) -> int:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise UriError("the port is not a number from 1 to 65535")
    return const.DEFAULT_PORT if port is None else port


def _socket(parts: SplitResult, parameters: dict[str, str]) -> Path:
    if parts.hostname or parts.netloc.rpartition("@")[2]:
        raise UriError(f"{parts.scheme} takes no host; write {parts.scheme}:///export?socket=PATH")
    if "socket" not in parameters:
        raise UriError(f"{parts.scheme} needs the parameter 'socket'")
    return Path(parameters["socket"])


def _unquoted(what: str, text: str) -> str:
    if _BROKEN_ESCAPE.search(text):
        raise UriError(f"the {what} has a % that does not begin an escape; write it as %25")
    try:
        plain = unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise UriError(f"the {what} is not UTF-8") from error
    if "\0" in plain:
        raise UriError(f"the {what} has a zero byte in it")
    return plain


def _shown(text: str) -> str:
    """Text of the user's for a message, without what might be a password."""
    head, at, tail = text.rpartition("@")
    shown = f"{head.partition(':')[0]}:***@{tail}" if at else text
    return f"'{printable(shown)}'"


# --- TLS -------------------------------------------------------------------------------------------------------------


def _policy(parameters: dict[str, str], identity: str | None, is_file: Callable[[Path], bool]) -> TlsPolicy:
    hostname = parameters.get("tls-hostname")
    psk_file = parameters.get("tls-psk-file")
    directory = parameters.get("tls-certificates")
    if psk_file is not None:
        if directory is not None or hostname is not None:
            raise UriError("'tls-psk-file' takes the place of certificates; leave the others out")
        return TlsPolicy(psk_file=_present(Path(psk_file), is_file), psk_identity=identity)
    if directory is None:
        return TlsPolicy(hostname=hostname)
    ca, cert, key = (Path(directory, name) for name in (_CA, _CERT, _KEY))
    _present(ca, is_file)
    if not is_file(cert) and not is_file(key):
        return TlsPolicy(ca_file=ca, hostname=hostname)
    return TlsPolicy(ca_file=ca, cert_file=_present(cert, is_file), key_file=_present(key, is_file), hostname=hostname)


def _present(path: Path, is_file: Callable[[Path], bool]) -> Path:
    if not is_file(path):
        raise UriError(f"{printable(str(path))} is missing", path=str(path))
    return path


def _policy_parameters(policy: TlsPolicy) -> Iterator[tuple[str, str]]:
    """The parameters that say what a policy says."""
    if policy.fingerprint is not None or policy.ca_text is not None:
        raise UriError("a URI cannot carry a fingerprint, nor certificates as text")
    if not policy.check_hostname:
        raise UriError("a URI cannot say that the name in the certificate does not matter")
    if policy.style != "starttls":
        raise UriError("a URI cannot ask for TLS from the first byte")
    if policy.psk_file is not None:
        yield "tls-psk-file", str(policy.psk_file)
    files = [(policy.ca_file, _CA), (policy.cert_file, _CERT), (policy.key_file, _KEY)]
    named = [(path, name) for path, name in files if path is not None]
    if named:
        directory = named[0][0].parent
        if policy.ca_file is None or any(path != directory / name for path, name in named):
            raise UriError(f"a URI can only name a directory with {_CA}, {_CERT} and {_KEY}")
        yield "tls-certificates", str(directory)
    if policy.hostname is not None:
        yield "tls-hostname", policy.hostname
