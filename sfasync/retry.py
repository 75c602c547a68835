"""When to try again: pauses that grow and scatter, within a budget of time."""

from __future__ import annotations

import time
from collections.abc import Callable

from .models import Retry

Random = Callable[[], float]
"""Gives a number from 0 to below 1."""


def chance() -> float:
    """A number from 0 to below 1."""
    from random import random  # 1 ms, and few copies ever meet a fault

    return random()  # noqa: S311 - it keeps no secret


def pause(retry: Retry, attempt: int, rng: Random = chance) -> float:
    """Seconds to wait before the given attempt, 0 for the first one that is repeated.

    The longest wait doubles from `delay` up to `max_delay`; the share `jitter` of it is left to chance, so that many
    clients of one server do not come back together.
    """
    longest = min(retry.max_delay, retry.delay * 2.0 ** min(attempt, 64))
    return longest * (1.0 - retry.jitter * rng())


class Backoff:
    """The attempts during one outage; the budget runs from the moment it is made.

    Args:
        retry: The options.
        budget: Seconds that the outage may last.
        clock: Gives the time in seconds; only differences count.
        rng: Decides about the jitter.
    """

    def __init__(
        self, retry: Retry, budget: float, *, clock: Callable[[], float] = time.monotonic, rng: Random = chance
    ) -> None:
        self._retry = retry
        self._clock = clock
        self._rng = rng
        self._attempts = 0
        self._end = clock() + budget

    @property
    def remaining(self) -> float:
        """Seconds of the budget that are left, 0 or more."""
        return max(0.0, self._end - self._clock())

    def next(self) -> float | None:
        """Seconds to wait before the next attempt, never beyond the budget; None when that is spent."""
        remaining = self.remaining
        if remaining <= 0.0:
            return None
        self._attempts += 1
        return min(pause(self._retry, self._attempts - 1, self._rng), remaining)
