"""The progress display on a terminal: a line for each disk and one for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from ..errors import printable
from ..units import format_rate, format_size

if TYPE_CHECKING:
    from ..progress import Progress

_SHOWN = 16  # disks with a line of their own; more would scroll off the terminal


class ProgressView:
    """Draws what a job reports. It draws when told to and has no thread of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            _SizeColumn(),
            _RateColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[detail]}", markup=False),
            console=Console(file=stream),
            auto_refresh=False,
            transient=True,
        )
        self._lines: dict[str, TaskID] = {}
        self._total = self._bars.add_task("starting", total=None, detail="")
        self._bars.start()

    def update(self, progress: Progress) -> None:
        """Draw the state of a job."""
        for disk in progress.disks[:_SHOWN] if len(progress.disks) > 1 else ():
            self._bars.update(
                self._line(disk.id),
                total=disk.size,
                completed=disk.done,
                detail=_not_read(disk.skipped, disk.zero),
            )
        self._bars.update(
            self._total,
            description=progress.state,
            total=progress.size or None,
            completed=progress.done,
            detail=_not_read(
                sum(disk.skipped for disk in progress.disks),
                sum(disk.zero for disk in progress.disks),
            ),
        )
        self._bars.refresh()

    def print(self, text: str) -> None:
        """Put a line above the display."""
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the display away and give the cursor back."""
        self._bars.stop()

    def _line(self, disk_id: str) -> TaskID:
        if disk_id not in self._lines:
            self._lines[disk_id] = self._bars.add_task(printable(disk_id), total=None, detail="")
        return self._lines[disk_id]


class _SizeColumn(ProgressColumn):
    """Bytes done of bytes in all."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text()
        return Text(f"{format_size(task.completed)} of {format_size(task.total)}", style="progress.download")


class _RateColumn(ProgressColumn):
    """Bytes done in a second, lately."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else format_rate(speed), style="progress.data.speed")


def _not_read(skipped: int, zero: int) -> str:
    parts = [f"{format_size(size)} {word}" for size, word in ((skipped, "skipped"), (zero, "zero")) if size]
    return ", ".join(parts)
