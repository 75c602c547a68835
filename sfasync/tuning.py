"""How much of a copy is under way at once, found by trying.

A server that answers at once is kept busy by a few steps, and more of them only push each other out of the processor's
caches; one that is far away needs dozens, and one that answers one request at a time needs large ones. Nobody can know
before. So a copy begins with a few steps, adds one with each that ends until they begin to wait for each other, and
from then on tries now and then whether more, larger or fewer ones move more bytes. Where it is known that single steps
take their time, it begins with as many as there may be.

Pure: times come from the caller. A trial counts only what was begun within it::

    steps        ----. ----. ----. ----.        one column: begun together
    of the old   ----. ----.                    not counted
    trial              ^     |clock runs        from the end of its first step on, for whole windows of steps
"""

from __future__ import annotations

from enum import Enum
from math import ceil
from typing import Final, NamedTuple

from .units import MiB

LEAST_WINDOW: Final = 4
LARGEST_STEP: Final = 4 * MiB

_FIRST_WINDOW: Final = 8
_SMOOTHING: Final = 8  # steps over which the time of one is averaged
_QUEUED: Final = 1.25  # times the shortest time of a step: from there on they wait for each other
_AGING: Final = 1.02  # times the shortest time with each measurement: one lucky step does not count for ever
_FULL: Final = 2.0  # the same: from there on more of them do nothing but wait
_SPAN: Final = 0.025  # seconds that a measurement lasts at least
_WORTH: Final = 1.08  # times the rate that makes more, or larger, steps worth their memory
_FREE: Final = 0.98  # times the rate at which fewer steps cost nothing
_LONGEST_HOLD: Final = 32  # measurements between two trials
_HOLD_FROM_AFAR: Final = 4  # half of them after the first trial, where each step takes its time


class Setting(NamedTuple):
    """What a copy does at once.

    Attributes:
        window: Steps.
        size: Bytes of each.
    """

    window: int
    size: int


class _Trial(Enum):
    """What may be tried, in turn. Fewer come first: the first rise goes too far where a server is near."""

    FEWER = "fewer"
    LARGER = "larger"
    MORE = "more"


_ROUND: Final = tuple(_Trial)


class Tuner:
    """Chooses window and size of the steps of one copy.

    Args:
        most: Steps at most.
        size: Bytes of a step to begin with.
        largest: Bytes of a step at most.
        memory: Bytes that all steps together may take.
        pinned: Begin with `most` steps, and stay there; only the size may change.

    Attributes:
        most: As given.
        setting: What is to be done now.
    """

    def __init__(self, *, most: int, size: int, largest: int, memory: int, pinned: bool = False) -> None:
        self.most = most
        self._least = most if pinned else min(LEAST_WINDOW, most)
        self._largest = max(size, largest)
        self._memory = memory
        first = most if pinned else min(_FIRST_WINDOW, most)
        self.setting = Setting(max(1, min(first, memory // size)), size)
        self._rising = not pinned
        self._shortest = float("inf")  # seconds of a step that did not have to wait
        self._usual = 0.0  # and of one as they are now
        self._measurement = _Measurement(float("-inf"))
        self._rate = 0.0  # before a trial
        self._previous: Setting | None = None  # before the trial that is under way
        self._turn = -1  # whose trial it was last
        self._hold = self._held = 1  # measurements until the next trial, and how many there were before this one

    def leap(self, now: float) -> None:
        """Go on with as many steps as there may be, because each was seen to take its time. Only larger ones may be
        better still, and are tried first.
        """
        self._rising = False
        self._previous = None
        self._set(self.most, self.setting.size)
        self._measurement = _Measurement(now)
        self._turn, self._hold, self._held = _ROUND.index(_Trial.FEWER), 1, _HOLD_FROM_AFAR

    def finished(self, began: float, now: float, length: int) -> None:
        """Take note of a step that was begun and has ended at these seconds, having moved `length` bytes."""
        seconds = now - began
        self._shortest = min(self._shortest, seconds)
        self._usual += (seconds - self._usual) / _SMOOTHING if self._usual else seconds
        if self._rising:
            self._rise(now)
            return
        rate = self._measurement.rate(began, now, length, window=self.setting.window)
        if rate is not None:
            self._judge(rate)
            self._measurement = _Measurement(now)

    def _rise(self, now: float) -> None:
        """One step more for each that ends, until they wait for each other."""
        if self._waiting(_FULL) or not self._set(self.setting.window + 1, self.setting.size):
            self._rising = False
            self._measurement = _Measurement(now)

    def _judge(self, rate: float) -> None:
        """Decide by a finished measurement what comes next."""
        previous, self._previous = self._previous, None
        self._shortest *= _AGING
        if previous is None:
            self._rate = rate
            self._hold -= 1
            if self._hold <= 0:
                self._try_next()
        elif rate >= self._rate * (_FREE if _ROUND[self._turn] is _Trial.FEWER else _WORTH):
            self._rate = rate
            self._held = 1
            self._try(_ROUND[self._turn])  # once more of the same
        else:
            self.setting = previous
            self._hold = self._held = min(2 * self._held, _LONGEST_HOLD)

    def _try_next(self) -> None:
        """Begin the next trial that can be made."""
        for _ in _ROUND:
            self._turn = (self._turn + 1) % len(_ROUND)
            if self._try(_ROUND[self._turn]):
                return

    def _try(self, trial: _Trial) -> bool:
        """Begin a trial, unless the limits or the times of the steps say that it is in vain."""
        before = self.setting
        window, size = before.window, before.size
        if trial is _Trial.LARGER:
            # Where all is served at once, and memory is all there is to be had, twice the size is half the window.
            useful = self._waiting(_QUEUED) or 2 * size * window <= self._memory
            changed = useful and 2 * size <= self._largest and self._set(window, 2 * size)
        elif trial is _Trial.MORE:
            changed = not self._waiting(_FULL) and self._set(2 * window, size)
        else:
            changed = self._waiting(_QUEUED) and self._set(max(self._least, min(window // 2, self._enough())), size)
        if changed:
            self._previous = before
        return changed

    def _enough(self) -> int:
        """Steps that would still wait for each other, if their rate stays what it is (Little's law)."""
        return ceil(self.setting.window * _FULL * self._shortest / self._usual)

    def _set(self, window: int, size: int) -> bool:
        """Change the setting as far as the limits allow; whether that is a change."""
        before = self.setting
        self.setting = Setting(max(1, min(window, self.most, self._memory // size)), size)
        return self.setting != before

    def _waiting(self, times: float) -> bool:
        """Whether steps wait for each other: so many times as long as one takes alone."""
        return self._usual > times * self._shortest


class _Measurement:
    """The rate of the steps that begin from an instant on.

    Args:
        begin: That instant.
    """

    def __init__(self, begin: float) -> None:
        self._begin = begin
        self._first: float | None = None  # when the first of them ended
        self._count = 0
        self._bytes = 0

    def rate(self, began: float, now: float, length: int, *, window: int) -> float | None:
        """Take note of a step; bytes in a second, once that is known."""
        if began < self._begin:
            return None
        if self._first is None:
            self._first = now
            return None
        self._count += 1
        self._bytes += length
        span = now - self._first
        # Whole windows: what begins together also ends together.
        return self._bytes / span if span >= _SPAN and self._count % window == 0 else None
