"""Certificates for test servers and clients, made afresh by a private authority."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme


def make_certificates(
    directory: Path, *, hosts: tuple[str, ...] = ("localhost", "127.0.0.1"), expired: bool = False
) -> Path:
    """Write certificates of an authority, a server and a client, named as nbdkit, qemu and libnbd expect.

    Args:
        directory: Created if needed; `ca-cert.pem`, `server-cert.pem`, `server-key.pem`, `client-cert.pem` and
            `client-key.pem` appear in it.
        hosts: Names and addresses that the server's certificate carries.
        expired: The server's certificate ran out yesterday.

    Returns:
        The directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    yesterday = datetime.now(UTC) - timedelta(days=1)
    server = authority.issue_cert(
        *hosts,
        not_before=yesterday - timedelta(days=1),
        not_after=yesterday if expired else datetime.now(UTC) + timedelta(days=1),
    )
    client = authority.issue_cert("client.example")
    authority.cert_pem.write_to_path(str(directory / "ca-cert.pem"))
    for name, certificate in (("server", server), ("client", client)):
        (directory / f"{name}-cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(str(directory / f"{name}-key.pem"))
    return directory
