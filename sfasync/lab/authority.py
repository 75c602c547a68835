"""The certificate authorities of the lab: the platform's, and that of its cluster."""

from __future__ import annotations

import base64
import ssl

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding


class Authority:
    """An authority, and the one server that it vouches for, as 127.0.0.1 and localhost.

    Attributes:
        context: What the server shows.
        pem: The authority's certificate, for those who shall believe it.
    """

    def __init__(self, organization: str) -> None:
        authority = trustme.CA(organization_name=organization)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        authority.issue_cert("127.0.0.1", "localhost").configure_cert(self.context)
        self.pem = authority.cert_pem.bytes()

    @property
    def base64_der(self) -> str:
        """The certificate as backup resources have it: base64 without the lines around it."""
        der = x509.load_pem_x509_certificate(self.pem).public_bytes(Encoding.DER)
        return base64.b64encode(der).decode()
