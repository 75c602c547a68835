"""A repository's file system gets full at any point of a backup: by bytes, by inodes, on a disk and in memory.

The backup ends with 21 and one line that names the file and what is missing. Nothing is lost, the repository verifies
while the file system is still full, and when there is space again the next backup goes on without help.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ..support.power import disk, tmpfs
from ..support.servers import Server, nbdkit
from .site import Site

MIB = 1 << 20
POINTS_IN_ALL = 60

_NEEDED = 2 * MIB + 64 * 1024  # what the backup of the changes below stores, about
_NAMES = 6  # files and directories that it creates, at least
_FULL = 21


@contextmanager
def bytes_of_ext4(place: Path) -> Iterator[Path]:
    with disk(place, "ext4", "-m", "0", size=64 * MIB) as mounted:
        yield mounted.mount


@contextmanager
def inodes_of_ext4(place: Path) -> Iterator[Path]:
    with disk(place, "ext4", "-N", "640", size=64 * MIB) as mounted:
        yield mounted.mount


@contextmanager
def bytes_of_tmpfs(place: Path) -> Iterator[Path]:
    with tmpfs(place / "mount", "size=64m") as mounted:
        yield mounted


@contextmanager
def inodes_of_tmpfs(place: Path) -> Iterator[Path]:
    with tmpfs(place / "mount", "size=64m,nr_inodes=640") as mounted:
        yield mounted


def leave_bytes(mounted: Path, point: float) -> None:
    """Fill the file system up, but for a part of what a backup needs."""
    free = os.statvfs(mounted)
    with (mounted / "ballast").open("wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, free.f_bavail * free.f_frsize - int(_NEEDED * point) - 4096)


def leave_inodes(mounted: Path, point: float) -> None:
    """Use the inodes up, but for a part of what a backup needs."""
    (mounted / "ballast").mkdir()
    for number in range(os.statvfs(mounted).f_favail - int(_NAMES * point)):
        (mounted / "ballast" / str(number)).touch()


def make_room(mounted: Path) -> None:
    ballast = mounted / "ballast"
    if ballast.is_dir():
        for path in ballast.iterdir():
            path.unlink()
        ballast.rmdir()
    else:
        ballast.unlink()


KINDS = {
    "ext4-bytes": (bytes_of_ext4, leave_bytes),
    "ext4-inodes": (inodes_of_ext4, leave_inodes),
    "tmpfs-bytes": (bytes_of_tmpfs, leave_bytes),
    "tmpfs-inodes": (inodes_of_tmpfs, leave_inodes),
}


class Full:
    """Backups into a file system that gets full.

    Attributes:
        refused: How many of them had not enough space.
    """

    def __init__(self, place: Path, mounted: Path, server: Server, site: Site, fill: Callable[[Path, float], None]):
        self.refused = 0
        self._mounted = mounted
        self._server = server
        self._site = site
        self._fill = fill
        site.init()
        assert site.back_up(server.uri) == 0, site.said()
        site.check(finished=True)

    def at(self, point: float) -> None:
        """Back up where a part of the space needed is there, look at everything, make room, and back up again."""
        self._site.change(2 * MIB)
        self._fill(self._mounted, point)
        status = self._site.back_up(self._server.uri, "--json")
        if status != 0:
            self.refused += 1
            self._check_message(status)
            there, verified = self._site.look()
            assert there == self._site.acknowledged.keys()
            assert verified.ok, verified.problems
        make_room(self._mounted)
        self._site.check(finished=status == 0)

    def _check_message(self, status: int) -> None:
        said = self._site.said()
        (message,) = [json.loads(line)["message"] for line in said.splitlines() if '"event":"error"' in line]
        assert status == _FULL, said
        assert "Traceback" not in said
        assert re.search(r"cannot (write|create) /.*/repository/.*: No space left on device; ", message), message
        assert re.search(r"at least [0-9]+ bytes are missing|no free inodes", message), message


@contextmanager
def full(tmp_path: Path, kind: str) -> Iterator[Full]:
    file_system, fill = KINDS[kind]
    with ExitStack() as stack:
        mounted = stack.enter_context(file_system(tmp_path))
        site = Site(tmp_path, mounted / "repository")
        server = stack.enter_context(nbdkit("file", site.image, "--readonly"))
        yield Full(tmp_path, mounted, server, site, fill)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_points(tmp_path: Path, kind: str) -> None:
    with full(tmp_path, kind) as backups:
        for point in (0.0, 0.6):
            backups.at(point)
        assert backups.refused == 2


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_many_points(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = random.Random(kind)
    wanted = POINTS_IN_ALL // len(KINDS)
    with full(tmp_path, kind) as backups:
        for _ in range(wanted):
            backups.at(source.uniform(0.0, 1.1))
        with capsys.disabled():
            print(f" {kind}: {wanted} points, {backups.refused} without enough space, nothing lost ", end="")
        assert backups.refused > wanted // 2
