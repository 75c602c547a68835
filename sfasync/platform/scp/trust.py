"""What is believed of the platform's certificate: authorities, or one certificate that was pinned."""

from __future__ import annotations

import hashlib
import ssl
from typing import Any

from ...models import TlsPolicy
from ...trust import client_context, pinned
from .settings import ScpSettings


class AnotherCertificateError(ssl.SSLCertVerificationError):
    """The server is not the one that was pinned."""

    verify_message = "it has another fingerprint than the one pinned"


def platform_context(settings: ScpSettings) -> ssl.SSLContext:
    """The context for connections to the platform. Reads the file of authorities; blocks for that.

    Platforms come with certificates that they signed themselves. One that is pinned is believed by its fingerprint
    alone, unless authorities are given as well; no byte is sent to a server that has another.

    Raises:
        UsageError: The file or the fingerprint is none.
    """
    policy = TlsPolicy(ca_file=settings.ca_file, hostname=settings.hostname, fingerprint=settings.fingerprint)
    context = client_context(policy)
    fingerprint = pinned(policy)
    if fingerprint is not None:
        context.sslobject_class = _pinned_object(fingerprint)
        if settings.ca_file is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    return context


def _pinned_object(fingerprint: str) -> type[ssl.SSLObject]:
    class PinnedObject(ssl.SSLObject):
        """A connection that is refused at the end of its handshake, before anything is sent, unless it has the pin."""

        def do_handshake(self) -> None:
            super().do_handshake()
            certificate: Any = self.getpeercert(binary_form=True)
            if certificate is None or hashlib.sha256(certificate).hexdigest() != fingerprint:
                raise AnotherCertificateError

    return PinnedObject
