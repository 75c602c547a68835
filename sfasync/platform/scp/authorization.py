"""What a request carries to prove who sent it, and what to do when that is refused."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from ...credentials import AccessKey
from .clock import ServerClock
from .settings import SigningSettings, Variant
from .signing import FORMS, Scope, authorization, canonical_request, signature

_MOVED: Final = 5.0
"""Seconds by which the platform's clock must turn out to differ for another signature to be worth a try."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """What one request carried.

    Attributes:
        headers: To be sent with it.
        form: Tells this ticket from others: the token, or the variant of the signature.
        offset: How far the platform's clock was thought to be ahead, in seconds.
    """

    headers: Mapping[str, str] = field(repr=False)
    form: str = field(repr=False)
    offset: float = 0.0


class Authorizer(Protocol):
    """Makes tickets."""

    async def ticket(self, method: str, path: str, body: bytes) -> Ticket:
        """A ticket for a request: its method, its path as it is sent, without the query, and its body.

        Raises:
            AuthenticationError: The platform does not accept the credentials.
            PlatformError: It could not be asked.
        """
        ...

    def accepted(self, ticket: Ticket) -> None:
        """A request with this ticket was not refused for it."""
        ...

    def refused(self, ticket: Ticket, times: int) -> bool:
        """A request with this ticket was refused (401), for the given time. Whether another may fare better."""
        ...


class KeyAuthorizer:
    """Signs requests with an access key.

    Args:
        key: Ours.
        settings: How to sign.
        clock: The platform's.
    """

    def __init__(self, key: AccessKey, settings: SigningSettings, clock: ServerClock) -> None:
        self._key = key
        self._settings = settings
        self._clock = clock
        self._variant = settings.variant
        self._proven: Variant | None = None
        self._cookie = f"aCMPAuthToken={uuid.uuid4().hex}"

    def __repr__(self) -> str:
        return f"<KeyAuthorizer of {self._key.access_key}, signatures {self._variant}>"

    async def ticket(self, method: str, path: str, body: bytes) -> Ticket:
        """A signature of the request; does not wait."""
        variant = self._variant
        form = FORMS[variant]
        scope = Scope(
            date=self._clock.stamp(),
            region=self._settings.region or form.region,
            service=self._settings.service or form.service,
        )
        cookie = self._cookie if form.cookie else None
        request = canonical_request(form, method=method, path=path, date=scope.date, cookie=cookie, body=body)
        signed = signature(self._key.secret_key, scope, request)
        headers = {
            "Authorization": authorization(self._key.access_key, scope, form, signed),
            "X-Amz-Date": scope.date,
        }
        if cookie is not None:
            headers["Cookie"] = cookie
        return Ticket(headers, variant, self._clock.offset)

    def accepted(self, ticket: Ticket) -> None:
        """This variant is the one."""
        if ticket.form == self._variant:
            self._proven = self._variant

    def refused(self, ticket: Ticket, times: int) -> bool:
        """Sign by the platform's clock, if it is another than ours; then in the other way, if none is proven."""
        if abs(self._clock.offset - ticket.offset) > _MOVED:
            return True
        if ticket.form != self._variant:  # somebody else has changed it meanwhile
            return True
        if self._proven is not None or ticket.form != self._settings.variant or self._settings.fallback == "none":
            self._variant = self._proven or self._settings.variant
            return False
        self._variant = self._settings.fallback
        return True
