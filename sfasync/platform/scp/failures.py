"""Errors for what the platform refuses, in words that have no secret in them."""

from __future__ import annotations

from ...credentials import AccessKey
from ...errors import AuthenticationError, BusyError, CbtExpiredError, PlatformError, SfasyncError, printable
from .clock import ServerClock
from .envelope import Refusal
from .redaction import Redactor
from .settings import ScpSettings


class Failures:
    """Makes them.

    Args:
        settings: What the platform says when tracking has expired, and how we prove who we are.
        redactor: Knows what must not be shown.
        clock: Knows how far the platform's clock is from ours.
    """

    def __init__(self, settings: ScpSettings, redactor: Redactor, clock: ServerClock) -> None:
        self._settings = settings
        self._redactor = redactor
        self._clock = clock

    def of_refusal(self, operation: str, refusal: Refusal) -> SfasyncError:
        """The error for a request that was refused."""
        status = refusal.status
        reason = None if refusal.reason is None else self._clean(refusal.reason)
        text = self._clean(refusal.text)
        said = f" ({reason or status})" + (f": {text}" if text else "")
        if status == 401:
            return AuthenticationError(
                f"the platform does not accept our credentials for '{operation}'{said}{self._signed_with()}"
            )
        if status == 403:
            return AuthenticationError(
                f"the platform does not allow us '{operation}'{said}; the account needs the rights of the template for"
                " agentless backup"
            )
        if status == 409:
            return BusyError(f"the platform is busy with '{operation}'{said}")
        if 300 <= status < 400:
            return PlatformError(
                f"the platform wants us to go elsewhere for '{operation}' ({status}), which is not done: our"
                " credentials are for the configured address only",
                status=status,
            )
        kind = CbtExpiredError if self._is_expired(refusal.text) else PlatformError
        return kind(f"the platform refused '{operation}'{said}", status=status, reason=reason)

    def of_task(self, action: str, status: str, text: str) -> PlatformError:
        """The error for a task that failed."""
        said = f": {self._clean(text)}" if text else ""
        kind = CbtExpiredError if self._is_expired(text) else PlatformError
        return kind(f"the platform's task '{self._clean(action)}' has failed ({self._clean(status)}){said}")

    def _is_expired(self, text: str) -> bool:
        """Whether the platform says that tracking of changes must be reset; it says so in words only."""
        return any(sign.casefold() in text.casefold() for sign in self._settings.dialect.expired)

    def _signed_with(self) -> str:
        """What may be wrong with a signature besides the key."""
        if not isinstance(self._settings.credentials, AccessKey):
            return ""
        offset = self._clock.offset
        clock = f"; our clock is off by {offset:.0f} s" if offset else ""
        return f"{clock}; a signature also depends on region and service, which are settings"

    def _clean(self, text: str) -> str:
        return printable(self._redactor.clean(text))
