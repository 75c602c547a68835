"""The platform's clock, by which requests are signed and tokens run out."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Final

_RESOLUTION: Final = 2.0
_BELIEVABLE: Final = 20 * 365 * 86400.0


class ServerClock:
    """Learns from each answer how far the platform's clock is from ours.

    Attributes:
        offset: Seconds that it is ahead; 0 while it is within what the header can tell.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.offset = 0.0

    def now(self) -> float:
        """Seconds since the epoch, as the platform counts them."""
        return self._clock() + self.offset

    def stamp(self) -> str:
        """Now, as requests are dated: ``YYYYMMDDTHHMMSSZ``."""
        return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.now()))

    def learn(self, date: str | None) -> None:
        """Take in the header ``Date`` of an answer that has just come; one that cannot be read is passed over."""
        there = http_date(date)
        if there is None:
            return
        offset = there - self._clock()
        if abs(offset) > _BELIEVABLE:
            return
        self.offset = offset if abs(offset) > _RESOLUTION else 0.0


def http_date(text: str | None) -> float | None:
    """Seconds since the epoch of a date as HTTP writes it; None for what is none."""
    if text is None:
        return None
    try:
        return parsedate_to_datetime(text[:64]).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
