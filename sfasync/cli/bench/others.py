"""Rows S14 and S15: start-up, and incremental backups of a huge disk."""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncGenerator
from itertools import count
from pathlib import Path

from ...engine import Engine
from ...store.repository import Repository
from ...units import KiB, MiB
from .changed import SparseDisk, back_up
from .contest import SFASYNC, Contest, Entrant, Facts, Place, bytes_below, limited_by

_BACKUPS = 1000
_VMS = 20


async def startup(place: Place) -> AsyncGenerator[Contest, None]:
    """S14: how long it takes until anything happens."""
    yield Contest(
        work="start-up: the version",
        size=0,
        entrants=place.with_peers(
            Entrant(name="sfasync", command=(*SFASYNC, "--version")),
            {"restic": Entrant(name="restic", command=("restic", "version"))},
        ),
    )
    repository = place.directory / "sfasync"
    await _many_backups(repository)
    listed = Entrant(name="sfasync", command=(*SFASYNC, "list", "--repo", repository))
    yield Contest(work=f"list of {_BACKUPS} backups", size=0, entrants=[listed])


async def incremental(place: Place) -> AsyncGenerator[Contest, None]:
    """S15: what has changed on 10 TiB, in one piece of each page, and all over."""
    for pieces, length in ((64, MiB), (1024, 64 * KiB)):
        site = _Incremental(place.directory / str(pieces), pieces, length)
        await site.first()
        yield Contest(
            work=f"incremental of 10 TiB, {pieces} changed extents of {length // KiB} KiB",
            size=pieces * length,
            environment={"XDG_CACHE_HOME": str(site.directory / "cache")},
            entrants=[
                Entrant(name="sfasync", command=site.command(site.tracked), prepare=site.change, facts=site.written),
                Entrant(
                    name="the data alone", command=site.command(site.alone, "alone"), prepare=site.new, facts=limited_by
                ),
            ],
        )
        shutil.rmtree(site.directory)


class _Incremental:
    """A repository in which the huge disk is backed up again and again, and one for its data alone."""

    def __init__(self, directory: Path, pieces: int, length: int) -> None:
        self.directory = directory
        self.tracked = directory / "tracked"
        self.alone = directory / "alone"
        self._pieces = pieces
        self._length = length
        self._seed = directory / "seed"
        self._seeds = count(1)
        self._before = 0

    async def first(self) -> None:
        """The full backup that the others go on from."""
        self.directory.mkdir()
        await _new_repository(self.tracked)
        await back_up(str(self.tracked), 0, self._pieces, self._length, alone=False)

    async def change(self) -> None:
        """Let the disk change."""
        self._seed.write_text(str(next(self._seeds)))
        self._before = bytes_below(self.tracked)

    async def new(self) -> None:
        """Let the repository for the data alone be a new one."""
        self._seed.write_text(str(next(self._seeds)))
        if self.alone.exists():
            shutil.rmtree(self.alone)
        await _new_repository(self.alone)

    def command(self, repository: Path, *how: str) -> tuple[str | Path, ...]:
        program = (sys.executable, "-P", "-m", "sfasync.cli.bench.changed")
        return (*program, repository, self._seed, str(self._pieces), str(self._length), *how)

    def written(self, log: Path) -> Facts:
        """What a backup has written beside the data."""
        beside = bytes_below(self.tracked) - self._before - self._pieces * self._length
        return {"beside MiB": round(beside / MiB, 2), **limited_by(log)}


async def _new_repository(location: Path) -> None:
    await (await Repository.init(location)).aclose()


async def _many_backups(location: Path) -> None:
    async with await Repository.init(location) as repository, Engine(repository) as engine:
        for number in range(_BACKUPS):
            await engine.backup_vm(f"vm-{number % _VMS}", {"disk": SparseDisk(MiB, 1, KiB, number // _VMS)})
