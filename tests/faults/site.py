"""A repository, a disk that is backed up into it by the command, and what must be in it: the promises, looked at.

What is under a fault runs as a process of its own. What looks at the promises runs here, with another cache, or it
would take most of the time to start.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from sfasync import Engine, Repository
from sfasync.models import Manifest, VerifyResult

from ..support.memory import MemoryDisk

VM = "web-01"
DISK = "disk"
RESTORED = 4  # of more backups the newest are restored; verify reads them all

_WAIT = 60.0


class Site:
    """A repository and one disk.

    Args:
        place: Where the disk is, and the cache unless `cache` says otherwise.
        repository: Where the repository is to be.
        seed: Of the disk's content.
        cache: Where the command has its cache.

    Attributes:
        acknowledged: What the disk had, as a digest, at each backup that must be there, by id.
    """

    def __init__(self, place: Path, repository: Path, *, seed: int = 1, cache: Path | None = None) -> None:
        self.repository = repository
        self.image = place / "disk.raw"
        self.log = place / "log"
        self.acknowledged: dict[str, bytes] = {}
        self._cache = cache or place / "cache"
        self._source = random.Random(seed)
        self.image.write_bytes(self._source.randbytes(2 << 20) + bytes(1 << 20) + b"the last chunk is short")

    # --- under the fault ----------------------------------------------------------------------------------------------

    def init(self) -> None:
        """Make the repository."""
        process = self.start("init")
        assert process.wait(_WAIT) == 0, self.said()

    def change(self, size: int = 1 << 20) -> None:
        """Write new bytes to the disk."""
        with self.image.open("r+b") as disk:
            disk.write(self._source.randbytes(size))

    def start(
        self,
        *arguments: str,
        program: tuple[str, ...] = ("sfasync",),
        under: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start the command, `under` another one if need be; what it says goes to a file."""
        own = {"SFASYNC_REPOSITORY": str(self.repository), "XDG_CACHE_HOME": str(self._cache), **(env or {})}
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [*under, sys.executable, "-m", *program, *arguments], stdout=log, stderr=log, env=os.environ | own
            )

    def start_backup(
        self,
        uri: str,
        *options: str,
        program: tuple[str, ...] = ("sfasync",),
        under: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a backup of the disk, which is served at `uri`."""
        return self.start("backup", VM, "--disk", f"{DISK}={uri}", *options, program=program, under=under, env=env)

    def back_up(self, uri: str, *options: str) -> int:
        """The exit status of a backup."""
        return self.start_backup(uri, *options).wait(_WAIT)

    def until_session(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until a backup that was started has its session, or has ended."""
        sessions = self.repository / "domains/default/sessions"
        deadline = time.monotonic() + _WAIT
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(FileNotFoundError):
                if any(sessions.iterdir()):
                    return
            time.sleep(0.001)

    def said(self) -> str:
        """What the last command said."""
        return self.log.read_text(errors="replace")

    # --- the promises -------------------------------------------------------------------------------------------------

    def check(self, *, finished: bool) -> None:
        """See that every promise is kept after a backup that may have been cut short.

        Args:
            finished: Whether it was acknowledged.

        Raises:
            AssertionError: One is not.
        """
        asyncio.run(self._check(finished))

    def look(self) -> tuple[set[str], VerifyResult]:
        """Ids of the backups that are there, and what verification says of all bytes."""
        return asyncio.run(self._look())

    async def _look(self) -> tuple[set[str], VerifyResult]:
        async with await Repository.open(self.repository) as repository:
            return {backup.id for backup in await repository.backups()}, await repository.verify(data=True)

    async def _check(self, finished: bool) -> None:
        async with await Repository.open(self.repository) as repository, Engine(repository) as engine:
            backups = await repository.backups()
            self._account_for(backups, finished)
            for backup in backups[-RESTORED:]:
                await self._restore(engine, backup)
            # The next one needs no help, and leaves nothing that has to be explained but what verify calls left over.
            await engine.backup_vm(VM, {DISK: MemoryDisk(self.image.read_bytes())})
            self._account_for(await repository.backups(), True)
            assert await repository.find(f"{VM}@latest") == (await repository.backups())[-1]
            verified = await repository.verify(data=True)
            assert verified.ok, verified.problems
            assert not any("/sessions/" in name for name in verified.leftovers), verified.leftovers

    def _account_for(self, backups: list[Manifest], finished: bool) -> None:
        """See that what was acknowledged is there, and at most what was committed at the last moment besides."""
        ids = {backup.id for backup in backups}
        new = ids - self.acknowledged.keys()
        assert self.acknowledged.keys() <= ids, f"lost: {self.acknowledged.keys() - ids}"
        assert len(new) == 1 or (not new and not finished), f"acknowledged: {finished}, there: {new}"
        for backup in new:
            self.acknowledged[backup] = blake3(self.image.read_bytes()).digest()

    async def _restore(self, engine: Engine, backup: Manifest) -> None:
        (record,) = backup.disks
        target = MemoryDisk(b"\xff" * record.size)
        await engine.restore_vm(backup.id, to_disks={DISK: target})
        assert blake3(target.content).digest() == self.acknowledged[backup.id], f"{backup.id} restored wrongly"
