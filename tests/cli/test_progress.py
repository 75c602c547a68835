"""What the display on a terminal shows."""

from __future__ import annotations

import io
import threading

import pytest

from sfasync.cli.progress import ProgressView
from sfasync.models import DiskProgress, Progress

MiB = 1 << 20


class Terminal(io.StringIO):
    """Remembers what was written to it and claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def job(*disks: DiskProgress, state: str = "running") -> Progress:
    return Progress(state=state, disks=disks, seconds=1.0)


def disk(name: str, done: int = 40 * MiB) -> DiskProgress:
    return DiskProgress(
        id=name, size=100 * MiB, done=done, read=done - 20 * MiB, zero=5 * MiB, skipped=15 * MiB, resumed=0
    )


def test_a_line_for_each_disk_and_one_for_all(terminal: Terminal) -> None:
    view = ProgressView(terminal)
    view.update(job(disk("vda"), disk("vdb", 60 * MiB)))
    shown = terminal.getvalue()
    view.close()
    for text in ("vda", "vdb", "running", "100 MiB of 200 MiB", "15 MiB skipped, 5 MiB zero", "30 MiB skipped"):
        assert text in shown


def test_one_disk_needs_no_line_of_its_own(terminal: Terminal) -> None:
    view = ProgressView(terminal)
    view.update(job(disk("vda")))
    view.close()
    assert "vda" not in terminal.getvalue()
    assert "40 MiB of 100 MiB" in terminal.getvalue()


def test_many_disks_do_not_scroll_the_terminal(terminal: Terminal) -> None:
    view = ProgressView(terminal)
    view.update(job(*(disk(f"disk{number:03}") for number in range(100))))
    view.close()
    assert "disk015" in terminal.getvalue()
    assert "disk016" not in terminal.getvalue()


def test_lines_of_disks_that_are_done_go_away(terminal: Terminal) -> None:
    view = ProgressView(terminal)
    for number in range(40):
        view.update(job(disk(f"disk{number:03}"), disk("all")))
    terminal.truncate(0)
    view.update(job(disk("disk099"), disk("all")))
    shown = terminal.getvalue()
    view.close()
    assert "disk099" in shown
    assert "disk039" not in shown


def test_others_may_write_meanwhile(terminal: Terminal) -> None:
    view = ProgressView(terminal)
    view.update(job(disk("vda")))
    with view.aside():
        shown = terminal.getvalue()
        assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the display is gone"
    terminal.truncate(0)
    view.update(job(disk("vda", 60 * MiB)))
    assert "60 MiB of 100 MiB" in terminal.getvalue()
    view.close()


def test_counted_things(terminal: Terminal) -> None:
    view = ProgressView(terminal)
    view.update_count("verifying", "objects", 7, 30)
    view.update_count("verifying", "objects", 8, 30)  # too soon to be drawn
    view.close()
    assert "7 of 30 objects" in terminal.getvalue()
    assert "/s" not in terminal.getvalue()


def test_names_cannot_control_the_terminal(terminal: Terminal) -> None:
    view = ProgressView(terminal)
    view.update(job(disk("\x1b[2Jgone"), disk("[red]b")))
    view.close()
    assert "\x1b[2J" not in terminal.getvalue()
    assert "[red]b" in terminal.getvalue(), "no markup"


def test_lines_above_the_display(terminal: Terminal) -> None:
    view = ProgressView(terminal)
    view.print("sfasync: warning: [bold]careful " + "x" * 300)
    view.close()
    assert "sfasync: warning: [bold]careful " + "x" * 300 in terminal.getvalue().replace("\n", "")


def test_no_colour_if_not_wanted(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    view = ProgressView(terminal)
    view.update(job(disk("vda")))
    view.close()
    assert "\x1b[3" not in terminal.getvalue()


def test_the_cursor_comes_back_and_no_thread_stays(terminal: Terminal) -> None:
    before = threading.active_count()
    view = ProgressView(terminal)
    view.update(job(disk("vda")))
    assert threading.active_count() == before, "it draws when told to"
    view.close()
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")
