"""A process that may open few files, have little memory or few threads: it works, or ends with 21 and one line."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..support.servers import nbdkit, require
from .site import Site

_LIMIT = 21
_MIB = 1 << 20

FILES = (8, 12, 14, 16, 18, 20, 22, 24, 28)
MEMORY = (44, 52, 56, 60, 64, 66, 68, 72, 76)  # MiB of addresses; a backup of this disk is content with about 70
FEW = ["--nofile=14", "--nofile=22", f"--as={60 * _MIB}"]
ALL = [f"--nofile={count}" for count in FILES] + [f"--as={size * _MIB}" for size in MEMORY]


@dataclass
class Narrow:
    """A repository with one backup, and commands that run under a limit."""

    site: Site
    uri: str
    target: Path
    refused: int = 0

    def run(self, limit: str, *arguments: str) -> bool:
        """Whether the command got through; if not, it must have said why."""
        under = ("prlimit", limit, "--core=0")
        try:
            status = self.site.start(*arguments, under=under).wait(60)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{limit} {arguments[0]} hangs")
        said = self.site.said()
        assert status in (0, _LIMIT), f"{limit} {arguments[0]}: {status}, {said}"
        if status != 0:
            last = said.splitlines()[-1]
            assert "no more" in last or "no thread can be started" in last, said
            assert "Traceback" not in said
            self.refused += 1
        return status == 0

    def all_commands(self, limit: str) -> None:
        """Back up, verify and restore under the limit."""
        self.site.change()
        finished = self.run(limit, "backup", "web-01", "--disk", f"disk={self.uri}")
        self.site.check(finished=finished)
        self.run(limit, "verify", "--data")
        (self.target / "disk.raw").unlink(missing_ok=True)
        restored = self.run(limit, "restore", "web-01@latest", "--to", str(self.target))
        assert [path.name for path in self.target.glob("*")] == (["disk.raw"] if restored else [])
        if restored:
            assert (self.target / "disk.raw").read_bytes() == self.site.image.read_bytes()


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Narrow]:
    require("prlimit")
    site = Site(tmp_path, tmp_path / "repository")
    site.init()
    with nbdkit("file", site.image, "--readonly") as server:
        yield Narrow(site, server.uri, tmp_path / "target")


def test_a_few_limits(narrow: Narrow) -> None:
    for limit in FEW:
        narrow.all_commands(limit)
    assert narrow.refused >= 3


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_many_limits(narrow: Narrow, capsys: pytest.CaptureFixture[str]) -> None:
    for limit in ALL:
        narrow.all_commands(limit)
    with capsys.disabled():
        print(f" {3 * len(ALL)} commands under limits, {narrow.refused} refused with 21, nothing lost ", end="")
    assert narrow.refused >= len(ALL)
