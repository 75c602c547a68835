"""Random histories of a repository, against a model that is no more than the bytes of each backup.

What a step may do: write, clear, grow and shrink the disk; back it up, in full or by changes; cancel a backup, or let
its process die between two steps of the file system, and go on from there; let another process back up the same disk as
another VM meanwhile, or hold the VM; lose, spoil or bring back an old cache; damage a byte and put it right. After
each, what is listed is what the model has; what is restored is what the model says; verification finds what is damaged
and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import pytest

from sfasync import BusyError, Engine, IntegrityError, Repository, StorageError
from sfasync.store import local
from sfasync.store.names import CONFIG, INDEX
from sfasync.units import KiB

from ..support.memory import MemoryDisk
from ..support.tracking import TrackingPlatform

VM, OTHER_VM, DISK = "web-01", "web-02", "vda"
CHUNK = 256 * KiB
LARGEST = 6 * CHUNK

_STEPS = {  # and how often
    "write": 6,
    "resize": 1,
    "back_up": 4,
    "cancel": 2,
    "die": 3,
    "die_and_go_on": 2,
    "back_up_both": 1,
    "hold": 1,
    "reopen": 2,
    "flip": 2,
    "restore": 2,
    "verify": 1,
}
_STEPS_OF_A_HISTORY = 100
_LENGTHS = (1, 512, 4096, CHUNK, CHUNK + 1, 2 * CHUNK)
_FAST = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108  # what is durable is not looked at here
_STEPS_OF_A_BACKUP = 18  # at most, that change the file system
_CHECKPOINTS_WITHOUT_END = {"session._SHORTEST": 0.0, "session._COST": 0.0, "packline.SLOW": 1 << 40}

_T = TypeVar("_T")


class Life:
    """How many more times the process may change the file system before it is dead; None: for ever."""

    def __init__(self) -> None:
        self.left: int | None = None

    def step(self) -> None:
        if self.left is not None:
            if self.left == 0:
                raise StorageError("the process is dead")
            self.left -= 1


LIFE = Life()


class MortalWriter(local.LocalWriter):
    """Dies before an object has its name, or when it has it and nobody was told."""

    def commit(self) -> None:
        try:
            LIFE.step()
        except StorageError:
            self.abort()
            raise
        super().commit()
        LIFE.step()


class MortalStore(local.LocalStore):
    """Dies before it removes something."""

    def delete(self, key: str) -> None:
        LIFE.step()
        super().delete(key)


class History:
    """One repository, one disk, and what each backup must restore to.

    Args:
        choice: Makes all choices.
        counts: What happened.
    """

    def __init__(self, choice: random.Random, counts: Counter[str]) -> None:
        self.choice = choice
        self.counts = counts
        self._stack = ExitStack()
        self.place = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="sfasync-model-", dir=_FAST)))
        self._stack.enter_context(patch.dict(os.environ, XDG_CACHE_HOME=str(self.place / "cache")))
        self._stack.enter_context(patch("sfasync.store.repository.LocalStore", MortalStore))
        self._stack.enter_context(patch("sfasync.store.local.LocalWriter", MortalWriter))
        for name, value in _CHECKPOINTS_WITHOUT_END.items():
            self._stack.enter_context(patch(f"sfasync.store.{name}", value))
        self.runner = self._stack.enter_context(asyncio.Runner())
        self.platform = TrackingPlatform({DISK: b"the first disk" * 30_000})
        self.model: dict[str, bytes] = {}
        self.old_cache: Path | None = None
        self.known: set[str] = set()  # objects that may be in quarantine, because they were damaged a moment ago
        self.log: list[str] = []
        self.repository = self.run(Repository.init(self.place / "repository", chunk_size=CHUNK))

    def close(self) -> None:
        """Give everything back."""
        LIFE.left = None
        self.run(self.repository.aclose())
        self._stack.close()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.runner.run(work)

    # --- the disk -----------------------------------------------------------------------------------------------------

    @property
    def disk(self) -> bytearray:
        return self.platform.vm_disks[DISK].content

    def write(self) -> None:
        offset = self.choice.randrange(len(self.disk))
        length = min(self.choice.choice(_LENGTHS), len(self.disk) - offset)
        seed = self.choice.randrange(10)
        match self.choice.choice(("noise", "text", "repeat", "zero")):
            case "noise":
                data = random.Random(seed).randbytes(length)
            case "text":
                data = (b"%d bottles\n" % seed * length)[:length]
            case "repeat":  # what is somewhere else already, chunk for chunk if it happens so
                data = bytes(self.disk[:length]).ljust(length, b"\0")
            case _:
                data = bytes(length)
        self.platform.vm_disks[DISK].write(offset, data)

    @property
    def frozen(self) -> bytes:
        """What the last backup read: the disk as it was when its snapshot was taken, perhaps for an earlier one."""
        view = self.platform.last_view
        assert view is not None
        return bytes(view.disks[0].address.content)

    def resize(self) -> None:
        size = self.choice.choice((self.choice.randrange(1, LARGEST), CHUNK * self.choice.randint(1, LARGEST // CHUNK)))
        self.platform.vm_disks[DISK].resize(size)

    # --- backups ------------------------------------------------------------------------------------------------------

    def back_up(self) -> None:
        mode = self.choice.choice(("auto", "auto", "full"))
        before = self.listed()
        backup = self.run(self._back_up(mode))
        assert self.listed() == before | {backup}
        self.model[backup] = self.frozen
        self.counts["backups"] += 1

    async def _back_up(self, mode: str = "auto") -> str:
        async with Engine(self.repository) as engine:
            audit = self.choice.choice(("off", 1, 16))
            result = await engine.backup_vm(VM, platform=self.platform, mode=mode, audit=audit)
        self.counts["went on"] += bool(result.bytes_resumed)
        return result.id

    def cancel(self) -> None:
        """A backup is cancelled after some passes of the loop."""
        passes = self.choice.randint(0, 60)

        async def cancelled() -> bool:
            task = asyncio.create_task(self._back_up())
            for _ in range(passes):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                return False
            return True

        self._account_for(finished=self.run(cancelled()), what="cancelled")

    def die(self) -> None:
        """The process of a backup dies; another one goes on."""
        LIFE.left = self.choice.randint(0, _STEPS_OF_A_BACKUP)
        finished = False
        with suppress(StorageError):
            self.run(self._back_up())
            finished = True
        self.run(self.repository.aclose())
        LIFE.left = None
        self.repository = self.run(Repository.open(self.place / "repository"))
        self._account_for(finished=finished, what="died")

    def die_and_go_on(self) -> None:
        """The process of a backup dies; the next one need not read what that had noted."""
        self.die()
        noted = sum(backup.bytes_journaled for backup in self.run(self.repository.unfinished()))
        went_on = self.counts["went on"]
        self.back_up()
        assert noted or self.counts["went on"] == went_on
        assert not self.run(self.repository.unfinished())

    def _account_for(self, *, finished: bool, what: str) -> None:
        """A backup that was cut short is there whole, or not at all."""
        new = self.listed() - self.model.keys()
        assert len(new) == 1 or (not new and not finished)
        if new:
            self.model |= dict.fromkeys(new, self.frozen)
        self.counts[f"{what}, {'backup' if new else 'nothing'} there"] += 1

    def back_up_both(self) -> None:
        """Another writer backs the same bytes up as another VM, at the same time."""
        content = bytes(self.disk)

        async def both() -> list[str]:
            async with await Repository.open(self.place / "repository") as other, Engine(other) as engine:
                second = engine.backup_vm(OTHER_VM, {DISK: MemoryDisk(content)})
                first, result = await asyncio.gather(self._back_up(), second)
                return [first, result.id]

        first, second = self.run(both())
        self.model |= {first: self.frozen, second: content}
        self.counts["two at once"] += 1

    def hold(self) -> None:
        """Another writer has the VM: it is left alone."""

        async def busy() -> None:
            async with await Repository.open(self.place / "repository") as other:
                session = await other.begin(VM)
                with pytest.raises(BusyError):
                    await self._back_up()
                await session.abort()

        self.run(busy())

    # --- what may be lost ---------------------------------------------------------------------------------------------

    def reopen(self) -> None:
        """The next process finds another cache."""
        self.run(self.repository.aclose())
        cache = self.place / "cache"
        match self.choice.choice(("lost", "spoilt", "old", "kept")):
            case "lost":
                shutil.rmtree(cache, ignore_errors=True)
            case "spoilt":
                for path in (path for path in cache.rglob("*") if path.is_file()):
                    path.write_bytes(self.choice.randbytes(path.stat().st_size))
            case "old" if self.old_cache is not None:
                shutil.rmtree(cache, ignore_errors=True)
                shutil.copytree(self.old_cache, cache)
            case _ if cache.exists():
                self.old_cache = self.place / "old-cache"
                shutil.rmtree(self.old_cache, ignore_errors=True)
                shutil.copytree(cache, self.old_cache)
        self.repository = self.run(Repository.open(self.place / "repository"))

    def flip(self) -> None:
        """A byte goes bad: verification names its object, no backup restores wrongly, and then it is put right."""
        objects = sorted(path for path in (self.place / "repository").rglob("*") if path.is_file())
        path = self.choice.choice(objects)
        name = str(path.relative_to(self.place / "repository"))
        content = path.read_bytes()
        where = self.choice.randrange(len(content))
        path.write_bytes(content[:where] + bytes([content[where] ^ 1 << where % 8]) + content[where + 1 :])
        result = self.run(self.repository.verify(data=True))
        self.log.append(f"byte {where} of {len(content)} of {name}: {result.problems}, known: {result.known}")
        told, known = ({problem.object for problem in some} for some in (result.problems, result.known))
        told -= {INDEX}  # that is what blobs in no index are missed in
        assert told | known == {name}
        assert known <= self.known, "it was whole when it was last verified"
        if name != CONFIG:  # without it nothing is remembered
            self.known = {name} | (self.known if "/quarantine/" in name else set())
        touched = {backup for problem in result.problems for backup in problem.backups}
        for backup in self.choice.sample(list(self.model), min(3, len(self.model))):
            try:
                self.restore_one(backup)
                assert backup not in touched or "/index/" in name, "it needs what is damaged"
            except IntegrityError:
                assert backup in touched or "/backups/" in name
        path.write_bytes(content)
        self.counts["flips"] += 1

    # --- what must hold -----------------------------------------------------------------------------------------------

    def restore(self) -> None:
        for backup in self.choice.sample(list(self.model), min(1, len(self.model))):
            self.restore_one(backup)
            self.counts["restores"] += 1

    def restore_one(self, backup: str) -> None:
        """Restore all that a backup has: its disk, and the files of the VM."""

        async def content() -> bytes:
            async with Engine(self.repository) as engine:
                target = MemoryDisk(b"\xff" * len(self.model[backup]))
                await engine.restore_vm(backup, to_disks={DISK: target})
            manifest = await self.repository.find(backup)
            for file in manifest.files:
                await self.repository.read_file(manifest, file.name)
            return bytes(target.content)

        assert self.run(content()) == self.model[backup], f"{backup} restored wrongly"

    def verify(self) -> None:
        result = self.run(self.repository.verify(data=True))
        assert (result.problems, result.known, result.backups) == ((), (), len(self.model))
        self.known = set()

    def listed(self) -> set[str]:
        return {backup.id for backup in self.run(self.repository.backups())}

    def step(self) -> None:
        """Do something, and see that what is listed is what the model has."""
        what = self.choice.choices(*zip(*_STEPS.items(), strict=True))[0]
        self.log.append(what)
        getattr(self, what)()
        assert self.listed() == self.model.keys(), what
        assert self.platform.open_snapshots == 0
        self.counts["steps"] += 1


def play(seed: int, steps: int) -> Counter[str]:
    """Play so many steps; what happened, counted."""
    counts: Counter[str] = Counter()
    choice = random.Random(seed)
    while counts["steps"] < steps:
        history = History(choice, counts)
        try:
            for _ in range(min(_STEPS_OF_A_HISTORY, steps - counts["steps"])):
                history.step()
        except BaseException:
            print(f"seed {seed}, after {counts['steps']} steps:", *history.log, sep="\n", file=sys.stderr)
            raise
        finally:
            history.close()
    return counts


def test_two_hundred_steps() -> None:
    counts = play(seed=1, steps=200)
    assert counts["backups"] > 20
    assert counts["went on"] > 0


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_two_thousand_steps(capsys: pytest.CaptureFixture[str]) -> None:
    counts = play(seed=int(time.time()), steps=2000)
    with capsys.disabled():
        print(f" {', '.join(f'{count} {what}' for what, count in sorted(counts.items()))} ", end="")
