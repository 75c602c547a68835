"""Runs the asynchronous part of a command: chooses the event loop and takes the signals."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from .failures import Interrupted
from .logs import log_to
from .output import Output

GRACE = 4.5
"""Seconds that a cancelled job gets for its clean-up; the promise is 5 for the whole process."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHOW_CURSOR = b"\x1b[?25h"


def perform(output: Output, work: Callable[[], Coroutine[Any, Any, int]], *, moves: bool = True) -> int:
    """The exit code of a command that consists of `work()`; a failure is reported to `output`.

    The first of SIGINT, SIGTERM and SIGHUP cancels the work, which then has `GRACE` seconds; the second ends the
    process at once. Work that was finished by then counts as done.

    Args:
        output: Where it goes.
        work: Gives the exit code.
        moves: It moves disks, which a faster event loop is worth loading for; that takes 5 ms of CPU.
    """
    log_to(output)
    job = _Job(output, _fastest_event_loop() if moves else asyncio.new_event_loop())
    with _signals_to(job.on_signal):
        try:
            return job.run(work)
        except BaseException as error:  # noqa: BLE001 - every way a command can end is told in one line
            return output.failure(error)
        finally:
            output.close_progress()


class _Job:
    """Work on an event loop of its own that a first signal cancels and a second one ends."""

    def __init__(self, output: Output, loop: asyncio.AbstractEventLoop) -> None:
        self._output = output
        self._loop = loop
        self._task: asyncio.Task[int] | None = None
        self._signal: int | None = None

    def run(self, work: Callable[[], Coroutine[Any, Any, int]]) -> int:
        """The result of the work.

        Raises:
            Interrupted: A signal ended it.
        """
        try:
            self._task = self._loop.create_task(work())
            self._loop.call_soon(_collect_garbage)  # after the first step of the work, which imports what it needs
            return self._loop.run_until_complete(self._task)
        except BaseException as error:
            if self._signal is not None:
                raise Interrupted(self._signal) from error
            raise
        finally:
            if self._task is not None and self._task.done():  # a loop that could not run cannot be closed either
                self._loop.run_until_complete(self._loop.shutdown_asyncgens())
                self._loop.close()  # waits for no thread, as asyncio.run would: a name look-up may take minutes

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Called between any two bytecodes of the main thread."""
        if self._task is None:
            _end(self._output.failure(Interrupted(number)))
        if self._task.done():
            _end(128 + (self._signal or number))
        if self._signal is not None:
            late = f"after {GRACE:g} s its clean-up still waited for something that does not answer"
            untidy = late if number == signal.SIGALRM else "its clean-up was cut off"
            _end(self._output.last_words(Interrupted(self._signal, untidy)))
        self._signal = number
        signal.setitimer(signal.ITIMER_REAL, GRACE)
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        assert self._task is not None, "a signal before the work began ends the process"
        if sys.stderr.isatty():
            self._output.note("stopping; once more stops at once")
        self._task.cancel()


@contextmanager
def _signals_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Take the signals meanwhile; those that the caller has ignored (nohup, a job in the background) stay ignored.

    These are Python's handlers, not the loop's: they run also while the loop waits in a write to a stdout that nobody
    reads.
    """
    taken = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGALRM)}
    taken = {number: before for number, before in taken.items() if before is not signal.SIG_IGN}
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, before in taken.items():
            signal.signal(number, before)


def _collect_garbage() -> None:
    """Begin what `__main__` has put off; what was imported until now is never looked at again."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _end(status: int) -> NoReturn:
    """End the process in the middle of whatever it does, and leave the terminal usable."""
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, _SHOW_CURSOR)
    os._exit(status)


def _fastest_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # there is none for every system; asyncio's own does as well
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
