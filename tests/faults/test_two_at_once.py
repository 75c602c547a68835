"""Several writers on one repository, and readers: chunks are shared, nobody waits for others, one VM has one writer.

A writer that is stopped keeps its place: the kernel keeps its lock, so a second one gets 11 until the first goes on or
dies, however long that takes and whatever the clocks say. Where the lock is lost all the same, because somebody removed
the session's object, the second one makes its backup, and the first finds its place taken.
"""

from __future__ import annotations

import asyncio
import glob
import os
import random
import signal
import subprocess
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from blake3 import blake3

from sfasync import Repository

from ..support.servers import nbdkit
from .site import Site

_BUSY = 11
_MANIFEST = 5  # the links of a backup: session, two packs, index, manifest
MIB = 1 << 20
ROUNDS = 25


def faked(shift: str) -> dict[str, str]:
    """An environment whose clock is wrong."""
    libraries = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
    if not libraries:
        pytest.skip("faketime is not installed; run scripts/system-packages")
    return {"LD_PRELOAD": libraries[0], "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


class Stopped:
    """A writer that is stopped between its last check and its manifest."""

    def __init__(self, site: Site, uri: str, mark: Path, env: dict[str, str]) -> None:
        program = ("tests.support.faulty", "link", "stop", str(_MANIFEST), str(mark))
        self.process = site.start_backup(uri, program=program, env=env)
        deadline = time.monotonic() + 60
        while not _is_stopped(self.process.pid):
            assert self.process.poll() is None, site.said()
            assert time.monotonic() < deadline, "it does not come to its manifest"
            time.sleep(0.005)

    def go_on(self) -> int:
        """Its exit status, after it was let go on."""
        self.process.send_signal(signal.SIGCONT)
        return self.process.wait(60)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("shift", ["+48h", "-48h"])
def test_a_stopped_writer_keeps_its_place_and_loses_nothing(tmp_path: Path, shift: str) -> None:
    site = Site(tmp_path, tmp_path / "repository")
    site.init()
    with nbdkit("file", site.image, "--readonly") as server:
        first = Stopped(site, server.uri, tmp_path / "mark", {})
        assert site.start_backup(server.uri, env=faked(shift)).wait(60) == _BUSY
        assert "another session works on VM web-01" in site.said()
        assert first.go_on() == 0
        site.check(finished=True)
        site.change()
        second = Stopped(site, server.uri, tmp_path / "other-mark", faked(shift))
        assert site.start_backup(server.uri, "--wait", "0.5").wait(60) == _BUSY
        second.process.kill()
        second.process.wait()
        assert site.back_up(server.uri) == 0, "the lock goes with the process"
        site.check(finished=True)


@pytest.mark.parametrize("shift", ["+48h", "-48h"])
def test_a_stopped_writer_that_lost_its_lock_finds_its_place_taken(tmp_path: Path, shift: str) -> None:
    site = Site(tmp_path, tmp_path / "repository")
    site.init()
    with nbdkit("file", site.image, "--readonly") as server:
        first = Stopped(site, server.uri, tmp_path / "mark", faked(shift))
        (session,) = (site.repository / "domains/default/sessions").iterdir()
        session.unlink()
        assert site.back_up(server.uri) == 0, site.said()
        assert first.go_on() == _BUSY
        site.check(finished=True)


class Storm:
    """Writers of several VMs, in processes that may be killed, and a reader.

    Attributes:
        counts: How the writers ended.
    """

    VMS = ("web-01", "web-02", "db-01")

    def __init__(self, place: Path, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._site = Site(place, place / "repository")
        self._site.init()
        self._images = {vm: place / f"{vm}.raw" for vm in self.VMS}
        self._known: dict[str, set[bytes]] = {vm: set() for vm in self.VMS}  # digests of what was backed up, or tried
        self._acknowledged = 0
        self._rounds = 0

    def round(self, *, kill: bool) -> None:
        """Change all disks, with something in common, and back them all up at once; the first VM by two writers."""
        self._rounds += 1
        shared = self._random.randbytes(MIB)
        for vm, image in self._images.items():
            image.write_bytes(shared + self._random.randbytes(MIB) + bytes(MIB) + b"the end")
            self._known[vm].add(blake3(image.read_bytes()).digest())
        with ExitStack() as stack:
            uris = {vm: stack.enter_context(nbdkit("file", path)).uri for vm, path in self._images.items()}
            wait = () if kill else ("--wait", "60")
            writers = [self._start(vm, uris[vm], *wait) for vm in (*self.VMS, self.VMS[0])]
            if kill:
                time.sleep(self._random.uniform(0.1, 0.6))
                self._random.choice(writers).kill()
            asyncio.run(self._read_until(writers))
        statuses = [writer.returncode for writer in writers]
        for status in statuses:
            assert status in ((0, _BUSY, -signal.SIGKILL) if kill else (0,)), statuses
            self.counts[{0: "done", _BUSY: "busy"}.get(status, "killed")] += 1
        self._acknowledged += statuses.count(0)

    def _start(self, vm: str, uri: str, *options: str) -> subprocess.Popen[bytes]:
        return self._site.start("backup", vm, "--disk", f"disk={uri}", *options)

    async def _read_until(self, writers: list[subprocess.Popen[bytes]]) -> None:
        """Read what there is until all writers have ended, and once more: whole backups, and nothing else."""
        read: set[str] = set()
        ended = False
        while not ended:
            ended = all(writer.poll() is not None for writer in writers)
            async with await Repository.open(self._site.repository) as repository:
                for backup in await repository.backups():
                    if backup.id not in read:
                        content = bytearray(backup.disks[0].size)
                        await repository.open_disk(backup, "disk").read_into(0, memoryview(content))
                        assert blake3(content).digest() in self._known[backup.vm], f"{backup.id} is not whole"
                        read.add(backup.id)

    def end(self) -> None:
        """See that what was acknowledged is there, that nothing is damaged, and that chunks were shared."""
        there, verified = self._site.look()
        assert verified.ok, verified.problems
        killed = self.counts["killed"]
        assert self._acknowledged <= len(there) <= self._acknowledged + killed
        stored = sum(path.stat().st_size for path in self._site.repository.rglob("packs/*/*"))
        once = self._rounds * len(self.VMS) * 2 * MIB  # two writers of a VM, or one after a killed one, have the same
        assert stored < once + (killed + 1) * 2 * MIB, "nothing is shared"
        for image in self._images.values():
            image.unlink()


def test_several_writers_and_a_reader(tmp_path: Path) -> None:
    storm = Storm(tmp_path, 1)
    storm.round(kill=False)
    storm.round(kill=True)
    storm.end()


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_many_writers_and_a_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storm = Storm(tmp_path, os.getpid())
    for number in range(ROUNDS):
        storm.round(kill=number % 3 != 0)
    storm.end()
    with capsys.disabled():
        told = ", ".join(f"{count} {what}" for what, count in sorted(storm.counts.items()))
        print(f" writers at once: {told}, nothing lost ", end="")
