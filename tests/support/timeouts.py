"""A test that takes too long fails, whatever event loop it hangs in.

What pytest-timeout raises in its signal handler, an event loop takes for a failure of the callback that it ran, logs,
and goes on: a test that hung in uvloop, or in a callback or task of asyncio, hung for ever. A plugin of pytest.
"""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Generator
from types import FrameType

import pytest
import pytest_timeout  # type: ignore[import-untyped] # it has no types

GRACE = 30.0
"""Seconds that a test which took too long has to clean up, before it is interrupted again."""


class TimedOut(SystemExit):
    """A test took too long. Both loops pass on what ends a process, from wherever it is raised."""


class _Phase:
    """Whether a test is set up, run or cleaned up at this moment; between that, nobody catches what is raised."""

    runs = False

    def __enter__(self) -> None:
        _Phase.runs = True

    def __exit__(self, *_: object) -> None:
        _Phase.runs = False


def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> bool | None:
    """Interrupt a test at its timeout, and again while it does not end.

    pytest-timeout would leave it alone once it has failed, and it could hang in its clean-up.
    """
    if settings.method != "signal":
        return None

    def ring(number: int, frame: FrameType | None) -> None:
        if _Phase.runs and not pytest_timeout.is_debugging():
            faulthandler.dump_traceback(2)  # shown with the failure
            raise TimedOut(f"the test took more than {settings.timeout:g} s")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout, GRACE)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    with _Phase():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    with _Phase():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    with _Phase():
        return (yield)


def pytest_runtest_logfinish() -> None:
    """The test has ended, and its clean-up too."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
