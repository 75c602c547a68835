"""The power is cut at random moments of a backup, before single calls of it, and in the instant after it said yes.

What was acknowledged is there after the next mount, to the byte; the rest is invisible; the next backup needs no help.
Likewise a restore: a file has its name when all of it is durable, and an acknowledged one is there.
The same backup with fsync made to do nothing loses what it acknowledged, so a cut does lose what is not durable.
"""

from __future__ import annotations

import glob
import random
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ..support.power import CUTS, KINDS, Disk, disk
from ..support.servers import nbdkit
from .site import DISK, VM, Site

MOMENTS = ("acknowledged", "random", "link", "fsync")

CUTS_IN_ALL = 200
CUTS_OF_RESTORES = 60
_CUTS_OF_A_REPOSITORY = 25
_LAST_CALL = {"link": 6, "fsync": 24}  # of a backup with one pack of each class, about
_SECONDS_OF_A_RESTORE = 0.03  # from its file on, about
_SECONDS = 0.25  # that such a backup takes from its session on, about


class PowerCut:
    """Backups into a file system whose power is cut.

    Attributes:
        done: How often it was.
    """

    def __init__(self, place: Path, disk: Disk, seed: int, *, cache_too: bool) -> None:
        place.mkdir()
        self.done = 0
        self._disk = disk
        self._random = random.Random(seed)
        self._mark = place / "mark"
        cache = disk.mount / f"cache-{seed}" if cache_too else None
        self._site = Site(place, disk.mount / f"repository-{seed}", seed=seed, cache=cache)
        self._site.init()

    def cut(self, how: str, moment: str) -> None:
        """Change the disk, back it up, cut the power at a moment of that, mount again, and look at all promises."""
        self._site.change()
        with nbdkit("file", self._site.image, "--readonly") as server:
            status = self._back_up(server.uri, how, moment)
        self._disk.restart()
        self._site.check(finished=status == 0)
        self.done += 1

    def _back_up(self, uri: str, how: str, moment: str) -> int:
        if moment in _LAST_CALL:
            when = str(self._random.randint(1, _LAST_CALL[moment]))
            self._mark.unlink(missing_ok=True)
            program = ("tests.support.faulty", moment, f"cut-{how}", when, str(self._mark))
            process = self._site.start_backup(uri, program=program)
            process.wait(60)
            if not self._mark.exists():  # there was no such call
                self._disk.cut(how)
            return process.returncode
        process = self._site.start_backup(uri)
        if moment == "acknowledged":
            assert process.wait(60) == 0, self._site.said()
            self._disk.cut(how)
            return 0
        self._site.until_session(process)
        with suppress(subprocess.TimeoutExpired):
            process.wait(self._random.uniform(0, _SECONDS))
        self._disk.cut(how)
        process.kill()
        return process.wait(60)


class RestoreCut:
    """Restores to a file system whose power is cut; the repository is on another.

    Attributes:
        done: How often it was.
        whole: How often the file was there after it.
    """

    def __init__(self, place: Path, disk: Disk, seed: int) -> None:
        self.done = self.whole = 0
        self._disk = disk
        self._random = random.Random(seed)
        self._site = Site(place, place / "repository", seed=seed)
        self._site.init()
        with nbdkit("file", self._site.image, "--readonly") as server:
            assert self._site.back_up(server.uri) == 0, self._site.said()

    def cut(self, how: str, *, acknowledged: bool) -> None:
        """Restore, cut the power at a moment of that or after it, mount again, and look at what is there."""
        target = self._disk.mount / f"target-{self.done}"
        process = self._site.start("restore", f"{VM}@latest", "--to", str(target))
        if acknowledged:
            assert process.wait(60) == 0, self._site.said()
        else:
            while not list(target.glob(".sfasync-*")) and process.poll() is None:
                time.sleep(0.001)
            with suppress(subprocess.TimeoutExpired):
                process.wait(self._random.uniform(0, _SECONDS_OF_A_RESTORE))
        finished = process.poll() == 0
        self._disk.cut(how)
        process.kill()
        process.wait(60)
        self._disk.restart()
        file = target / f"{DISK}.raw"
        assert file.exists() or not finished, "acknowledged, and not there"
        assert not file.exists() or file.read_bytes() == self._site.image.read_bytes(), "there, and not whole"
        self.whole += file.exists()
        self.done += 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_cuts_of_restores(tmp_path: Path, kind: str) -> None:
    with disk(tmp_path, kind) as mounted:
        restores = RestoreCut(tmp_path, mounted, 1)
        restores.cut("all", acknowledged=True)
        restores.cut("log", acknowledged=False)
        restores.cut("log", acknowledged=True)


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_many_cuts_of_restores(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with disk(tmp_path, kind) as mounted:
        restores = RestoreCut(tmp_path, mounted, 2)
        for number in range(CUTS_OF_RESTORES // len(KINDS)):
            restores.cut(list(CUTS)[number % len(CUTS)], acknowledged=number % 4 == 0)
        with capsys.disabled():
            print(f" {restores.done} cuts of restores on {kind}, {restores.whole} files whole, none in part ", end="")


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_cuts(tmp_path: Path, kind: str) -> None:
    with disk(tmp_path, kind) as mounted:
        power = PowerCut(tmp_path / "site", mounted, 1, cache_too=True)
        for how, moment in (("all", "acknowledged"), ("log", "random"), ("all", "link")):
            power.cut(how, moment)


def test_without_fsync_what_was_acknowledged_is_lost(tmp_path: Path) -> None:
    """The counter-check: a cut that lost nothing here would show nothing elsewhere."""
    libraries = glob.glob("/usr/lib/*/libeatmydata.so")
    if not libraries:
        pytest.skip("libeatmydata is not installed; run scripts/system-packages")
    with disk(tmp_path, "ext4") as mounted:
        site = Site(tmp_path, mounted.mount / "repository")
        site.init()
        with nbdkit("file", site.image, "--readonly") as server:
            process = site.start_backup(server.uri, env={"LD_PRELOAD": libraries[0]})
            assert process.wait(60) == 0, site.said()
            mounted.cut("all")
        mounted.restart()
        with pytest.raises(AssertionError, match="acknowledged: True, there: set"):
            site.check(finished=True)


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_many_cuts(tmp_path: Path, kind: str, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = CUTS_IN_ALL // (len(KINDS) * len(CUTS))
    done = 0
    with disk(tmp_path, kind) as mounted:
        while done < wanted:
            power = PowerCut(tmp_path / f"site-{done}", mounted, done, cache_too=done % 2 == 0)
            while power.done < min(_CUTS_OF_A_REPOSITORY, wanted - done):
                power.cut(how, MOMENTS[power.done % len(MOMENTS)])
            done += power.done
    with capsys.disabled():
        print(f" {done} cuts of the power of {kind} ({how}), nothing lost ", end="")
