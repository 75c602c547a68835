"""The disks that are measured with. Each step gives the loop back, so that Ctrl-C is answered."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...programs import run_tool
from ...transport.export import open_export
from ...units import KiB, MiB
from .contest import Place
from .servers import qemu_nbd

USR = Path("/usr")
_FILLED = 0.85  # of a file system; the rest is for its own tables and stays empty
_PER_FILE = 4 * KiB + 512  # what a file takes beside its content: half a block at each end, and an inode
PIECE = 64 * KiB


async def random_image(path: Path, size: int) -> Path:
    """A raw image of random bytes, of which the name is the seed; there already is one when it was made before."""
    if not path.exists():
        source = random.Random(path.name)
        with path.open("wb") as image:
            for offset in range(0, size, MiB):
                image.write(source.randbytes(min(MiB, size - offset)))
                await asyncio.sleep(0)
    return path


async def usr_image(directory: Path, size: int, *, top: Path = USR) -> Path:
    """An ext4 file system with files of /usr on a raw image; there already is one when it was made before."""
    image = directory / f"usr-{size}.raw"
    if not image.exists():
        with tempfile.TemporaryDirectory(prefix="usr-", dir=directory) as tree:
            room = int(size * _FILLED)
            copies: dict[tuple[int, int], Path] = {}  # what has several names is one file
            for number, (path, status) in enumerate(_files_of(top)):
                target = Path(tree, *path.parts[1:])
                inode = (status.st_dev, status.st_ino)
                if inode in copies:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.hardlink_to(copies[inode])
                elif status.st_size + _PER_FILE <= room and _copied(path, target):
                    room -= status.st_size + _PER_FILE
                    copies[inode] = target
                if number % 16 == 0:
                    await asyncio.sleep(0)
            options = "root_owner=0:0,lazy_itable_init=0"
            await run_tool("mke2fs", "-q", "-F", "-t", "ext4", "-E", options, "-d", tree, image, str(size // KiB))
    return image


async def sparse_qcow2(place: Place, size: int, pieces: int) -> Path:
    """A qcow2 image with that many pieces of 64 KiB, a quarter of each random, scattered over it."""
    image = place.directory / f"scattered-{size}.qcow2"
    source = random.Random(size)
    await run_tool("qemu-img", "create", "-q", "-f", "qcow2", image, str(size))
    async with qemu_nbd(place.sockets, image, writable=True) as uri, await open_export(uri) as export:
        for number in range(pieces):
            start = size // pieces * number // PIECE
            end = size // pieces * (number + 1) // PIECE
            await export.write(source.randrange(start, end) * PIECE, source.randbytes(PIECE // 4) * 4)
    return image


def _files_of(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Regular files: at any point a sample of all, those of a directory together as on a real disk."""
    directories = [str(top)]
    found: dict[str, list[tuple[Path, os.stat_result]]] = {}
    for directory in directories:  # which grows meanwhile
        with os.scandir(directory) as entries:
            files = found[directory] = []
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    files.append((Path(entry.path), entry.stat(follow_symlinks=False)))
    random.Random(0).shuffle(directories)
    for directory in directories:
        yield from found[directory]


def _copied(path: Path, target: Path) -> bool:
    """Copy a file; False if it is not for everybody."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(path, target)
    except PermissionError:
        return False
    return True
