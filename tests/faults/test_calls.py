"""A backup that is killed, or fails, at any call that changes something: nothing acknowledged is lost.

`make faults` takes the first, the second, ... call of each kind until the backup gets through; the ordinary tests take
a few.
"""

from __future__ import annotations

import errno
import filecmp
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.servers import Server, nbdkit

VM = "web-01"

CHANGING = ("open", "fsync", "link", "unlink", "mkdir", "pwrite", "flock")
KILLS = [(function, fault) for function in CHANGING for fault in ("before", "after")]
FAILURES = [(function, "EIO") for function in CHANGING] + [
    (function, "ENOSPC") for function in ("open", "link", "mkdir")
]
# The links of such a backup: session, two packs, index, manifest, end of the session.
FEW = [
    ("link", "before", 1),
    ("link", "after", 2),
    ("link", "before", 5),
    ("link", "after", 5),
    ("unlink", "before", 1),
]
FEW += [("fsync", "before", 3), ("pwrite", "before", 4), ("fsync", "EIO", 8), ("pwrite", "ENOSPC", 3)]


class Place:
    """A repository with one acknowledged backup, and a disk that has changed since."""

    def __init__(self, directory: Path, server: Server, image: Path) -> None:
        self.directory = directory
        self.server = server
        self.image = image
        self.before = directory / "before.raw"
        self.before.write_bytes(image.read_bytes())
        assert self.run("init").returncode == 0
        assert self.run("backup", VM, "--disk", f"disk={server.uri}").returncode == 0
        (self.first,) = self.listed()

    def run(self, *arguments: str, program: tuple[str, ...] = ("sfasync",)) -> subprocess.CompletedProcess[str]:
        own = {
            "SFASYNC_REPOSITORY": str(self.directory / "repository"),
            "XDG_CACHE_HOME": str(self.directory / "cache"),
        }
        command = [sys.executable, "-m", *program, arguments[0], "--json", *arguments[1:]]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | own, timeout=60)

    def listed(self) -> list[str]:
        events = map(json.loads, self.run("list").stdout.splitlines())
        return [event["id"] for event in events if event["event"] == "backup"]

    def back_up_with(self, function: str, fault: str, when: int) -> bool:
        """Back up with a fault at the `when`-th call, and look at all promises; whether there was such a call."""
        with self.image.open("r+b") as disk:
            disk.write(os.urandom(1 << 20))
        mark = self.directory / "mark"
        mark.unlink(missing_ok=True)
        known = self.listed()
        done = self.run(
            *("backup", VM, "--disk", f"disk={self.server.uri}"),
            program=("tests.support.faulty", function, fault, str(when), str(mark)),
        )
        now = self.listed()
        assert now[: len(known)] == known, "an acknowledged backup is gone"
        if done.returncode == 0:
            assert len(now) == len(known) + 1, "acknowledged, and not there"
            assert fault not in ("before", "after") or not mark.exists()
        elif hasattr(errno, fault):
            assert done.returncode in (10, 20, 21), done.stderr
            assert len(done.stderr.splitlines()) == 1, done.stderr
        else:
            assert done.returncode == -signal.SIGKILL, done.stderr
        self.check(now)
        return mark.exists()

    def check(self, listed: list[str]) -> None:
        """Everything restores, and the next backup needs no help."""
        again = self.run("backup", VM, "--disk", f"disk={self.server.uri}")
        assert again.returncode == 0, again.stderr
        verified = self.run("verify", "--data")
        assert verified.returncode == 0, verified.stderr
        for backup, content in ((self.first, self.before), (listed[-1], None), (f"{VM}@latest", self.image)):
            target = self.directory / "restored"
            restored = self.run("restore", backup, "--to", str(target), "--force")
            assert restored.returncode == 0, restored.stderr
            if content is not None:
                assert filecmp.cmp(target / "disk.raw", content, shallow=False)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    image = tmp_path / "disk.raw"
    image.write_bytes(os.urandom(3 << 20) + bytes(1 << 20) + b"the last chunk is short")
    with nbdkit("file", image, "--threads=1") as server:  # with more, 1.32 may abort when a client is killed
        yield Place(tmp_path, server, image)


@pytest.mark.parametrize(("function", "fault", "when"), FEW)
def test_a_few_faults(place: Place, function: str, fault: str, when: int) -> None:
    assert place.back_up_with(function, fault, when), "there was no such call"


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("function", "fault"), KILLS + FAILURES)
def test_every_call(place: Place, function: str, fault: str) -> None:
    when = 1
    while place.back_up_with(function, fault, when):
        when += 1
    assert when > 1, "there was no such call"
