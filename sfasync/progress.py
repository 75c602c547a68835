"""What a job tells while it runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .models import DiskProgress, Progress

_INTERVAL = 0.5  # seconds between two reports of the same state

log = logging.getLogger("sfasync")


ProgressCallback = Callable[["Progress"], None]


@dataclass(slots=True)
class Meter:
    """Counts what a pipeline does with one disk.

    Attributes:
        id: The disk's id.
        size: Bytes of the disk.
        read, zero, skipped, resumed: As in `DiskProgress`.
        written: Data bytes handed to the sink.
        audited: Chunks that were called unchanged, read again and found so.
        seconds: Where the lanes waited, added up over all lanes: `memory`, `read`, `write`.
        changed: Called after each count.
    """

    id: str
    size: int
    read: int = 0
    zero: int = 0
    skipped: int = 0
    resumed: int = 0
    written: int = 0
    audited: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"memory": 0.0, "read": 0.0, "write": 0.0})
    changed: Callable[[], None] = lambda: None

    def restart(self) -> None:
        """The disk is moved once more from its beginning. What was read, and the time, still count."""
        self.zero = self.skipped = self.resumed = self.written = self.audited = 0

    def progress(self) -> DiskProgress:
        from .models import DiskProgress  # a job that nobody looks at needs none

        return DiskProgress(
            id=self.id,
            size=self.size,
            done=min(self.written + self.zero + self.skipped + self.resumed, self.size),
            read=self.read,
            zero=self.zero,
            skipped=self.skipped,
            resumed=self.resumed,
        )


class Reporter:
    """Tells a callback how a job is doing: at each change of state, and twice a second at most in between.

    The callback is a plain function and runs on the event loop. One that raises is logged once and not called again.
    """

    def __init__(self, callback: ProgressCallback | None = None) -> None:
        self._callback = callback
        self._meters: list[Meter] = []
        self._state = "starting"
        self._began = time.monotonic()
        self._next_report = 0.0

    def meter(self, disk_id: str, size: int) -> Meter:
        """Begin to count a disk."""
        meter = Meter(disk_id, size, changed=self._changed)
        self._meters.append(meter)
        return meter

    def enter(self, state: str) -> None:
        """The job is in another state now."""
        self._state = state
        self._report()

    def snapshot(self) -> Progress:
        """The state at this moment."""
        from .models import Progress

        return Progress(
            state=self._state,
            disks=tuple(meter.progress() for meter in self._meters),
            seconds=time.monotonic() - self._began,
        )

    def _changed(self) -> None:
        if self._callback is not None and time.monotonic() >= self._next_report:
            self._report()

    def _report(self) -> None:
        if self._callback is None:
            return
        self._next_report = time.monotonic() + _INTERVAL
        try:
            self._callback(self.snapshot())
        except Exception:  # it is the caller's: whatever it raises must not stop a backup
            log.exception("the progress callback failed and is not called again")
            self._callback = None
