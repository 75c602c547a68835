"""Who we are to a platform. What proves it is never shown: in no `repr`, message, log line or list of arguments."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .errors import ArgumentError

_ACCESS_KEY = re.compile(r"[A-Za-z0-9._~+=-]{1,256}")
_LIMIT = 4096


class Credentials:
    """One of the kinds below."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class AccessKey(Credentials):
    """A pair of keys, as made on the platform's page of API keys. The secret one is never shown.

    Attributes:
        access_key: Names the pair.
        secret_key: Proves it.

    Raises:
        ArgumentError: One of them can be none.
    """

    access_key: str
    secret_key: str = field(repr=False)

    def __post_init__(self) -> None:
        if not _ACCESS_KEY.fullmatch(self.access_key):  # it stands in a header, between commas and slashes
            raise ArgumentError("an access key has 1 to 256 letters, digits and . _ ~ + = -")
        _check("the secret key", self.secret_key)


@dataclass(frozen=True, slots=True)
class Password(Credentials):
    """An account of the platform. The password is never shown.

    Attributes:
        user: Name of the account.
        password: Proves it.

    Raises:
        ArgumentError: One of them can be none.
    """

    user: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        _check("the user's name", self.user)
        _check("the password", self.password)


def _check(what: str, text: str) -> None:
    """Refuse what cannot be sent; the message does not repeat it."""
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise ArgumentError(f"{what} is no text of Unicode") from None
    if not 0 < length <= _LIMIT:
        raise ArgumentError(f"{what} has 1 to {_LIMIT} bytes")
