"""Backups, restores and verifications that are killed at random moments, by the command and the kernel themselves.

After each: what was acknowledged restores to the byte, `verify --data` finds no damage, the next backup needs no help,
and a restored file has its name only when it is whole.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ..support.servers import nbdkit
from .site import DISK, VM, Site

KILLS_IN_ALL = 300
_KILLS_OF_A_REPOSITORY = 30
_KINDS = ("backup", "restore", "verify")
_SECONDS = 0.12  # that each takes from its first step on, about; before, nothing but Python starts


class Killer:
    """Commands on one repository, killed.

    Attributes:
        counts: What happened.
    """

    def __init__(self, place: Path, seed: int, counts: Counter[str]) -> None:
        place.mkdir()
        self.counts = counts
        self._random = random.Random(seed)
        self._target = place / "target"
        self._site = Site(place, place / "repository", seed=seed)
        self._site.init()
        with self.served() as uri:
            assert self._site.back_up(uri) == 0, self._site.said()
        self._site.check(finished=True)

    @contextmanager
    def served(self) -> Iterator[str]:
        with nbdkit("file", self._site.image, "--readonly") as server:
            yield server.uri

    def kill(self, kind: str) -> None:
        """Kill a command of a kind, and look at everything."""
        match kind:
            case "backup":
                finished = self._killed_backup()
            case "restore":
                finished = self._killed_restore()
            case _:
                finished = self._killed("verify", "--data")
        self.counts[f"{kind}, {'too late' if finished else 'killed'}"] += 1
        there, verified = self._site.look()
        assert verified.ok, verified.problems
        self.counts["left-overs"] += len(verified.leftovers)
        assert self._site.acknowledged.keys() <= there
        self._site.check(finished=kind == "backup" and finished)

    def _killed_backup(self) -> bool:
        self._site.change()
        with self.served() as uri:
            process = self._site.start_backup(uri)
            self._site.until_session(process)
            return self._end(process)

    def _killed_restore(self) -> bool:
        """A restore in the place of a file, or of none, leaves the old or the whole new one."""
        before = self._random.choice((None, b"before"))
        self._target.mkdir(exist_ok=True)
        file = self._target / f"{DISK}.raw"
        file.unlink(missing_ok=True)
        if before is not None:
            file.write_bytes(before)
        process = self._site.start("restore", f"{VM}@latest", "--to", str(self._target), "--force")
        deadline = time.monotonic() + 30
        while not list(self._target.glob(".sfasync-*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        finished = self._end(process)
        found = file.read_bytes() if file.exists() else None
        assert found == self._site.image.read_bytes() or (found == before and not finished)
        for hidden in self._target.glob(".sfasync-*.part"):
            hidden.unlink()
            self.counts["hidden files"] += 1
        assert {path.name for path in self._target.iterdir()} <= {file.name}
        return finished

    def _killed(self, *arguments: str) -> bool:
        process = self._site.start(*arguments)
        with suppress(subprocess.TimeoutExpired):
            process.wait(self._random.uniform(0.05, 0.5))
        return self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> bool:
        """Kill a process after a while; whether it had said that all is done."""
        with suppress(subprocess.TimeoutExpired):
            process.wait(self._random.uniform(0, _SECONDS))
        process.kill()
        status = process.wait(60)
        assert status in (0, -9), self._site.said()
        return status == 0


def test_a_few_kills(tmp_path: Path) -> None:
    killer = Killer(tmp_path / "site", 1, Counter())
    for kind in ("backup", "restore", "verify", "backup"):
        killer.kill(kind)


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_many_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts: Counter[str] = Counter()
    done = 0
    while (killed := sum(count for what, count in counts.items() if what.endswith("killed"))) < KILLS_IN_ALL:
        killer = Killer(tmp_path / f"site-{done}", done, counts)
        for number in range(min(_KILLS_OF_A_REPOSITORY, KILLS_IN_ALL - killed)):
            killer.kill(_KINDS[number % len(_KINDS)])
            done += 1
    with capsys.disabled():
        told = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
        print(f" {killed} processes killed ({told}), nothing lost ", end="")
