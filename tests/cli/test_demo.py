"""`sfasync demo`, as a user starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.servers import require

STEPS = ("1. ", "2. ", "3. ", "4. ", "5. ", "6. ", "7. ", "8. ")


@pytest.fixture(autouse=True)
def tools() -> None:
    for name in ("qemu-storage-daemon", "qemu-img"):
        require(name)


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the demo puts its temporary directory; short enough for the path of a socket."""
    with tempfile.TemporaryDirectory(prefix="sfasync-test-") as directory:
        yield Path(directory)


def start(place: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sfasync", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(place), **environment},
    )


def processes_left(place: Path) -> list[str]:
    """Command lines of processes that name the directory and do not end within 3 seconds."""
    deadline = time.monotonic() + 3
    while (found := _processes_about(place)) and time.monotonic() < deadline:
        time.sleep(0.05)  # a daemon that was told to end is nobody's child
    return found


def _processes_about(place: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(place) in command:
            found.append(command)
    return found


def test_shows_the_main_job_and_cleans_up(place: Path) -> None:
    with start(place) as demo:
        told, complaint = demo.communicate(timeout=110)
    assert (demo.returncode, complaint) == (0, "")
    position = 0
    for step in STEPS:
        position = told.index(f"\n{step}", position)
    assert told.count("Images are identical.") == 2
    assert re.search(r"ide0 +differential +3 MiB of 1 GiB written", told)
    assert "0 snapshots, 0 backup resources, 0 exports" in told
    assert list(place.iterdir()) == []
    assert processes_left(place) == []


def test_json_ends_with_a_result_and_keep_keeps(place: Path) -> None:
    with start(place, "--json", "--keep") as demo:
        told, complaint = demo.communicate(timeout=110)
    assert (demo.returncode, complaint) == (0, "")
    (line,) = told.splitlines()
    result = json.loads(line)
    assert (result["event"], result["ok"], result["command"]) == ("result", True, "demo")
    (kept,) = place.iterdir()
    assert (kept / "repository" / "config").exists()
    assert list(kept.rglob("*.qcow2")) == []
    assert processes_left(place) == []


@pytest.mark.parametrize("step", [None, "1. ", "6. "], ids=["while it prepares", "in a backup", "in a restore"])
def test_ctrl_c_cleans_up(step: str | None, place: Path) -> None:
    with start(place) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if step is None or line.startswith(step):
                break
        demo.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, complaint = demo.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert demo.returncode == 130
    assert len(complaint.splitlines()) == 1
    assert list(place.iterdir()) == []
    assert processes_left(place) == []


def test_missing_programs_are_named_in_one_line(place: Path) -> None:
    with start(place, PATH=str(place)) as demo:
        told, complaint = demo.communicate(timeout=20)
    assert demo.returncode == 2
    assert told == ""
    assert "qemu-storage-daemon" in complaint
    assert "apt-get install" in complaint
    assert len(complaint.splitlines()) == 1
    assert list(place.iterdir()) == []
