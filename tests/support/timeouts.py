"""A test that takes too long fails, whatever event loop it hangs in.

What pytest-timeout raises in its signal handler, an event loop takes for a failure of the callback that it ran, logs,
and goes on: a test that hung in uvloop, or in a callback or task of asyncio, hung for ever.
"""

from __future__ import annotations

import faulthandler
import signal
from types import FrameType

import pytest
import pytest_timeout  # type: ignore[import-untyped]

GRACE = 30.0
"""Seconds that a test which took too long has to clean up, before it is interrupted again."""


class TimedOut(SystemExit):
    """A test took too long. Both loops pass on what ends a process, from wherever it is raised."""


def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> bool | None:
    """Interrupt a test at its timeout, and again while it does not end.

    pytest-timeout would leave it alone once it has failed, and it could hang in its clean-up.
    """
    if settings.method != "signal":
        return None

    def ring(number: int, frame: FrameType | None) -> None:
        if not pytest_timeout.is_debugging():
            faulthandler.dump_traceback(2)  # shown with the failure
            raise TimedOut(f"the test took more than {settings.timeout:g} s")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout, GRACE)
    return True


def pytest_runtest_logfinish(nodeid: str, location: tuple[str, int | None, str]) -> None:
    """The test has ended, and its clean-up too."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
