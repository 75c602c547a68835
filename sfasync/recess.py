"""How threads and the pipeline take turns at one plan: what threads give back is the pipeline's, but not for ever.

A server that took its time may answer at once a minute later, and one that was lost may be back. So threads are tried
again after a while, with the next stretch. Where that is in vain it costs some tenths of a second, each time after
twice as long::

    threads   ----far         -far                   ----------------------
    pipeline             -----    -----------------
                          5 s           10 s
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Final

from .extents import Step

_FIRST: Final = 5.0
_LONGEST: Final = 600.0
"""Seconds that the pipeline has a plan, the first time and at most."""


class Plan:
    """Steps that are taken by one after the other.

    Attributes:
        ended: Whether there are no more.
    """

    def __init__(self, steps: AsyncIterator[Step]) -> None:
        self.ended = False
        self._steps = steps

    def __aiter__(self) -> Plan:
        return self

    async def __anext__(self) -> Step:
        try:
            return await anext(self._steps)
        except StopAsyncIteration:
            self.ended = True
            raise


class Recess:
    """How long the pipeline has the plan of one disk."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._end = float("-inf")

    def begin(self, *, carried: bool) -> None:
        """It has the plan from now on; `carried` is whether there were threads before. If there never were any, it
        keeps it. Threads that have done well for as long as the last recess took are trusted as at first.
        """
        now = time.monotonic()
        if not self._seconds:
            self._seconds = _FIRST if carried else float("inf")
        elif now - self._end > self._seconds:
            self._seconds = _FIRST
        else:
            self._seconds = min(2 * self._seconds, _LONGEST)
        self._end = now + self._seconds

    def over(self, _: Step) -> bool:
        """Whether threads are to be tried again."""
        return time.monotonic() >= self._end
