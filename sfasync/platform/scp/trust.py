"""What is believed of the platform's certificate: authorities, or one certificate that was pinned."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from ...models import TlsPolicy
from ...trust import client_context, pinned
from .settings import ScpSettings


@dataclass(frozen=True, slots=True)
class Trust:
    """What is believed.

    Attributes:
        context: Knows the authorities.
        fingerprint: What the SHA-256 of the certificate must be; None for any.
    """

    context: ssl.SSLContext
    fingerprint: str | None


def platform_trust(settings: ScpSettings) -> Trust:
    """What the settings say. Reads the file of authorities; blocks for that.

    Platforms come with certificates that they signed themselves. One that is pinned is believed by its fingerprint
    alone, unless authorities are given as well; no byte of ours is sent to a server that has another.

    Raises:
        UsageError: The file or the fingerprint is none.
    """
    policy = TlsPolicy(ca_file=settings.ca_file, fingerprint=settings.fingerprint)
    context = client_context(policy)
    if settings.fingerprint is not None and settings.ca_file is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return Trust(context, pinned(policy))
