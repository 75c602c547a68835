"""The one place that prints: results on stdout, everything else on stderr.

With ``--json`` stdout carries one object per line, each with an ``event``; `docs/json-schema.json` describes them. The
last line is the result or the error.
"""

from __future__ import annotations

import os
import select
import sys
import time
import traceback
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from ..errors import StorageError, one_line
from .failures import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TextIO

    from ..models import Progress
    from ..progress import ProgressCallback
    from .failures import Failure
    from .progress import ProgressView

_INTERVAL = 0.5  # seconds between two progress objects: at most two in a second


class Output:
    """Where a command puts what it has to say.

    Attributes:
        json: stdout carries JSON lines only.
        quiet: No progress, and nothing for people but errors and what was asked for.
        verbosity: 0, or 1 for what is being done, or 2 for everything, tracebacks included.
    """

    def __init__(self) -> None:
        self.json = False
        self.quiet = False
        self.verbosity = 0
        self._view: ProgressView | None = None
        self._next_progress = 0.0

    # --- results -----------------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        """A line for people, whatever names are in it; not there with ``--json``."""
        if not self.json:
            self._write(one_line(text))

    def remark(self, text: str) -> None:
        """A line for people that a quiet run does not need."""
        if not self.quiet:
            self.line(text)

    def event(self, event: str, fields: Mapping[str, object]) -> None:
        """An object for programs; only there with ``--json``."""
        if self.json:
            self._write(_packed(event, fields))

    def result(self, command: str, fields: Mapping[str, object]) -> None:
        """The object that ends a successful command."""
        self.event("result", {"ok": True, "command": command, **fields})

    # --- what goes wrong ---------------------------------------------------------------------------------------------

    def failure(self, error: BaseException) -> int:
        """The line, and the object, that end a command which failed; returns its exit code."""
        self.close_progress()
        failure = describe(error)
        if self.verbosity >= 2:
            self.note("".join(traceback.format_exception(error)).rstrip())
        with suppress(StorageError):  # then stderr and the exit code have to do
            self.event("error", _failure_fields(failure))
        self.note(failure.message)
        return failure.exit

    def last_words(self, error: BaseException) -> int:
        """As `failure`, from a signal handler of a process that ends now, which may be in any of these methods.

        It waits for no reader, and uses no buffer or display that somebody may be in.
        """
        failure = describe(error)
        if self.json:
            _put(sys.stdout, _packed("error", _failure_fields(failure)))
        _put(sys.stderr, f"{'' if self._view is None else os.linesep}sfasync: {failure.message}")
        return failure.exit

    def warning(self, text: str) -> None:
        """A line on stderr about something that did no harm."""
        self.note(f"warning: {text}")

    def detail(self, text: str) -> None:
        """A line on stderr that only -v shows."""
        if self.verbosity:
            self.note(text)

    def note(self, text: str) -> None:
        """A line on stderr, or the lines of a traceback; above the progress display if there is one."""
        text = "\n".join(map(one_line, text.splitlines()))
        if self._view is not None:
            self._view.print(f"sfasync: {text}")
            return
        with suppress(OSError):  # the terminal has gone; the exit code still tells
            sys.stderr.write(f"sfasync: {text}\n")
            sys.stderr.flush()

    # --- progress ----------------------------------------------------------------------------------------------------

    def job_progress(self) -> ProgressCallback | None:
        """What a job should call to tell how far it is; None if nobody looks."""
        if self.json and not self.quiet:
            return lambda progress: self._progress_event(progress_fields(progress))
        view = self._new_view()
        return None if view is None else view.update

    def count_progress(self, state: str, what: str) -> Callable[[int, int], None] | None:
        """The same for work that counts things: it is called with things done and things in all."""
        if self.json and not self.quiet:
            return lambda done, count: self._progress_event({"state": state, f"{what}_done": done, what: count})
        view = self._new_view()
        return None if view is None else lambda done, count: view.update_count(state, what, done, count)

    def close_progress(self) -> None:
        """Take the progress display away; does nothing without one."""
        view, self._view = self._view, None
        if view is not None:
            view.close()

    def _new_view(self) -> ProgressView | None:
        if self.json or self.quiet or not sys.stderr.isatty():
            return None
        from .progress import ProgressView  # with rich, which is not loaded for anybody else

        self._view = ProgressView(sys.stderr)
        return self._view

    def _progress_event(self, fields: Mapping[str, object]) -> None:
        if time.monotonic() >= self._next_progress and _takes_more(sys.stdout.fileno()):
            self._next_progress = time.monotonic() + _INTERVAL
            self.event("progress", fields)

    # --- writing -----------------------------------------------------------------------------------------------------

    def _write(self, text: str) -> None:
        """Write a line to stdout, at once. A reader that has gone is no error: it has read what it wanted."""
        try:
            with nullcontext() if self._view is None else self._view.aside():
                sys.stdout.write(text + "\n")
                sys.stdout.flush()
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it stays open as long as the process
        except OSError as error:
            raise StorageError(f"cannot write to standard output: {error.strerror}") from error


def progress_fields(progress: Progress) -> dict[str, object]:
    """The progress of a job, as in ``--json``."""
    return {
        "state": progress.state,
        "done": progress.done,
        "size": progress.size,
        "read": progress.read,
        "seconds": round(progress.seconds, 3),
        "disks": [
            {
                "id": disk.id,
                "size": disk.size,
                "done": disk.done,
                "read": disk.read,
                "zero": disk.zero,
                "skipped": disk.skipped,
                "resumed": disk.resumed,
            }
            for disk in progress.disks
        ],
    }


def _failure_fields(failure: Failure) -> dict[str, object]:
    known = {"disk": failure.disk, "offset": failure.offset, "path": failure.path}
    fields = {"ok": False, "code": failure.code, "exit": failure.exit, "message": failure.message}
    return fields | {name: value for name, value in known.items() if value is not None}


def _packed(event: str, fields: Mapping[str, object]) -> str:
    import json  # nobody else waits for it

    return json.dumps({"event": event, **fields}, separators=(",", ":"), allow_nan=False)


def _put(stream: TextIO, line: str) -> None:
    """Write a line to what is below a stream, if that takes it now."""
    with suppress(OSError, ValueError):  # it was closed, or is none of the system's
        descriptor = stream.fileno()
        if _takes_more(descriptor):
            os.write(descriptor, f"{line}\n".encode())


def _takes_more(descriptor: int) -> bool:
    """Whether writing to stdout would not wait now: a reader that stopped reading must not stop a backup."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))
