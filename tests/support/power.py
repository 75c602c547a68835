"""File systems whose power can be cut: ext4 and xfs on loop devices, told to stop without writing what is in memory.

The ioctl is EXT4_IOC_SHUTDOWN (fs/ext4/ext4.h), XFS_IOC_GOINGDOWN (fs/xfs/xfs_fs.h): one number and one argument in
both. After it every operation fails with EIO, and what a journal replay finds at the next mount is what the disk held.

    python -m tests.support.power DIRECTORY CUT

cuts the power below a directory.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .servers import require

SHUTDOWN = 0x8004587D
CUTS = {
    "log": 1,  # what the journal holds in memory is written, data is not
    "all": 2,  # nothing is written any more
}
KINDS = ("ext4", "xfs")

_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
}
_SIZE = 320 << 20  # mkfs.xfs asks for 300 MiB; the file is sparse
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # where Debian has mkfs and losetup


def cut(directory: str | os.PathLike[str], how: str) -> None:
    """Cut the power of the file system that a directory is in."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", CUTS[how]))
    finally:
        os.close(fd)


class Disk:
    """A file system of its own, mounted at `mount`."""

    def __init__(self, place: Path, kind: str, *options: str, size: int = _SIZE) -> None:
        self.mount = place / "mount"
        self._image = place / "file-system"
        self.mount.mkdir()
        with self._image.open("wb") as image:
            image.truncate(size)
        program, *rest = _MAKE[kind]
        _run(program, *rest, *options, self._image)
        self.begin()

    def begin(self) -> None:
        """Mount it."""
        _run("mount", "-o", "loop", self._image, self.mount)

    def end(self) -> None:
        """Unmount it."""
        _run("umount", self.mount)

    def detach(self) -> None:
        """Unmount it from under those who use it."""
        _run("umount", "--lazy", self.mount)

    def cut(self, how: str) -> None:
        cut(self.mount, how)

    def restart(self) -> None:
        """The power is back: mount what the disk holds."""
        self.end()
        self.begin()

    def remount(self, options: str) -> None:
        _run("mount", "-o", f"remount,{options}", self.mount)


@contextmanager
def disk(place: Path, kind: str, *options: str, size: int = _SIZE) -> Iterator[Disk]:
    """A file system for the time of the block; the test is skipped where none can be had."""
    may_mount()
    require_tool(_MAKE[kind][0])
    mounted = Disk(place, kind, *options, size=size)
    try:
        yield mounted
    finally:
        mounted.end()


@contextmanager
def tmpfs(place: Path, options: str) -> Iterator[Path]:
    """A file system in memory for the time of the block."""
    may_mount(loop=False)
    place.mkdir()
    _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", place)
    try:
        yield place
    finally:
        _run("umount", place)


def may_mount(*, loop: bool = True) -> None:
    """Skip the running test where file systems cannot be mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting file systems needs root")
    if loop and not os.path.exists("/dev/loop-control"):
        pytest.skip("there are no loop devices")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("mounting is not permitted here")


def require_tool(program: str) -> None:
    """As `servers.require`, of a program of the administrator's."""
    if shutil.which(program, path=_PATH) is None:
        require(program)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": _PATH})
    assert done.returncode == 0, f"{command}: {done.stderr}"


if __name__ == "__main__":
    cut(sys.argv[1], sys.argv[2])
