"""Asking again: what may be repeated, after how long, and when to give up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from ...errors import PlatformError
from ...models import Retry
from ...retry import Backoff
from .clock import http_date
from .envelope import Reply
from .http import Answer, InterruptedExchange

_log = logging.getLogger(__name__)

BUSY: Final = frozenset({429, 503})
"""Nothing was done; the same request may be sent again."""

_BROKEN: Final = frozenset({500, 502, 504})
"""Something may have been done: only reading is repeated."""

PACE: Final = Retry(delay=1.0, max_delay=20.0, jitter=0.5)
"""How pauses grow between attempts."""

_TRIES: Final = 12
_TOLD: Final = 3
"""The attempt from which a wait is worth a word to whoever waits."""

_BROKEN_TRIES: Final = 3


class Patience:
    """Sends one request until it is answered, within a budget of time and of attempts.

    Args:
        origin: Who is asked, for messages.
        budget: Seconds to go on for.
        pace: How pauses grow where the server does not say how long to wait.

    Attributes:
        silent: Whether nothing came back when it was asked last, or nothing but that it is busy.
    """

    def __init__(self, origin: str, budget: float, pace: Retry = PACE) -> None:
        self._origin = origin
        self._budget = budget
        self._pace = pace
        self._connected = False
        self.silent = False

    async def ask(self, operation: str, method: str, send: Callable[[], Awaitable[Reply]]) -> Reply:
        """The first reply that does not mean: not now. It may be a refusal.

        A request that may have reached the server is sent again as it is: what writes carries the token by which the
        platform knows it. Until something was answered, nobody is waited for who cannot be reached.

        Raises:
            PlatformError: There was no answer.
        """
        backoff = Backoff(self._pace, self._budget)
        for attempt in range(1, _TRIES + 1):
            try:
                reply = await send()
            except InterruptedExchange as error:
                self.silent = True
                pause = backoff.next() if error.again and (error.sent or self._connected) else None
                if pause is None or attempt == _TRIES:
                    raise PlatformError(f"'{operation}' got no answer from {self._origin}: {error}") from None
            else:
                self._connected = True
                self.silent = reply.refusal is not None and reply.refusal.status in BUSY
                pause = _pause_after(reply, method, attempt, backoff)
                if pause is None or attempt == _TRIES:
                    return reply
            level = logging.WARNING if attempt == _TOLD else logging.INFO
            # Not for how long: whoever waits, at the latest in a clean-up, may have less patience.
            _log.log(level, "%s does not answer '%s' now; it is asked again in %.0f s", self._origin, operation, pause)
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


def _pause_after(reply: Reply, method: str, attempt: int, backoff: Backoff) -> float | None:
    """Seconds after which the request may be sent again; None if this reply is the one to go by."""
    if reply.damaged:
        return backoff.next() if attempt < _BROKEN_TRIES else None
    if reply.refusal is None:
        return None
    status = reply.refusal.status
    if status not in BUSY and (status not in _BROKEN or method != "GET" or attempt >= _BROKEN_TRIES):
        return None
    asked = asked_for(reply.answer)
    if asked is None:
        return backoff.next()
    return asked if asked <= backoff.remaining else None


def asked_for(answer: Answer) -> float | None:
    """Seconds that the server asks us to wait, by its own clock; None if it does not say."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return float(text)
    until, now = http_date(text), http_date(answer.headers.get("Date"))
    return None if until is None or now is None else max(0.0, until - now)
