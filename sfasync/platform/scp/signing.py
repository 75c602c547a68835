"""Signed requests: the platform's own form of AWS's Signature Version 4. Pure: no clock, no socket.

What differs from AWS's: the query is never signed, even where there is one, and neither is the host. Which headers are
signed differs between the clients that are known to work, and no document says which the platform insists on. It
computes the signature anew from the names that the request lists, so several may be accepted:

========  =====================  ========================  ======================  ==================================
Variant   names listed           lines signed              region / service        seen in
========  =====================  ========================  ======================  ==================================
v1        cookie;x-amz-date      cookie and date           regionOne / sdk-api     the vendor's sample for Python
v2        cookie;x-amz-date      date, cookie if sent      regionOne / sdk-api     a client in Rust
v3        x-amz-date             date                      cn-south-1 / open-api   a client in Python
v4        path;x-amz-date        date                      cn-south-1 / open-api   ports of the vendor's JavaScript
v6        cookie;x-amz-date      cookie and date           cn-south-1 / sdk-api    a proposal
========  =====================  ========================  ======================  ==================================

A fifth, with the host, contradicts the vendor's sample and is left out.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from .settings import Variant

ALGORITHM: Final = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class Form:
    """What a variant signs.

    Attributes:
        names: The signed headers, as listed.
        cookie: Whether a cookie is sent and signed; an empty line is signed where there is none.
        empty_cookie: Whether a cookie that is not sent is signed as an empty line.
        region, service: What its clients use.
    """

    names: str
    cookie: bool
    empty_cookie: bool
    region: str
    service: str


FORMS: Final[Mapping[Variant, Form]] = MappingProxyType(
    {
        "v1": Form("cookie;x-amz-date", True, True, "regionOne", "sdk-api"),
        "v2": Form("cookie;x-amz-date", False, False, "regionOne", "sdk-api"),
        "v3": Form("x-amz-date", False, False, "cn-south-1", "open-api"),
        "v4": Form("path;x-amz-date", False, False, "cn-south-1", "open-api"),
        "v6": Form("cookie;x-amz-date", True, True, "cn-south-1", "sdk-api"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a signature is good for.

    Attributes:
        date: Of the request, ``YYYYMMDDTHHMMSSZ``, in UTC.
        region, service: As the platform has them.
    """

    date: str
    region: str
    service: str

    def __str__(self) -> str:
        return f"{self.date[:8]}/{self.region}/{self.service}/aws4_request"


def canonical_request(form: Form, *, method: str, path: str, date: str, cookie: str | None, body: bytes) -> str:
    """The text whose digest is signed.

    Args:
        form: What is signed.
        method: Of HTTP, in capitals.
        path: Exactly as it is sent, without the query.
        date: Of the request.
        cookie: Value of the header; None where there is none.
        body: Exactly as it is sent.
    """
    lines = []
    if "cookie" in form.names and (cookie is not None or form.empty_cookie):
        lines.append(f"cookie:{cookie or ''}\n")
    lines.append(f"x-amz-date:{date}\n")
    return "\n".join((method, path, "", "".join(lines), form.names, hashlib.sha256(body).hexdigest()))


def signature(secret_key: str, scope: Scope, request: str) -> str:
    """The signature of a canonical request, in hex."""
    key = ("AWS4" + secret_key).encode()
    for part in str(scope).split("/"):
        key = _hmac(key, part)
    text = "\n".join((ALGORITHM, scope.date, str(scope), hashlib.sha256(request.encode()).hexdigest()))
    return _hmac(key, text).hex()


def authorization(access_key: str, scope: Scope, form: Form, signed: str) -> str:
    """The header that carries a signature."""
    return f"{ALGORITHM} Credential={access_key}/{scope}, SignedHeaders={form.names}, Signature={signed}"


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
