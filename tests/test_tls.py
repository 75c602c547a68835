from __future__ import annotations

import contextlib
import hashlib
import ssl
from pathlib import Path

import pytest

from sfasync.errors import TlsError
from sfasync.models import ExportAddress, TlsPolicy
from sfasync.tls import TlsLayer, server_name
from sfasync.trust import client_context

from .support.certificates import make_certificates


class Server:
    """The server's half of a TLS connection in memory."""

    def __init__(self, certificates: Path, highest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = highest
        context.load_cert_chain(certificates / "server-cert.pem", certificates / "server-key.pem")
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)


def shake_hands(layer: TlsLayer, server: Server) -> None:
    """Run the handshake of both sides; raises what the client's side raises."""
    while not layer.handshake():
        server.incoming.write(layer.take())
        with contextlib.suppress(ssl.SSLWantReadError):
            server.tls.do_handshake()
        layer.feed(memoryview(server.outgoing.read()))
    server.incoming.write(layer.take())
    server.tls.do_handshake()


def layer_for(certificates: Path, hostname: str = "localhost", fingerprint: str | None = None) -> TlsLayer:
    context = client_context(TlsPolicy(ca_file=certificates / "ca-cert.pem"))
    return TlsLayer("peer", context, hostname, fingerprint)


def test_bytes_go_both_ways(certificates: Path) -> None:
    layer, server = layer_for(certificates), Server(certificates)
    shake_hands(layer, server)
    assert layer.established
    layer.write(memoryview(b"question" * 10_000))
    server.incoming.write(layer.take())
    question = b""
    while len(question) < 80_000:
        question += server.tls.read(1 << 20)
    assert question == b"question" * 10_000

    server.tls.write(b"answer")
    layer.feed(memoryview(server.outgoing.read()))
    buffer = memoryview(bytearray(4))
    assert layer.read_into(buffer) == 4
    assert bytes(buffer) == b"answ"
    assert layer.read_into(buffer) == 2
    assert layer.read_into(buffer) == 0


def test_the_end_of_tls_is_an_end(certificates: Path) -> None:
    layer, server = layer_for(certificates), Server(certificates)
    shake_hands(layer, server)
    with pytest.raises(ssl.SSLWantReadError):
        server.tls.unwrap()
    layer.feed(memoryview(server.outgoing.read()))
    with pytest.raises(EOFError):
        layer.read_into(memoryview(bytearray(4)))
    layer.close()
    assert layer.take()


def test_damaged_ciphertext_is_an_error_of_tls(certificates: Path) -> None:
    layer, server = layer_for(certificates), Server(certificates)
    shake_hands(layer, server)
    server.tls.write(b"answer")
    damaged = bytearray(server.outgoing.read())
    damaged[-1] ^= 1
    layer.feed(memoryview(damaged))
    with pytest.raises(TlsError, match=r"^peer: TLS failed: "):
        layer.read_into(memoryview(bytearray(4)))


def test_plain_text_is_an_error_of_tls(certificates: Path) -> None:
    layer = layer_for(certificates)
    assert not layer.handshake()
    layer.feed(memoryview(b"NBDMAGICIHAVEOPT"))
    with pytest.raises(TlsError, match=r"^peer: TLS failed: "):
        layer.handshake()


# --- who is believed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hostname", ["localhost", "127.0.0.1"])
def test_names_in_the_certificate_are_accepted(certificates: Path, hostname: str) -> None:
    shake_hands(layer_for(certificates, hostname), Server(certificates))


@pytest.mark.parametrize("hostname", ["example.com", "127.0.0.2", "host.localhost"])
def test_other_names_are_not(certificates: Path, hostname: str) -> None:
    with pytest.raises(TlsError, match=r"^peer: the server's certificate is not accepted: .*mismatch"):
        shake_hands(layer_for(certificates, hostname), Server(certificates))


def test_another_authority_is_not_believed(certificates: Path, tmp_path: Path) -> None:
    others = make_certificates(tmp_path / "others")
    with pytest.raises(TlsError, match=r"not accepted: .*certificate"):
        shake_hands(layer_for(certificates), Server(others))


def test_another_name_from_the_right_authority(certificates: Path, tmp_path: Path) -> None:
    policy = TlsPolicy(ca_file=certificates / "ca-cert.pem", check_hostname=False)
    shake_hands(TlsLayer("peer", client_context(policy), "10.0.0.7"), Server(certificates))
    with pytest.raises(TlsError, match="certificate"):
        shake_hands(TlsLayer("peer", client_context(policy), "localhost"), Server(make_certificates(tmp_path)))


def test_an_expired_certificate_is_not_believed(tmp_path: Path) -> None:
    expired = make_certificates(tmp_path, expired=True)
    with pytest.raises(TlsError, match="not accepted: certificate has expired"):
        shake_hands(layer_for(expired), Server(expired))


def test_the_system_is_believed_if_nobody_else_is_named(certificates: Path) -> None:
    layer = TlsLayer("peer", client_context(TlsPolicy()), "localhost")
    with pytest.raises(TlsError, match="not accepted"):
        shake_hands(layer, Server(certificates))


def test_a_pinned_fingerprint_must_match(certificates: Path) -> None:
    pem = (certificates / "server-cert.pem").read_text()
    right = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem[: pem.index("-----END CERTIFICATE-----") + 25])).hexdigest()
    shake_hands(layer_for(certificates, fingerprint=right), Server(certificates))
    with pytest.raises(TlsError, match="another fingerprint"):
        shake_hands(layer_for(certificates, fingerprint="00" * 32), Server(certificates))


@pytest.mark.parametrize("hostname", ["", ".", "a" * 70_000, "bad\0name"])
def test_names_that_cannot_be_in_a_certificate(certificates: Path, hostname: str) -> None:
    with pytest.raises(TlsError):
        shake_hands(layer_for(certificates, hostname), Server(certificates))


def test_keys_are_not_written_down(certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T16: `ssl.create_default_context` would write them to that file."""
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    shake_hands(layer_for(certificates), Server(certificates))
    assert not (tmp_path / "keys").exists()


def test_names_to_verify() -> None:
    policy = TlsPolicy()
    assert server_name(ExportAddress(host="host", tls=policy)) == "host"
    assert server_name(ExportAddress(socket=Path("s"), tls=policy)) == "localhost"
    assert server_name(ExportAddress(host="host", tls=TlsPolicy(hostname="other"))) == "other"
