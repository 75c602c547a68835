"""Certificates for test servers and clients, made afresh by a private authority."""

import ssl
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey


def make_certificates(
    directory: Path,
    *,
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
    expired: bool = False,
    not_yet: bool = False,
    self_signed: bool = False,
) -> Path:
    """Write certificates of an authority, a server and a client, named as nbdkit, qemu and libnbd expect.

    Args:
        directory: Created if needed; `ca-cert.pem`, `server-cert.pem`, `server-key.pem`, `client-cert.pem` and
            `client-key.pem` appear in it.
        hosts: Names and addresses that the server's certificate carries.
        expired: The server's certificate ran out yesterday.
        not_yet: The server's certificate is valid from tomorrow on.
        self_signed: The server's certificate is signed by its own key, and not by the authority.

    Returns:
        The directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    day = timedelta(days=1)
    now = datetime.now(UTC)
    server = authority.issue_cert(
        *hosts,
        not_before=now + day if not_yet else now - 2 * day,
        not_after=now - day if expired else now + 2 * day,
    )
    client = authority.issue_cert("client.example")
    authority.cert_pem.write_to_path(str(directory / "ca-cert.pem"))
    for name, certificate in (("server", server), ("client", client)):
        (directory / f"{name}-cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(str(directory / f"{name}-key.pem"))
    if self_signed:
        _sign_itself(directory / "server-cert.pem", directory / "server-key.pem")
    return directory


def server_context(certificates: Path) -> ssl.SSLContext:
    """What a server in a test speaks TLS with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server-cert.pem", certificates / "server-key.pem")
    return context


def old_context(context: ssl.SSLContext) -> ssl.SSLContext:
    """The same, for TLS 1.1, which OpenSSL and Python both advise against."""
    context.set_ciphers("ALL:PSK:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1_1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


def _sign_itself(certificate: Path, private_key: Path) -> None:
    """Replace the signature, and the issuer, of a certificate by its own."""
    old = x509.load_pem_x509_certificate(certificate.read_bytes())
    key = serialization.load_pem_private_key(private_key.read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(old.not_valid_before_utc)
        .not_valid_after(old.not_valid_after_utc)
        .add_extension(old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value, critical=True)
    )
    certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
