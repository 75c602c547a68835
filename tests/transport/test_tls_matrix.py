"""T12, T13, T15: TLS with whomever it should be, or nothing is said.

Every way of proving who one is, with every way of getting it wrong. Where it is wrong, what came over the wire, and
what a server could decrypt of it, has neither the name of the export nor a request in it.
"""

from __future__ import annotations

import ssl
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sfasync.errors import SfasyncError, TlsError
from sfasync.models import ExportAddress, TlsPolicy, TlsStyle
from sfasync.transport.export import open_export

from ..support.certificates import make_certificates, old_context, server_context
from ..support.honest import Honest, content, honest

EXPORT = "the-name-of-the-export"
REQUEST = struct.pack(">I", 0x25609513)

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
STYLES: list[TlsStyle] = ["starttls", "direct"]

needs_psk = pytest.mark.skipif(sys.version_info < (3, 13), reason="pre-shared keys need Python 3.13")


async def read_some(address: ExportAddress) -> None:
    async with await open_export(address) as export:
        assert await export.read(512, 1024) == content(512, 1024)


async def refuse(server: Honest, address: ExportAddress, says: str) -> None:
    """The address must not be talked to."""
    with pytest.raises(SfasyncError, match=says) as caught:
        await read_some(address)
    assert type(caught.value) is TlsError
    assert caught.value.exit_code == 13
    assert str(caught.value).isprintable()
    for seen in (server.wire, server.heard):
        assert EXPORT.encode() not in seen
        assert REQUEST not in seen


# --- certificates ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A server's certificate, whom the client wants, and what is wrong with that; None if nothing is."""

    says: str | None
    certificate: dict[str, Any] = field(default_factory=dict)
    host: str = "127.0.0.1"
    hostname: str | None = None
    other_authority: bool = False
    asks_client: bool = False
    client: str | None = None


CASES = {
    "good": Case(None, host="localhost"),
    "IP with SAN": Case(None, {"hosts": ("127.0.0.1",)}),
    "name told": Case(None, {"hosts": ("disks.example",)}, hostname="disks.example"),
    "client certificate": Case(None, asks_client=True, client="ours"),
    "expired": Case("certificate has expired", {"expired": True}),
    "not yet valid": Case("certificate is not yet valid", {"not_yet": True}),
    "other CA": Case("not accepted: unable to get local issuer certificate", other_authority=True),
    "self-signed": Case("not accepted: self[- ]signed certificate", {"self_signed": True}),
    "other host": Case("not accepted: Hostname mismatch", {"hosts": ("elsewhere.example",)}, host="localhost"),
    "IP without SAN": Case("not accepted: IP address mismatch", {"hosts": ("localhost",)}),
    "SAN for the IP only": Case("not accepted: Hostname mismatch", {"hosts": ("127.0.0.1",)}, host="localhost"),
    "other name told": Case("not accepted: Hostname mismatch", hostname="disks.example"),
    "missing client certificate": Case("TLS", asks_client=True),
    "client certificate of another CA": Case("TLS", asks_client=True, client="others"),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", CASES)
async def test_certificates(name: str, style: TlsStyle, version: ssl.TLSVersion, tmp_path: Path) -> None:
    case = CASES[name]
    ours = make_certificates(tmp_path / "ours", **case.certificate)
    others = make_certificates(tmp_path / "others")
    context = server_context(ours)
    context.minimum_version = context.maximum_version = version
    if case.asks_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(ours / "ca-cert.pem")
    policy = TlsPolicy(
        style=style,
        ca_file=(others if case.other_authority else ours) / "ca-cert.pem",
        cert_file=None if case.client is None else tmp_path / case.client / "client-cert.pem",
        key_file=None if case.client is None else tmp_path / case.client / "client-key.pem",
        hostname=case.hostname,
    )
    async with honest(context=context, style=style) as server:
        address = server.address(policy, host=case.host, export=EXPORT)
        if case.says is None:
            await read_some(address)
            assert EXPORT.encode() in server.heard
            assert EXPORT.encode() not in server.wire
        else:
            await refuse(server, address, case.says)


@pytest.mark.parametrize("style", STYLES)
async def test_tls_1_1_is_too_old(style: TlsStyle, certificates: Path) -> None:
    context = old_context(server_context(certificates))
    async with honest(context=context, style=style) as server:
        policy = TlsPolicy(style=style, ca_file=certificates / "ca-cert.pem")
        await refuse(server, server.address(policy, export=EXPORT), "TLS failed: .*protocol version")


async def test_a_server_without_tls_hears_no_name(certificates: Path) -> None:
    async with honest() as server:
        policy = TlsPolicy(ca_file=certificates / "ca-cert.pem")
        await refuse(server, server.address(policy, export=EXPORT), "does not start TLS: not supported")


# --- pre-shared keys -------------------------------------------------------------------------------------------------

KEYS = {"alice": b"\xab" * 32, "bob": b"\xcd" * 32}


def key_context(keys: dict[str, bytes]) -> ssl.SSLContext:
    """A server that knows some keys, and has no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("PSK")
    set_callback: Callable[[Callable[[str | None], bytes]], None] = getattr(context, "set_psk_server_callback")  # noqa: B009 - new in 3.13
    set_callback(lambda identity: keys.get(identity or "", b""))
    return context


def key_file(directory: Path, keys: dict[str, bytes]) -> Path:
    path = directory / "keys"
    path.write_text("".join(f"{name}:{key.hex()}\n" for name, key in keys.items()))
    return path


@needs_psk
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("theirs", "identity", "good"),
    [
        (KEYS, None, True),
        (KEYS, "bob", True),
        ({"alice": b"\xef" * 32}, "alice", False),
        ({"carol": KEYS["alice"]}, "alice", False),
    ],
    ids=["first key", "named key", "wrong key", "unknown identity"],
)
async def test_keys(
    theirs: dict[str, bytes],
    identity: str | None,
    good: bool,
    style: TlsStyle,
    version: ssl.TLSVersion,
    tmp_path: Path,
) -> None:
    context = key_context(theirs)
    context.minimum_version = context.maximum_version = version
    policy = TlsPolicy(style=style, psk_file=key_file(tmp_path, KEYS), psk_identity=identity)
    async with honest(context=context, style=style) as server:
        address = server.address(policy, export=EXPORT)
        if good:
            await read_some(address)
            assert EXPORT.encode() in server.heard
            assert EXPORT.encode() not in server.wire
        else:
            await refuse(server, address, "TLS")


@needs_psk
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("style", STYLES)
async def test_a_certificate_is_no_key(
    style: TlsStyle, version: ssl.TLSVersion, certificates: Path, tmp_path: Path
) -> None:
    context = server_context(certificates)
    context.minimum_version = context.maximum_version = version
    policy = TlsPolicy(style=style, psk_file=key_file(tmp_path, KEYS))
    async with honest(context=context, style=style) as server:
        await refuse(server, server.address(policy, export=EXPORT), "TLS failed|not accepted")


@needs_psk
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_key_is_no_certificate(version: ssl.TLSVersion, certificates: Path) -> None:
    context = key_context(KEYS)
    context.minimum_version = context.maximum_version = version
    policy = TlsPolicy(ca_file=certificates / "ca-cert.pem")
    async with honest(context=context) as server:
        await refuse(server, server.address(policy, export=EXPORT), "TLS failed")


@needs_psk
async def test_tls_1_1_is_too_old_for_keys(tmp_path: Path) -> None:
    async with honest(context=old_context(key_context(KEYS))) as server:
        policy = TlsPolicy(psk_file=key_file(tmp_path, KEYS))
        await refuse(server, server.address(policy, export=EXPORT), "TLS failed: .*protocol version")
