"""`sfasync lab`, as its users have it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sfasync.lab.home import Home

from ..support.command import finish, sfasync, start
from ..support.servers import require


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    require("qemu-storage-daemon")
    place = tmp_path / "lab"
    yield place
    sfasync("lab", "down", "--dir", place)


def children_of(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def gone(pid: int) -> None:
    """Wait until a process has gone, or is a zombie that somebody else has to bury."""
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        time.sleep(0.01)


def test_up_write_status_and_down(directory: Path) -> None:
    def lab(*arguments: str) -> dict[str, Any]:
        return sfasync("lab", *arguments, "--dir", directory, "--json").last

    up = lab("up", "--vm", "web-01:2x64M")
    assert (up["action"], up["dir"]) == ("up", str(directory))
    for name in ("sfasync.toml", "password", "secret-key", "lab.log"):
        assert (directory / name).stat().st_mode & 0o77 == 0
    daemons = children_of(up["pid"])
    assert len(daemons) == 1
    again = sfasync("lab", "up", "--dir", directory)
    assert again.status == 2
    assert "lab down ends it" in again.err
    written = sfasync("lab", "write", "web-01", "ide0", "--random", "5", "--seed", "7", "--dir", directory, "--json")
    assert written.last["bytes"] > 5 * 512
    written = sfasync(
        "lab", "write", "web-01", "ide1", "--pattern", "0x55", "--offset", "63M", "--dir", directory, "--json"
    )
    assert written.last["bytes"] == 1 << 20
    misbehaving = lab("misbehave", "busy", "3")
    assert misbehaving["faults"] == {"busy": 3}
    assert lab("misbehave", "slow-task", "always")["faults"] == {"busy": 3, "slow-task": -1}
    off = lab("power", "web-01", "off")
    assert off["running"] is False
    status = lab("status")
    (machine,) = status["vms"]
    assert (machine["name"], machine["running"], machine["snapshots"]) == ("web-01", False, [])
    assert [disk["size"] for disk in machine["disks"]] == [64 << 20] * 2
    assert (status["backup_resources"], status["faults"]) == ([], {"busy": 3, "slow-task": -1})
    assert "web-01" in sfasync("lab", "status", "--dir", directory).out
    refused = sfasync("lab", "write", "web-01", "ide0", "--pattern", "1", "--dir", directory)
    assert refused.status == 2
    assert "switched off" in refused.err
    assert lab("down")["ran"] is True
    for pid in (up["pid"], *daemons):
        gone(pid)
    assert not directory.exists()
    assert lab("down")["ran"] is False
    assert sfasync("lab", "status", "--dir", directory).status == 2


def test_a_lab_that_was_killed(directory: Path) -> None:
    up = sfasync("lab", "up", "--vm", "web-01:64M", "--dir", directory, "--json").last
    running = Home(directory).running()
    assert running is not None
    (daemon,) = children_of(up["pid"])
    os.kill(up["pid"], signal.SIGKILL)
    gone(up["pid"])
    gone(daemon)
    assert Path(running.sockets).exists()
    again = sfasync("lab", "up", "--vm", "web-02:64M", "--dir", directory, "--json").last
    assert not Path(running.sockets).exists()
    names = [each["name"] for each in sfasync("lab", "status", "--dir", directory, "--json").last["vms"]]
    assert names == ["web-01", "web-02"]
    os.kill(again["pid"], signal.SIGKILL)
    gone(again["pid"])
    (directory / "repository").mkdir()
    assert sfasync("lab", "down", "--dir", directory, "--json").last["ran"] is False
    assert [each.name for each in directory.iterdir()] == ["repository"]


def test_an_interrupted_start_leaves_nothing(directory: Path) -> None:
    process = start("lab", "up", "--vm", "web-01:64M", "--dir", directory)
    while Home(directory).running() is None:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.status in (0, 130)  # 0: it had been done by then
    assert (Home(directory).running() is None) == (ended.status == 130)


@pytest.mark.parametrize(
    "arguments",
    [
        ("up", "--vm", "web-01"),
        ("up", "--vm", "web-01:1x1K"),
        ("write", "web-01", "ide0", "--pattern", "256"),
        ("write", "web-01", "ide0", "--random", "1", "--pattern", "1"),
        ("misbehave", "busy", "--stop"),
        ("misbehave", "busy", "0"),
        ("status",),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_usage(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ended = sfasync("lab", *arguments, "--dir", tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert len(ended.err.splitlines()) == 1


def test_what_can_go_wrong_is_shown_without_a_lab(tmp_path: Path) -> None:
    assert "lease-not-renewed" in sfasync("lab", "misbehave", "--dir", tmp_path).out
    assert "nbd-killed" in sfasync("lab", "misbehave", "--dir", tmp_path, "--json").last["known"]


def test_without_the_extra(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['starlette.applications'] = None; sys.modules['qemu'] = None\n"
        f"sys.argv = ['sfasync', 'lab', 'up', '--dir', {str(tmp_path)!r}]\n"
        "from sfasync.__main__ import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "pip install 'sfasync[lab]'" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
