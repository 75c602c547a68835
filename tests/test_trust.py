"""What a policy believes, and files that do not hold what they should."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

import pytest

from sfasync.errors import TlsError, UsageError
from sfasync.models import TlsPolicy
from sfasync.trust import client_context, pinned


def test_the_context_is_strict(certificates: Path) -> None:
    context = client_context(TlsPolicy(ca_file=certificates / "ca-cert.pem"))
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_authorities_as_text(certificates: Path) -> None:
    pem = (certificates / "ca-cert.pem").read_text()
    body = "".join(pem.splitlines()[1:-1])
    for text in (pem, body, "\n".join(pem.splitlines()[1:-1]) + "\n"):
        context = client_context(TlsPolicy(ca_text=text))
        assert context.get_ca_certs() == client_context(TlsPolicy(ca_file=certificates / "ca-cert.pem")).get_ca_certs()
    for wrong in ("", "no certificate", body[:-8], "-----BEGIN CERTIFICATE-----", "Zm9v", "é"):
        with pytest.raises(UsageError, match="text of the authority is no certificate") as caught:
            client_context(TlsPolicy(ca_text=wrong))
        assert "\n" not in str(caught.value)


def test_policies_that_contradict_themselves() -> None:
    with pytest.raises(UsageError, match="only accepted from authorities that are given"):
        TlsPolicy(check_hostname=False)
    with pytest.raises(UsageError, match="not both"):
        TlsPolicy(ca_file=Path("a"), ca_text="b")
    with pytest.raises(UsageError, match=r"style 'first' is not known; there are starttls, direct"):
        TlsPolicy(style="first")  # type: ignore[arg-type]  # on purpose


def test_fingerprints_are_sha256() -> None:
    assert pinned(TlsPolicy()) is None
    assert pinned(TlsPolicy(fingerprint=":".join(["AB"] * 32))) == "ab" * 32
    for wrong in ("", "ab", "zz" * 32, "ab" * 20):
        with pytest.raises(UsageError, match="64 hex digits"):
            client_context(TlsPolicy(fingerprint=wrong))


def test_files_that_are_missing_or_wrong_are_named(certificates: Path, tmp_path: Path) -> None:
    ca, cert, key = (certificates / name for name in ("ca-cert.pem", "client-cert.pem", "client-key.pem"))
    nowhere, garbage = tmp_path / "nowhere.pem", tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    for policy, message in [
        (TlsPolicy(ca_file=nowhere), "nowhere.pem is missing"),
        (TlsPolicy(ca_file=garbage), "garbage.pem does not hold certificates"),
        (TlsPolicy(ca_file=ca, cert_file=cert), "needs its key"),
        (TlsPolicy(ca_file=ca, key_file=key), "needs its key"),
        (TlsPolicy(ca_file=ca, cert_file=nowhere, key_file=key), "nowhere.pem is missing"),
        (TlsPolicy(ca_file=ca, cert_file=cert, key_file=nowhere), "nowhere.pem is missing"),
        (TlsPolicy(ca_file=ca, cert_file=garbage, key_file=key), "garbage.pem does not hold"),
        (TlsPolicy(ca_file=ca, cert_file=ca, key_file=key), "ca-cert.pem does not hold"),
    ]:
        with pytest.raises(UsageError, match=message) as caught:
            client_context(policy)
        assert "\n" not in str(caught.value)
    client_context(TlsPolicy(ca_file=ca, cert_file=cert, key_file=key))


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="this Python has pre-shared keys")
def test_pre_shared_keys_need_a_newer_python(tmp_path: Path) -> None:
    with pytest.raises(TlsError, match=r"need Python 3\.13"):
        client_context(TlsPolicy(psk_file=tmp_path / "keys"))


@pytest.mark.skipif(sys.version_info < (3, 13), reason="pre-shared keys need Python 3.13")
@pytest.mark.parametrize(
    ("content", "identity", "message"),
    [
        (None, None, "is missing"),
        (b"", None, "no key for anybody"),
        (b"alice:00\n", "bob", "no key for 'bob'"),
        (b"alice:xyz\n", None, "no key in hex for 'alice'"),
        (b"alice\n", None, "no key in hex for 'alice'"),
        (b"\xff\xfe", None, "cannot be read"),
    ],
)
def test_files_of_keys_that_are_wrong(
    tmp_path: Path, content: bytes | None, identity: str | None, message: str
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        client_context(TlsPolicy(psk_file=path, psk_identity=identity))
    assert "xyz" not in str(caught.value)
