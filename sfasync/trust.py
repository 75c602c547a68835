"""What TLS believes of a server, built from files: authorities, a certificate that is pinned, pre-shared keys.

There is no way to switch verification off, nothing below TLS 1.2, and no fall-back. The context is built from
`PROTOCOL_TLS_CLIENT` and not by `ssl.create_default_context`, which would write session keys to the file that the
environment variable ``SSLKEYLOGFILE`` names.
"""

from __future__ import annotations

import base64
import re
import ssl
import sys
from pathlib import Path
from typing import Final

from .errors import TlsError, UsageError, printable
from .models import TlsPolicy

_FINGERPRINT = r"[0-9a-f]{64}"
_PSK_FILE_LIMIT: Final = 1 << 20


def client_context(policy: TlsPolicy) -> ssl.SSLContext:
    """What a policy believes, read from its files; serves all connections of an export.

    Raises:
        UsageError: A file of the policy is missing, or does not hold what it should.
        TlsError: This Python has no pre-shared keys.
    """
    pinned(policy)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # TLS 1.2 would let a server ask for a new handshake in the middle, during which nothing can be written.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.check_hostname = policy.check_hostname
    if policy.psk_file is not None:
        _believe_key(context, policy.psk_file, policy.psk_identity)
        return context
    _believe_authorities(context, policy)
    if (policy.cert_file is None) != (policy.key_file is None):
        raise UsageError("a client certificate needs its key, and a key its certificate")
    if policy.cert_file is not None and policy.key_file is not None:
        try:
            # The password is a function that refuses: OpenSSL would ask for one on the terminal.
            context.load_cert_chain(_present(policy.cert_file), _present(policy.key_file), password=_no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise _unusable(
                policy.cert_file, f"a certificate (PEM) of the key {printable(str(policy.key_file))}", error
            ) from error
    return context


def _believe_authorities(context: ssl.SSLContext, policy: TlsPolicy) -> None:
    if policy.ca_text is not None:
        try:
            context.load_verify_locations(cadata=_certificates(policy.ca_text))
        except (ValueError, ssl.SSLError) as error:
            raise UsageError(
                f"the text of the authority is no certificate (PEM, or base64 of DER): {printable(_reason(error))}"
            ) from error
    elif policy.ca_file is not None:
        try:
            context.load_verify_locations(cafile=_present(policy.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise _unusable(policy.ca_file, "certificates of authorities (PEM)", error) from error
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)


def _certificates(text: str) -> str | bytes:
    """Certificates as the ssl module takes them: PEM is text, DER is bytes."""
    return text if "-----BEGIN" in text else base64.b64decode("".join(text.split()), validate=True)


def pinned(policy: TlsPolicy) -> str | None:
    """The fingerprint a policy asks for, as 64 lower-case hex digits.

    Raises:
        UsageError: It is no SHA-256 in hex.
    """
    if policy.fingerprint is None:
        return None
    fingerprint = policy.fingerprint.replace(":", "").lower()
    if not re.fullmatch(_FINGERPRINT, fingerprint):
        raise UsageError("a TLS fingerprint is a SHA-256 of 64 hex digits")
    return fingerprint


# --- pre-shared keys -------------------------------------------------------------------------------------------------

if sys.version_info >= (3, 13):

    def _believe_key(context: ssl.SSLContext, path: Path, identity: str | None) -> None:
        """Believe whoever has the same key, and nobody else.

        Verification stays on, with no authority to believe: a server that answers with a certificate instead of the
        key is refused.
        """
        name, key = _key(path, identity)
        context.check_hostname = False
        context.set_ciphers("PSK")  # TLS 1.2; the suites of 1.3 are apart
        context.set_psk_client_callback(lambda hint: (name, key))

else:

    def _believe_key(context: ssl.SSLContext, path: Path, identity: str | None) -> None:
        raise TlsError(f"pre-shared keys ({printable(str(path))}) need Python 3.13 or newer; use certificates")


def _key(path: Path, identity: str | None) -> tuple[str, bytes]:
    """Identity and key of a line ``identity:hexkey``, as psktool(1) writes them. Messages carry no key."""
    shown = printable(str(_present(path)))
    try:
        with path.open(encoding="utf-8") as file:
            lines = file.read(_PSK_FILE_LIMIT).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{shown} cannot be read as a file of pre-shared keys", path=str(path)) from error
    for line in lines:
        name, colon, digits = line.strip().partition(":")
        if not name or name.startswith("#") or (identity is not None and name != identity):
            continue
        try:
            key = bytes.fromhex(digits) if colon else b""
        except ValueError:
            key = b""
        if not key:
            raise UsageError(f"{shown} has no key in hex for '{printable(name)}'", path=str(path))
        return name, key
    whom = "anybody" if identity is None else f"'{printable(identity)}'"
    raise UsageError(f"{shown} has no key for {whom}", path=str(path))


# --- files -----------------------------------------------------------------------------------------------------------


def _present(path: Path) -> Path:
    if not path.is_file():
        raise UsageError(f"{printable(str(path))} is missing", path=str(path))
    return path


def _unusable(path: Path, what: str, error: Exception) -> UsageError:
    return UsageError(f"{printable(str(path))} does not hold {what}: {printable(_reason(error))}", path=str(path))


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)


def _no_password() -> str:
    raise ValueError("the key is protected by a password, which is not supported")
