"""What the lab can be told to do wrong, so that others can see what becomes of their work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ..errors import UsageError, printable

FAULTS: Final[Mapping[str, str]] = {
    "unauthorized": "a call is answered with 401",
    "token-expired": "whoever is logged in, is not any more",
    "rate-limited": "a call is answered with 429 and Retry-After: 1",
    "unavailable": "a call is answered with 503",
    "echo-credentials": "a call fails with 500, and the message repeats the caller's credentials",
    "truncated-json": "an answer ends in the middle",
    "deep-json": "an answer is nested 100,000 deep",
    "huge-body": "an answer goes on for 1 GiB",
    "redirect-http": "a call is redirected to http, without TLS",
    "redirect-host": "a call is redirected to another host",
    "traversal-id": "the id of what is created is ../../x",
    "endless-pages": "a list has always another page",
    "busy": "a snapshot or a backup resource is refused: another task works on the VM",
    "slow-task": "a task takes 5 s",
    "failed-task": "a task fails",
    "lease-not-renewed": "a renewal is answered as if it had been done",
    "lease-cancelled": "the platform takes the backup resource back while a disk is read or written",
    "snapshot-deleted": "somebody deletes the snapshot that is being read",
    "cbt-expired": "changed areas are refused: tracking has expired",
    "cbt-missing-page": "an answer about changed areas says that it covers more than it does",
    "cbt-repeated-page": "an answer about changed areas is that of the call before",
    "nbd-killed": "the data service ends while a disk is read or written, and comes back with the next backup resource",
}
"""Names of faults, and what happens each time."""

ALWAYS: Final = -1
"""A count: until told otherwise."""


@dataclass(slots=True)
class _Plan:
    left: int
    path: str


class Misbehaviour:
    """Which faults are due."""

    def __init__(self) -> None:
        self._plans: dict[str, _Plan] = {}

    def plan(self, name: str, count: int = 1, *, path: str = "") -> None:
        """Let a fault happen the next `count` times, `ALWAYS`, or (0) no more.

        Args:
            name: One of `FAULTS`.
            count: How many times.
            path: Only calls whose path contains this are concerned.

        Raises:
            UsageError: There is no such fault.
        """
        if name not in FAULTS:
            raise UsageError(f"the lab cannot do '{printable(name)}'; it can do {', '.join(FAULTS)}")
        if count < ALWAYS:
            raise UsageError(f"a fault happens 0 or more times, not {count}")
        self._plans.pop(name, None)
        if count:
            self._plans[name] = _Plan(count, path)

    def behave(self) -> None:
        """Nothing more is to happen."""
        self._plans.clear()

    def due(self, name: str, path: str = "") -> bool:
        """Whether a fault happens now; that counts."""
        plan = self._plans.get(name)
        if plan is None or plan.path not in path:
            return False
        plan.left -= plan.left > 0
        if plan.left == 0:
            del self._plans[name]
        return True

    @property
    def planned(self) -> dict[str, int]:
        """What may still happen, and how many times; `ALWAYS` for no end."""
        return {name: plan.left for name, plan in self._plans.items()}
