"""Results go to stdout, everything else to stderr, and a reader that has gone changes nothing."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from sfasync.cli.output import Output
from sfasync.errors import IntegrityError, StorageError
from sfasync.models import DiskProgress, Progress

from ..support.command import checked

PROGRESS = Progress(
    state="running",
    disks=(
        DiskProgress(id="vda", size=100, done=60, read=40, zero=10, skipped=10, resumed=0),
        DiskProgress(id="vdb", size=50, done=0, read=0, zero=0, skipped=0, resumed=0),
    ),
    seconds=1.25,
)


@pytest.fixture
def output() -> Output:
    return Output()


@pytest.fixture
def programs(output: Output) -> Output:
    output.json = True
    return output


def test_people_get_lines(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    output.line("asked for")
    output.remark("nice to know")
    output.event("backup", {"id": "x"})
    output.result("list", {"count": 1})
    assert capsys.readouterr() == ("asked for\nnice to know\n", "")


def test_names_cannot_control_the_terminal(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    output.line("disk \x1b[2J\nvda")
    output.warning("disk \x1b[2J")
    assert capsys.readouterr() == (r"disk \x1b[2J\nvda" "\n", r"sfasync: warning: disk \x1b[2J" "\n")


def test_programs_get_objects(programs: Output, capsys: pytest.CaptureFixture[str]) -> None:
    programs.line("asked for")
    programs.remark("nice to know")
    programs.result("list", {"count": 1})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"event": "result", "ok": True, "command": "list", "count": 1}
    assert not err


def test_quiet_leaves_what_was_asked_for(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    output.quiet = True
    output.line("asked for")
    output.remark("nice to know")
    output.warning("careful")
    assert capsys.readouterr() == ("asked for\n", "sfasync: warning: careful\n")
    assert output.job_progress() is None
    assert output.count_progress("verifying", "objects") is None


def test_details_are_for_the_curious(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    output.detail("not shown")
    output.verbosity = 1
    output.detail("shown")
    assert capsys.readouterr().err == "sfasync: shown\n"


def test_a_failure_is_told_to_both(programs: Output, capsys: pytest.CaptureFixture[str]) -> None:
    status = programs.failure(IntegrityError("damaged", disk="vda", offset=0, path="packs/ab"))
    out, err = capsys.readouterr()
    assert status == 22
    assert checked(out) == {
        "event": "error",
        "ok": False,
        "code": "integrity",
        "exit": 22,
        "message": "damaged",
        "disk": "vda",
        "offset": 0,
        "path": "packs/ab",
    }
    assert err == "sfasync: damaged\n"


def _fail() -> None:
    raise RuntimeError("odd")


@pytest.mark.parametrize(("verbosity", "traceback"), [(0, False), (1, False), (2, True)])
def test_a_traceback_only_when_everything_is_wanted(
    output: Output, capsys: pytest.CaptureFixture[str], verbosity: int, traceback: bool
) -> None:
    output.verbosity = verbosity
    with pytest.raises(RuntimeError) as failed:
        _fail()
    assert output.failure(failed.value) == 1
    err = capsys.readouterr().err
    assert ("Traceback" in err) == traceback
    assert err.splitlines()[-1].startswith("sfasync: internal error: RuntimeError: odd")
    assert traceback or len(err.splitlines()) == 1


def test_progress_at_most_twice_a_second(programs: Output, capfd: pytest.CaptureFixture[str]) -> None:
    report = programs.job_progress()
    assert report is not None
    for _ in range(100):
        report(PROGRESS)
    events = [checked(line) for line in capfd.readouterr().out.splitlines()]
    assert len(events) == 1
    assert (events[0]["done"], events[0]["size"], events[0]["read"]) == (60, 150, 40)


def test_progress_of_counted_things(programs: Output, capfd: pytest.CaptureFixture[str]) -> None:
    report = programs.count_progress("verifying", "objects")
    assert report is not None
    report(3, 10)
    event = checked(capfd.readouterr().out)
    assert (event["objects_done"], event["objects"]) == (3, 10)


def test_no_progress_where_nobody_looks(output: Output) -> None:
    assert output.job_progress() is None
    assert output.count_progress("verifying", "objects") is None


# --- readers that go away --------------------------------------------------------------------------------------------


@contextmanager
def stdout_into(descriptor: int) -> Iterator[None]:
    """Let sys.stdout write to a descriptor, which is closed afterwards with whatever has taken its place."""
    before = sys.stdout
    stdout = sys.stdout = io.TextIOWrapper(io.FileIO(descriptor, "w"), write_through=True)
    try:
        yield
    finally:
        for stream in {stdout, sys.stdout}:
            stream.close()
        sys.stdout = before


def test_a_closed_stdout_is_no_error(output: Output) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with stdout_into(writer):
        output.line("first")
        output.line("second")


def test_a_reader_that_stopped_reading_holds_nobody_up(programs: Output) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    with stdout_into(writer):
        report = programs.job_progress()
        assert report is not None
        report(PROGRESS)  # would wait for ever
    os.close(reader)


def test_a_full_device_is_an_error(output: Output) -> None:
    with stdout_into(os.open("/dev/full", os.O_WRONLY)), pytest.raises(StorageError, match="output: No space left"):
        output.line("lost")


def test_a_failure_is_told_although_stdout_is_full(
    programs: Output, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    assert programs.failure(IntegrityError("damaged")) == 22
    assert capsys.readouterr().err == "sfasync: damaged\n"
