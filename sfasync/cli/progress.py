"""The progress display on a terminal: a line for each disk and one for all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from ..errors import printable
from ..units import format_rate, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..models import DiskProgress, Progress

_INTERVAL = 0.5  # seconds between two drawings
_SHOWN = 16  # disks with a line of their own; more would scroll off the terminal


class ProgressView:
    """Draws what a job reports, twice a second at most. It draws when told to and has no thread of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[amount]}", markup=False),
            _RateColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[detail]}", markup=False),
            console=Console(file=stream),
            auto_refresh=False,
            transient=True,
        )
        self._disks: dict[str, TaskID] = {}
        self._total = self._new_line("starting")
        self._next_refresh = 0.0
        self._bars.start()

    def update(self, progress: Progress) -> None:
        """Draw the state of a job that moves bytes."""
        shown = progress.disks[:_SHOWN] if len(progress.disks) > 1 else ()
        for gone in self._disks.keys() - {disk.id for disk in shown}:
            self._bars.remove_task(self._disks.pop(gone))
        for disk in shown:
            if disk.id not in self._disks:
                self._disks[disk.id] = self._new_line(printable(disk.id))
            self._draw(self._disks[disk.id], disk.done, disk.size, _not_read([disk]))
        self._draw(self._total, progress.done, progress.size, _not_read(progress.disks))
        self._bars.update(self._total, description=progress.state)
        self._bars.refresh()

    def update_count(self, state: str, what: str, done: int, count: int) -> None:
        """Draw the state of work that counts things."""
        if time.monotonic() < self._next_refresh:
            return
        self._next_refresh = time.monotonic() + _INTERVAL
        amount = f"{done} of {count} {what}"
        self._bars.update(self._total, description=state, total=count, completed=done, amount=amount)
        self._bars.refresh()

    def print(self, text: str) -> None:
        """Put a line above the display."""
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the display away for the time of the block, in which somebody else writes to the terminal."""
        self._bars.stop()
        yield
        self._bars.start()

    def close(self) -> None:
        """Take the display away and give the cursor back."""
        self._bars.stop()

    def _new_line(self, description: str) -> TaskID:
        return self._bars.add_task(description, total=None, amount="", detail="", bytes=False)

    def _draw(self, line: TaskID, done: int, size: int, detail: str) -> None:
        amount = f"{format_size(done)} of {format_size(size)}"
        self._bars.update(line, completed=done, total=size or None, amount=amount, detail=detail, bytes=True)


class _RateColumn(ProgressColumn):
    """Bytes done in a second, lately."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(format_rate(speed) if speed and task.fields["bytes"] else "", style="progress.data.speed")


def _not_read(disks: Sequence[DiskProgress]) -> str:
    sums = {word: sum(getattr(disk, word) for disk in disks) for word in ("resumed", "skipped", "zero")}
    return ", ".join(f"{format_size(size)} {word}" for word, size in sums.items() if size)
