"""A disk that hangs: a call of the operating system that does not return, in a thread of a backup or a restore.

`make faults` lets each kind of call hang at several places; the ordinary tests a few.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sfasync import Engine, Repository, StorageError
from sfasync.units import MiB

from ..support.memory import MemoryDisk
from ..support.servers import nbdkit
from .site import VM, Site

CLEAN = "sfasync: interrupted by SIGINT\n"
UNTIDY = "; after 4.5 s its clean-up still waited for something that does not answer\n"

BACKUP = ("backup", VM, "--disk")
RESTORE = ("restore", f"{VM}@latest", "--to")

FEW = [(BACKUP, "pwrite", 2), (BACKUP, "fsync", 4), (RESTORE, "preadv", 2)]
MORE = [
    (BACKUP, function, when)
    for function, most in (("open", 4), ("pwrite", 4), ("fsync", 8), ("link", 4), ("flock", 1))
    for when in range(1, most + 1)
]
MORE += [(RESTORE, function, when) for function in ("pread", "preadv", "pwrite", "fsync") for when in (1, 2)]


@pytest.mark.parametrize(
    ("command", "function", "when"),
    [*FEW, *(pytest.param(*more, marks=pytest.mark.faults) for more in MORE if more not in FEW)],
)
def test_ctrl_c_ends_it_in_time(tmp_path: Path, command: tuple[str, ...], function: str, when: int) -> None:
    """It says why it took so long, nobody needs to help the next one, and nothing is half-visible."""
    site = Site(tmp_path, tmp_path / "repository")
    site.init()
    mark, target = tmp_path / "mark", tmp_path / "restored"
    with nbdkit("file", site.image) as server:
        assert site.back_up(server.uri) == 0
        site.check(finished=True)
        site.change()
        where = f"disk={server.uri}" if command is BACKUP else str(target)
        process = site.start(*command, where, program=("tests.support.faulty", function, "hang", str(when), str(mark)))
        try:
            _until(mark, process)
            process.send_signal(signal.SIGINT)
            status = process.wait(60)
        finally:
            process.kill()
            process.wait()
    assert status == 130, site.said()
    assert site.said() in (CLEAN, CLEAN.rstrip() + UNTIDY)
    assert not target.exists() or not [entry for entry in target.iterdir() if not entry.name.startswith(".")]
    site.check(finished=False)


def _until(mark: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a thread of the process hangs."""
    deadline = time.monotonic() + 30
    while not mark.exists():
        assert process.poll() is None, "there was no such call"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("kind", "function", "when"),
    [("backup", "pwrite", 1), ("backup", "pwrite", 2), ("backup", "fsync", 6), ("restore", "preadv", 2)],
)
async def test_closing_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, function: str, when: int
) -> None:
    """The job ends when the disk answers, and all that it used is given back then; nothing stands in anybody's way."""
    monkeypatch.setattr("sfasync.engine._CLOSE_SECONDS", 0.3)
    monkeypatch.setattr("sfasync.store.repository._CLOSE_SECONDS", 0.3)
    content = random.Random(1).randbytes(4 * MiB)
    repository = await Repository.init(tmp_path / "repository")
    engine = Engine(repository)
    before = await engine.backup_vm(VM, {"vda": MemoryDisk(content)})
    hangs, answers = threading.Event(), threading.Event()
    calls = itertools.count(1)
    original = getattr(os, function)

    def hang(*arguments: Any) -> Any:
        if next(calls) >= when:
            hangs.set()
            answers.wait(60)
        return original(*arguments)

    with monkeypatch.context() as disk:
        disk.setattr(os, function, hang)
        if kind == "backup":
            job: Any = engine.start_backup(VM, {"vda": MemoryDisk(content[::-1])})
        else:
            job = engine.start_restore(before.id, to=tmp_path / "restored")
        while not hangs.is_set():
            await asyncio.sleep(0.005)
        with pytest.raises(StorageError, match=r"1 jobs do not end within 0\.3 s"):
            await engine.aclose()
        with suppress(StorageError) if kind == "restore" or when == 1 else pytest.raises(StorageError, match="closed"):
            await repository.aclose()
        assert not job.done
    answers.set()
    await job.ended()
    async with await Repository.open(tmp_path / "repository") as again, Engine(again) as other:
        backups = await again.backups()
        assert backups[0].id == before.id
        assert len(backups) <= 2, "a commit that was begun is decided"
        for backup in backups:
            await other.restore_vm(backup.id, to=tmp_path / backup.id, verify_after=True)
        await other.backup_vm(VM, {"vda": MemoryDisk(content)}, wait=20)
