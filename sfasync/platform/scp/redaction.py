"""Takes secrets out of what the platform says before anybody sees it."""

from __future__ import annotations

import base64
import json
import re
from typing import Final
from urllib.parse import quote

_HIDDEN: Final = "***"
_LIMIT: Final = 1 << 16
"""Characters that are looked through."""

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
        self._secrets: dict[str, None] = {}

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._secrets)} texts>"

    def add(self, secret: str) -> None:
        """Hide this from now on."""
        raw = secret.encode("utf-8", "surrogatepass")
        spellings = {
            secret,
            quote(secret, safe="", errors="replace"),
            json.dumps(secret)[1:-1],
            json.dumps(secret, ensure_ascii=False)[1:-1],
            base64.b64encode(raw).decode(),
            raw.hex(),
        }
        self._secrets.update(dict.fromkeys(spelling for spelling in spellings if spelling))

    def clean(self, text: str) -> str:
        """The text without secrets, at most its first 65536 characters. Longer secrets go first: one may hold another.

        Of a text that was cut, as much is left out at the end as a secret might have that the cut went through.
        """
        spellings = sorted(self._secrets, key=len, reverse=True)
        cleaned = text[:_LIMIT]
        for secret in spellings:
            cleaned = cleaned.replace(secret, _HIDDEN)
        cleaned = _MARKED.sub(rf"\1{_HIDDEN}", cleaned)
        return cleaned if len(text) <= _LIMIT or not spellings else cleaned[: -len(spellings[0])]
