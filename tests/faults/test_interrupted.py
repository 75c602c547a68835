"""Backups that are killed again and again go on where they were stopped: what the server is asked for is counted.

What a killed backup had finished is looked up in the repository before the next one begins, so no clock decides
whether a test passes: the next one reads the rest, to the byte.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from sfasync import Repository

from ..support.command import Ended, finish, sfasync, start
from ..support.servers import Server, nbdkit

MiB = 1 << 20
VM = "web-01"
_WAIT = 60.0

# Serves a file, but not beyond a place, as long as a file says so: `eval` runs this for every read, with the length as
# $3 and the offset as $4.
_UNTIL = """
while [ -s '{limit}' ] && [ "$4" -ge "$(cat '{limit}')" ]; do sleep 0.05; done
dd if='{image}' iflag=skip_bytes,count_bytes skip="$4" count="$3" bs=1M status=none
"""


class Disk:
    """A disk of random bytes, served when it is needed: nbdkit 1.32 may abort when a client is killed.

    Args:
        place: A directory of its own, which is created.
        size: Bytes, whole MiB.

    Attributes:
        image: The bytes.
    """

    def __init__(self, place: Path, size: int) -> None:
        place.mkdir()
        source = random.Random(str(place))
        self.size = size
        self.image = place / "image"
        self.image.write_bytes(b"".join(source.randbytes(MiB) for _ in range(size // MiB)))
        self._limit, self._log = place / "limit", place / "log"

    @contextmanager
    def served(self, limit: int | None = None) -> Iterator[Server]:
        """Serve it; reads from `limit` on wait until the server ends."""
        self._limit.write_text("" if limit is None else str(limit))
        said = ["thread_model=echo parallel", f"logfile={self._log}", "logappend=true"]
        pread = _UNTIL.format(limit=self._limit, image=self.image)
        with nbdkit("eval", f"get_size=echo {self.size}", f"pread={pread}", *said, filters=("log",)) as server:
            try:
                yield server
            finally:
                self._limit.write_text("")

    def asked(self) -> list[tuple[int, int]]:
        """Every read that servers began since the last call: offset and length."""
        said = self._log.read_text()
        self._log.unlink()
        return [(int(m[1], 16), int(m[2], 16)) for m in re.finditer(r" Read id=\d+ offset=(\w+) count=(\w+)", said)]


Disks = Mapping[str, Disk]


@contextmanager
def all_served(disks: Disks, limit: int | None = None) -> Iterator[list[str]]:
    """Serve disks; gives the arguments that name them."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(disk.served(limit)) for name, disk in disks.items()}
        yield [word for name, server in servers.items() for word in ("--disk", f"{name}={server.uri}")]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "repository"
    monkeypatch.setenv("SFASYNC_REPOSITORY", str(path))
    assert sfasync("init").status == 0
    return path


def journaled() -> int:
    """Bytes that the next backup need not read."""

    async def look() -> int:
        async with await Repository.open(os.environ["SFASYNC_REPOSITORY"]) as repository:
            return sum(backup.bytes_journaled for backup in await repository.unfinished())

    return asyncio.run(look())


def kill_at(disks: Disks, limit: int) -> int:
    """Back disks up from servers that stop at an offset, and kill that when all before it is noted.

    Returns:
        What all backups so far have noted.
    """
    with all_served(disks, limit) as named:
        process = start("backup", VM, *named, "--snapshot-id", "s1")
        deadline = time.monotonic() + _WAIT
        try:
            while journaled() < limit * len(disks):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline, f"{journaled()} of {limit} bytes"
                time.sleep(0.05)
        finally:
            process.kill()
            finish(process)
    for disk in disks.values():
        disk.asked()
    return journaled()


def back_up(disks: Disks, *options: str, snapshot: str | None = "s1") -> Ended:
    frozen = [] if snapshot is None else ["--snapshot-id", snapshot]
    with all_served(disks) as named:
        ended = sfasync("backup", VM, *named, *frozen, *options, "--json")
    assert ended.status == 0, ended.err
    return ended


def resumed(result: Mapping[str, Any]) -> int:
    return sum(disk["bytes_resumed"] for disk in result["disks"])


def asked(disks: Disks) -> int:
    """Bytes that servers were asked for; nothing twice."""
    reads = [(name, *read) for name, disk in disks.items() for read in disk.asked()]
    assert len(set(reads)) == len(reads)
    return sum(length for _, _, length in reads)


def check(repository: Path, result: Mapping[str, Any], disks: Disks, place: Path) -> None:
    """See that a backup is whole, that nothing is left of those before it, and that reading all makes the same."""
    assert sfasync("restore", result["id"], "--to", place).status == 0
    for name, disk in disks.items():
        assert (place / f"{name}.raw").read_bytes() == disk.image.read_bytes()
    assert sfasync("verify", "--data").status == 0
    assert not [path for path in repository.rglob("*/journals/*") if path.is_file()]
    again = back_up(disks, snapshot=None).last
    assert [disk["tree"] for disk in again["disks"]] == [disk["tree"] for disk in result["disks"]]


@pytest.mark.parametrize(("count", "size"), [(1, 256 * MiB), (8, 16 * MiB)], ids=["one disk", "eight disks"])
def test_killed_at_98_percent_it_reads_the_missing_2(count: int, size: int, repository: Path, tmp_path: Path) -> None:
    limit = size * 98 // 100 // MiB * MiB
    disks = {f"vd{number}": Disk(tmp_path / f"disk{number}", size) for number in range(count)}
    assert kill_at(disks, limit) == count * limit
    result = back_up(disks).last
    assert asked(disks) == count * (size - limit)
    assert resumed(result) == count * limit
    for disk in result["disks"]:
        assert disk["bytes_read"] == size - limit
        assert disk["reasons"][-1] == "resumed"
    check(repository, result, disks, tmp_path / "restored")


def test_killed_several_times_in_a_row(repository: Path, tmp_path: Path) -> None:
    disks = {"vda": Disk(tmp_path / "disk", 20 * MiB)}
    noted = [kill_at(disks, limit * MiB) for limit in (2, 3, 6, 19)]
    assert noted == [2 * MiB, 3 * MiB, 6 * MiB, 19 * MiB]
    result = back_up(disks).last
    assert asked(disks) == MiB
    check(repository, result, disks, tmp_path / "restored")


@pytest.fixture
def stopped(repository: Path, tmp_path: Path) -> Disks:
    """A disk of which a killed backup has finished 4 of 8 MiB."""
    disks = {"vda": Disk(tmp_path / "disk", 8 * MiB)}
    assert kill_at(disks, 4 * MiB) == 4 * MiB
    return disks


@pytest.mark.parametrize(
    ("options", "snapshot"),
    [((), "s2"), (("--no-resume",), "s1"), ((), None)],
    ids=["another snapshot", "not wanted", "not named"],
)
def test_all_is_read_again(
    options: tuple[str, ...], snapshot: str | None, stopped: Disks, repository: Path, tmp_path: Path
) -> None:
    result = back_up(stopped, *options, snapshot=snapshot).last
    assert (asked(stopped), resumed(result)) == (8 * MiB, 0)
    assert "resumed" not in result["disks"][0]["reasons"]
    check(repository, result, stopped, tmp_path / "restored")


def test_a_damaged_journal_is_read_again(stopped: Disks, repository: Path, tmp_path: Path) -> None:
    (journal,) = repository.rglob("*/journals/*")
    content = bytearray(journal.read_bytes())
    content[-40] ^= 1
    journal.write_bytes(content)
    assert sfasync("verify").status == 22
    ended = back_up(stopped)
    assert "a journal is left out" in ended.err
    assert asked(stopped) == 8 * MiB
    check(repository, ended.last, stopped, tmp_path / "restored")


def test_a_disk_of_another_size_is_read_whole(stopped: Disks, repository: Path, tmp_path: Path) -> None:
    grown = {"vda": Disk(tmp_path / "grown", 9 * MiB)}
    result = back_up(grown).last
    assert asked(grown) == 9 * MiB
    check(repository, result, grown, tmp_path / "restored")


def test_a_disk_that_came_and_one_that_went(stopped: Disks, repository: Path, tmp_path: Path) -> None:
    second = {"vdb": Disk(tmp_path / "second", 2 * MiB)}
    result = back_up({**second, **stopped}).last
    assert (asked(second), asked(stopped)) == (2 * MiB, 4 * MiB)
    check(repository, result, {**second, **stopped}, tmp_path / "restored")
    assert resumed(back_up(second).last) == 0


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_killed_at_any_moment(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that was noted is read again, whenever the blow falls."""
    choice = random.Random(time.time())
    disks = {"vda": Disk(tmp_path / "disk", 64 * MiB)}
    saved = []
    for number in range(50):
        with all_served(disks) as named:
            process = start("backup", VM, *named, "--snapshot-id", f"s{number}")
            time.sleep(choice.uniform(0.3, 3))
            process.kill()
            ended = finish(process)
        asked(disks)
        noted = journaled()
        result = back_up(disks, snapshot=f"s{number}").last
        assert resumed(result) == (noted if ended.status else 0)
        assert asked(disks) == 64 * MiB - resumed(result)
        saved.append(resumed(result) // MiB)
    assert sfasync("verify", "--data").status == 0
    with capsys.disabled():
        print(f" {len(saved)} kills, MiB not read again: {sorted(saved)} ", end="")
