"""The one place that prints: results on stdout, everything else on stderr.

With ``--json`` stdout carries one object per line, each with an ``event``; `docs/json-schema.json` describes them. The last
line is the result or the error.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import StorageError
from .failures import Failure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..progress import Progress, ProgressCallback
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
        """A line for people; not there with ``--json``."""
        if not self.json:
            self._write(text)

    def remark(self, text: str) -> None:
        """A line for people that a quiet run does not need."""
        if not self.quiet:
            self.line(text)

    def event(self, event: str, fields: Mapping[str, object]) -> None:
        """An object for programs; only there with ``--json``."""
        if self.json:
            self._write(json.dumps({"event": event, **fields}, separators=(",", ":"), allow_nan=False))

    def result(self, command: str, fields: Mapping[str, object]) -> None:
        """The object that ends a successful command."""
        self.event("result", {"ok": True, "command": command, **fields})

    # --- what goes wrong ---------------------------------------------------------------------------------------------

    def failure(self, failure: Failure) -> None:
        """The line, and the object, that end a command which failed."""
        self.close_progress()
        known = {"disk": failure.disk, "offset": failure.offset, "path": failure.path}
        fields = {"ok": False, "code": failure.code, "exit": failure.exit, "message": failure.message}
        with suppress(StorageError):  # then stderr and the exit code have to do
            self.event("error", fields | {name: value for name, value in known.items() if value is not None})
        self.note(failure.message)

    def warning(self, text: str) -> None:
        """A line on stderr about something that did no harm."""
        self.note(f"warning: {text}")

    def note(self, text: str) -> None:
        """A line on stderr, above the progress display if there is one."""
        if self._view is not None:
            self._view.print(f"sfasync: {text}")
            return
        with suppress(OSError):  # the terminal has gone; the exit code still tells
            sys.stderr.write(f"sfasync: {text}\n")
            sys.stderr.flush()

    # --- progress ----------------------------------------------------------------------------------------------------

    def progress_callback(self) -> ProgressCallback | None:
        """What a job should call to tell how far it is; None if nobody looks."""
        if self.quiet:
            return None
        if self.json:
            return self._progress_event
        if sys.stderr.isatty():
            from .progress import ProgressView  # rich: not loaded for anybody else

            self._view = ProgressView(sys.stderr)
            return self._view.update
        return None

    def close_progress(self) -> None:
        """Take the progress display away; does nothing without one."""
        view, self._view = self._view, None
        if view is not None:
            view.close()

    def _progress_event(self, progress: Progress) -> None:
        if time.monotonic() < self._next_progress or not _takes_more(sys.stdout.fileno()):
            return
        self._next_progress = time.monotonic() + _INTERVAL
        self.event("progress", progress_fields(progress))

    # --- writing -----------------------------------------------------------------------------------------------------

    def _write(self, text: str) -> None:
        """Write a line to stdout, at once. A reader that has gone is no error: it has read what it wanted."""
        try:
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
            }
            for disk in progress.disks
        ],
    }


def _takes_more(descriptor: int) -> bool:
    """Whether writing to stdout would not wait now: a reader that stopped reading must not stop a backup."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))
