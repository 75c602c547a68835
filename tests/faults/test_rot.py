"""Bytes that change by themselves: verification names the object and the backups it touches, and no wrong byte leaves.

A touched backup ends with an error before a wrong byte is written to a target; the others restore.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from sfasync import Engine, IntegrityError, Repository
from sfasync.models import VerifyResult
from sfasync.store.names import BACKUPS, CONFIG, INDEX, PACKS
from sfasync.units import KiB

from ..support.memory import MemoryDisk

SMALL = 4 * KiB
FLIPS_IN_PACKS = 1000
_FAST = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108  # what is durable is not looked at here
_UNTOUCHED = 0xAA


class Rot:
    """A repository of three backups, and damage that is put right again.

    Attributes:
        damages: How often something was damaged.
        restores: How many restores of touched backups were refused, and of others went well.
    """

    def __init__(self, place: Path, repository: Repository, contents: dict[str, bytes], seed: int) -> None:
        self.place = place
        self.damages = 0
        self.restores = 0
        self._repository = repository
        self._contents = contents
        self._random = random.Random(seed)

    def objects(self, part: str = "") -> list[Path]:
        kept = (CONFIG, INDEX, BACKUPS, PACKS)
        names = {path: str(path.relative_to(self.place)) for path in sorted(self.place.rglob("*")) if path.is_file()}
        return [path for path, name in names.items() if name.startswith(part or kept)]

    async def damage(self, change: Callable[[], object], *paths: Path, restore: bool = True) -> None:
        """Damage objects, see that all of them are found and nothing else, and put them right."""
        before = {path: path.read_bytes() if path.exists() else None for path in paths}
        change()
        self.damages += 1
        found = await self._look()
        names = {str(path.relative_to(self.place)) for path in paths if before[path] != _content(path)}
        told = {problem.object for problem in found.problems}
        if all(name.startswith(INDEX) for name in names):  # what is missed in it is told of the index as a whole
            assert told <= names | {INDEX}
            assert told
        else:
            assert told - {INDEX} == names, found.problems
        if restore:
            await self._restore({backup for problem in found.problems for backup in problem.backups})
        for path, content in before.items():
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)

    async def flip(self, path: Path, offset: int, *, restore: bool) -> None:
        content = bytearray(path.read_bytes())
        content[offset] ^= 1 << self._random.randrange(8)
        await self.damage(lambda: path.write_bytes(content), path, restore=restore)

    async def each_way(self) -> None:
        """Every object cut to nothing and to its half, missing, there twice, and in another's place."""
        for path in self.objects():
            content = path.read_bytes()
            await self.damage(partial(path.write_bytes, b""), path)
            await self.damage(partial(path.write_bytes, content[: len(content) // 2]), path)
            if BACKUPS not in str(path):  # then there is no such backup, as far as anybody can tell
                await self.damage(path.unlink, path)
        for part in (INDEX, BACKUPS, PACKS):
            first, *_, last = self.objects(part)
            digit = "8" if first.name.endswith("9") else "9"
            following = f"{len(list(first.parent.iterdir())) + 1:016x}"  # or the numbers between would be missed
            other = first.with_name(following if part == BACKUPS else first.name[:-1] + digit)
            assert not other.exists()
            await self.damage(partial(shutil.copyfile, first, other), other)
            await self.damage(partial(_swap, first, last), first, last)

    async def _look(self) -> VerifyResult:
        for part in ("checks", "quarantine"):  # what was found before is not to help
            shutil.rmtree(self.place / "domains/default" / part, ignore_errors=True)
        return await self._repository.verify(data=True)

    async def _restore(self, touched: set[str]) -> None:
        listed = {backup.id for backup in await self._repository.backups()}
        async with Engine(self._repository) as engine:
            for backup in listed:
                content = self._contents[backup]
                target = MemoryDisk(bytes([_UNTOUCHED]) * len(content))
                try:
                    await engine.restore_vm(backup, to_disks={"vda": target})
                except IntegrityError:
                    assert backup in touched, "it needs nothing that is damaged"
                    for wanted, found in zip(content, target.content, strict=True):
                        assert found in (wanted, _UNTOUCHED), "a wrong byte was written"
                else:
                    assert target.content == content
                self.restores += 1


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _swap(first: Path, second: Path) -> None:
    contents = second.read_bytes(), first.read_bytes()
    first.write_bytes(contents[0])
    second.write_bytes(contents[1])


@asynccontextmanager
async def rotting(seed: int) -> AsyncIterator[Rot]:
    source = random.Random(seed)
    shared = source.randbytes(9000)
    with tempfile.TemporaryDirectory(prefix="sfasync-rot-", dir=_FAST) as directory:
        place = Path(directory) / "repository"
        async with await Repository.init(place, chunk_size=256 * KiB) as repository, Engine(repository) as engine:
            contents = {}
            for vm in ("web-01", "web-01", "db-01"):
                content = shared.ljust(256 * KiB, b"\0") + source.randbytes(5000)
                contents[(await engine.backup_vm(vm, {"vda": MemoryDisk(content)})).id] = content
            rot = Rot(place, repository, contents, seed)
            yield rot
            assert (await repository.verify(data=True)).ok


def test_a_few_damages() -> None:
    asyncio.run(_a_few_damages())


async def _a_few_damages() -> None:
    source = random.Random(1)
    async with rotting(1) as rot:
        for path in rot.objects():
            size = path.stat().st_size
            for offset in (0, size - 1, source.randrange(size)):
                await rot.flip(path, offset, restore=True)
        await rot.each_way()


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_every_byte(capsys: pytest.CaptureFixture[str]) -> None:
    report = asyncio.run(_every_byte())
    with capsys.disabled():
        print(report, end="")


async def _every_byte() -> str:
    source = random.Random(2)
    async with rotting(2) as rot:
        for path in rot.objects():
            size = path.stat().st_size
            for offset in range(size) if size <= SMALL else ():
                await rot.flip(path, offset, restore=offset % 10 == 0)
        small = rot.damages
        for _ in range(FLIPS_IN_PACKS):
            path = source.choice(rot.objects(PACKS))
            await rot.flip(path, source.randrange(path.stat().st_size), restore=True)
        await rot.each_way()
        flipped = f"{small} bytes of small objects and {FLIPS_IN_PACKS} of packs flipped"
        return f" {flipped}, {rot.damages} damages in all found, {rot.restores} restores right or refused "
