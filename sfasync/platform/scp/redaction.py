"""Takes secrets out of what the platform says before anybody sees it."""

from __future__ import annotations

import base64
import json
import re
from collections import deque
from typing import Final
from urllib.parse import quote

_HIDDEN: Final = "***"
_LIMIT: Final = 1 << 16
"""Characters that are looked through."""

_PASSING: Final = 32

# What belongs to others, or to an earlier login: it is known by what stands before it.
_MARKED = re.compile(
    r"""(?ix)
    ( \btoken\s+(?=\S{16}) | \bsignature= | \bcredential=
    | ["']?\b(?:password|passwd|secret(?:_key)?|x-auth-token|acmpauthtoken|ticket)["']?\s*[:=]\s*["']? )
    [^\s"',;&}<>]+
    """
)


class Redactor:
    """Knows our secrets, and what they look like when they are written in other ways."""

    def __init__(self) -> None:
        self._lasting: set[str] = set()
        self._passing: deque[frozenset[str]] = deque(maxlen=_PASSING)

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._lasting) + len(self._passing)} secrets>"

    def add(self, secret: str) -> None:
        """Hide this from now on."""
        self._lasting |= _spellings(secret)

    def add_passing(self, secret: str) -> None:
        """Hide this, which others will replace: a token, until there were 32 newer ones."""
        self._passing.append(_spellings(secret))

    def clean(self, text: str) -> str:
        """The text without secrets, at most its first 65536 characters. Longer secrets go first: one may hold another.

        Of a text that was cut, as much is left out at the end as a secret might have that the cut went through.
        """
        spellings = sorted(self._lasting.union(*self._passing), key=len, reverse=True)
        cleaned = text[:_LIMIT]
        for secret in spellings:
            cleaned = cleaned.replace(secret, _HIDDEN)
        cleaned = _MARKED.sub(rf"\1{_HIDDEN}", cleaned)
        return cleaned if len(text) <= _LIMIT or not spellings else cleaned[: -len(spellings[0])]


def _spellings(secret: str) -> frozenset[str]:
    """A secret, and how it may be written: in JSON, in an address, in base64, in hex."""
    raw = secret.encode("utf-8", "surrogatepass")
    spellings = (
        secret,
        quote(secret, safe="", errors="replace"),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        base64.b64encode(raw).decode(),
        raw.hex(),
    )
    return frozenset(spelling for spelling in spellings if spelling)
