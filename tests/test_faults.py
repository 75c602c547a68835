"""A backup that is killed, or fails, at any system call that changes something: nothing acknowledged is lost.

strace kills the command, or makes the call fail, at the N-th call of a kind in a thread. `make faults` raises N until
the backup gets through; the ordinary tests take a few N.
"""

from __future__ import annotations

import filecmp
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .support.servers import Server, nbdkit, require

VM = "web-01"
STRACE = ("strace", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null")

KILL = "signal=SIGKILL"
EIO = "error=EIO"
ENOSPC = "error=ENOSPC"

EVERY = [(call, KILL) for call in ("fsync", "linkat", "unlinkat", "mkdirat", "pwrite64", "write", "flock")]
EVERY += [(call, EIO) for call in ("fsync", "linkat", "unlinkat", "mkdirat")]
EVERY += [(call, ENOSPC) for call in ("linkat", "mkdirat")]
FEW = [("fsync", KILL, 3), ("fsync", KILL, 6), ("linkat", KILL, 1), ("linkat", KILL, 2), ("unlinkat", KILL, 1)]
FEW += [("fsync", EIO, 2), ("linkat", EIO, 1), ("linkat", ENOSPC, 2)]


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
        with image.open("r+b") as disk:
            disk.write(os.urandom(1 << 20))

    def run(self, *arguments: str, through: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        own = {
            "SFASYNC_REPOSITORY": str(self.directory / "repository"),
            "XDG_CACHE_HOME": str(self.directory / "cache"),
        }
        command = [*through, sys.executable, "-m", "sfasync", arguments[0], "--json", *arguments[1:]]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | own, timeout=60)

    def listed(self) -> list[str]:
        events = map(json.loads, self.run("list").stdout.splitlines())
        return [event["id"] for event in events if event["event"] == "backup"]

    def back_up_with(self, call: str, fault: str, when: int) -> bool:
        """Whether a backup got through, with a fault at its `when`-th call; looks at all promises afterwards."""
        strace = (*STRACE, "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={when}")
        known = self.listed()
        done = self.run("backup", VM, "--disk", f"disk={self.server.uri}", through=strace)
        now = self.listed()
        assert now[: len(known)] == known, "an acknowledged backup is gone"
        if done.returncode == 0:
            assert len(now) == len(known) + 1, "acknowledged, and not there"
        elif fault == KILL:
            assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
        else:
            assert done.returncode not in (1, 22), done.stderr
            assert len(done.stderr.splitlines()) == 1
        self.check(now)
        return done.returncode == 0

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
    require("strace")
    image = tmp_path / "disk.raw"
    image.write_bytes(os.urandom(3 << 20) + bytes(1 << 20) + b"the last chunk is short")
    with nbdkit("file", image) as server:
        yield Place(tmp_path, server, image)


@pytest.mark.parametrize(("call", "fault", "when"), FEW)
def test_a_few_faults(place: Place, call: str, fault: str, when: int) -> None:
    place.back_up_with(call, fault, when)


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("call", "fault"), EVERY)
def test_every_call(place: Place, call: str, fault: str) -> None:
    when = 1
    while not place.back_up_with(call, fault, when):
        when += 1 if when < 40 else when // 8  # a long row of equal calls is sampled
    assert when > 1, "nothing was hit"
