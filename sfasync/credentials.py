"""Who we are to a platform. What proves it is never shown: in no `repr`, message, log line or list of arguments."""

from __future__ import annotations

from dataclasses import dataclass, field


class Credentials:
    """One of the kinds below."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class AccessKey(Credentials):
    """A pair of keys, as made on the platform's page of API keys. The secret one is never shown.

    Attributes:
        access_key: Names the pair.
        secret_key: Proves it.
    """

    access_key: str
    secret_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Password(Credentials):
    """An account of the platform. The password is never shown.

    Attributes:
        user: Name of the account.
        password: Proves it.
    """

    user: str
    password: str = field(repr=False)
