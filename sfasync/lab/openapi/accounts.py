"""Who may call: tokens for a password, and signed requests.

Of the variants of signing that clients use each is accepted: the region and service that clients are known
to use, a cookie that is signed as an empty value or left out, and `path` as a mere name in the list. The query is not
signed. The allowed skew of clocks is not public; here it is 15 minutes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

TOKEN_SECONDS: Final = 3600.0
_SKEW_SECONDS: Final = 900.0
_REGIONS: Final = {"regionOne", "RegionOne", "cn-south-1"}
_SERVICES: Final = {"sdk-api", "open-api"}

_SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/(?P<day>\d{8})/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request, ?"
    r"SignedHeaders=(?P<names>[a-z0-9;-]+), ?Signature=(?P<signature>[0-9a-f]{64})"
)


class Accounts:
    """One user, with a password and an access key, and the tokens that are valid.

    Attributes:
        user: Name of the user.
        password: The user's password.
        access_key: Name of the user's key pair.
        secret_key: Its secret.
    """

    def __init__(self) -> None:
        self.user = "backup"
        self.password = secrets.token_urlsafe(16)
        self.access_key = secrets.token_hex(16)
        self.secret_key = secrets.token_hex(16)
        self._key = _key()
        self._tokens: dict[str, float] = {}

    @property
    def modulus(self) -> str:
        """What passwords are encrypted with; it ends with a newline, as the platform's does."""
        return f"{self._key.public_key().public_numbers().n:X}\n"

    def log_in(self, user: str, encrypted: str, *, oaep: bool) -> dict[str, Any] | None:
        """What a log-in is answered with; None if it is refused."""
        try:
            schemes = _oaep() if oaep else (padding.PKCS1v15(),)
            passwords = [self._decrypted(bytes.fromhex(encrypted), scheme) for scheme in schemes]
        except ValueError:
            return None
        if not secrets.compare_digest(user.encode(), self.user.encode()) or self.password.encode() not in passwords:
            return None
        token = secrets.token_hex(32)
        now = time.time()
        self._tokens[token] = now + TOKEN_SECONDS
        return {
            "access": {
                "token": {
                    "id": token,
                    "issued_at": _instant(now),
                    "expires": _instant(now + TOKEN_SECONDS),
                    "tenant": {"id": uuid.uuid5(uuid.NAMESPACE_DNS, self.user).hex, "name": self.user},
                    "audit_ids": [],
                },
                "user": {"id": uuid.uuid5(uuid.NAMESPACE_URL, self.user).hex, "name": self.user},
            }
        }

    def expire_tokens(self) -> None:
        """Let nobody be logged in any more."""
        self._tokens.clear()

    def allows(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Whether a call may be made: by its token, or by its signature.

        Args:
            method: As the client sent it.
            path: As the client sent it, without the query.
            headers: With names in lower case.
            body: As the client sent it.
        """
        said = headers.get("authorization", "")
        if said.startswith("Token "):
            return self._tokens.get(said.removeprefix("Token "), 0.0) > time.time()
        signed = _SIGNED.fullmatch(said)
        return signed is not None and self._signed(signed, method, path, headers, body)

    def _decrypted(self, secret: bytes, scheme: padding.AsymmetricPadding) -> bytes:
        try:
            return self._key.decrypt(secret, scheme)
        except ValueError:  # encrypted in another way, or nonsense
            return b""

    def _signed(self, signed: re.Match[str], method: str, path: str, headers: Mapping[str, str], body: bytes) -> bool:
        date = headers.get("x-amz-date", "")
        if (
            signed["key"] != self.access_key
            or signed["region"] not in _REGIONS
            or signed["service"] not in _SERVICES
            or not date.startswith(signed["day"])
            or "x-amz-date" not in signed["names"].split(";")
            or not _is_now(date)
        ):
            return False
        key = b"AWS4" + self.secret_key.encode()
        for part in (signed["day"], signed["region"], signed["service"], "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        scope = "/".join((signed["day"], signed["region"], signed["service"], "aws4_request"))
        for lines in _signed_lines(signed["names"].split(";"), headers):
            whole = "\n".join((method, path, "", lines, signed["names"], hashlib.sha256(body).hexdigest()))
            text = "\n".join(("AWS4-HMAC-SHA256", date, scope, hashlib.sha256(whole.encode()).hexdigest()))
            if hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), signed["signature"]):
                return True
        return False


@cache
def _key() -> rsa.RSAPrivateKey:
    """A key for all labs of this process: to make one takes a tenth of a second."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _signed_lines(names: list[str], headers: Mapping[str, str]) -> Iterator[str]:
    """The header lines that may have been signed: one that is not there is empty, or left out."""
    present = [f"{name}:{headers[name].strip()}\n" for name in names if name in headers]
    yield "".join(present)
    yield "".join(f"{name}:{headers.get(name, '').strip()}\n" for name in names if name != "path")


def _is_now(date: str) -> bool:
    try:
        said = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return False
    return abs(said.timestamp() - time.time()) <= _SKEW_SECONDS


def _oaep() -> tuple[padding.OAEP, ...]:
    """The hash of the second generation's padding is not public: both that are likely."""
    kinds: tuple[hashes.HashAlgorithm, ...] = (hashes.SHA1(), hashes.SHA256())  # noqa: S303 - what the platform may use
    return tuple(padding.OAEP(mgf=padding.MGF1(kind), algorithm=kind, label=None) for kind in kinds)


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
