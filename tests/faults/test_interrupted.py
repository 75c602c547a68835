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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sfasync import Repository

from ..support.command import finish, sfasync, start
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


@dataclass
class Disk:
    """A disk of random bytes and the server that it is read from.

    Attributes:
        image: The bytes.
        limit: What is in it is the offset from which on reads wait.
        log: What the server was asked.
    """

    image: Path
    limit: Path
    log: Path
    server: Server

    @property
    def size(self) -> int:
        return self.image.stat().st_size

    def stop_at(self, offset: int) -> None:
        self.limit.write_text(str(offset))

    def go_on(self) -> None:
        self.limit.write_text("")

    def asked(self) -> list[tuple[int, int]]:
        """Every read that the server began since the last call: offset and length."""
        said = self.log.read_text()
        self.log.write_text("")
        return [(int(m[1], 16), int(m[2], 16)) for m in re.finditer(r" Read id=\d+ offset=(\w+) count=(\w+)", said)]


@contextmanager
def served(place: Path, size: int, *, seed: int = 0) -> Iterator[Disk]:
    """A disk with a size, in a directory."""
    place.mkdir()
    image, limit, log = place / "image", place / "limit", place / "log"
    source = random.Random(seed)
    image.write_bytes(b"".join(source.randbytes(MiB) for _ in range(size // MiB)))
    limit.write_text("")
    pread = _UNTIL.format(limit=limit, image=image)
    said = ["thread_model=echo parallel", f"logfile={log}", "logappend=true"]
    with nbdkit("eval", f"get_size=echo {size}", f"pread={pread}", *said, filters=("log",)) as server:
        yield Disk(image, limit, log, server)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "repository"
    monkeypatch.setenv("SFASYNC_REPOSITORY", str(path))
    assert sfasync("init").status == 0
    return path


def arguments(disks: Mapping[str, Disk], *options: str, snapshot: str | None = "s1") -> list[str]:
    named = [word for name, disk in disks.items() for word in ("--disk", f"{name}={disk.server.uri}")]
    frozen = [] if snapshot is None else ["--snapshot-id", snapshot]
    return ["backup", VM, *named, *frozen, *options]


def journaled() -> int:
    """Bytes that the next backup need not read."""

    async def look() -> int:
        async with await Repository.open(os.environ["SFASYNC_REPOSITORY"]) as repository:
            return sum(backup.bytes_journaled for backup in await repository.unfinished())

    return asyncio.run(look())


def kill_when_journaled(disks: Mapping[str, Disk], size: int) -> int:
    """Start a backup and kill it when it has noted so many bytes; gives what it had noted at its end."""
    process = start(*arguments(disks))
    deadline = time.monotonic() + _WAIT
    try:
        while journaled() < size:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, f"{journaled()} of {size} bytes"
            time.sleep(0.05)
    finally:
        process.kill()
        finish(process)
    for disk in disks.values():
        disk.asked()
    return journaled()


def back_up(disks: Mapping[str, Disk], *options: str, snapshot: str | None = "s1") -> dict[str, Any]:
    ended = sfasync(*arguments(disks, *options, "--json", snapshot=snapshot))
    assert ended.status == 0, ended.err
    return ended.last


def resumed(result: Mapping[str, Any]) -> int:
    return sum(disk["bytes_resumed"] for disk in result["disks"])


def asked(disks: Mapping[str, Disk]) -> int:
    """Bytes that servers were asked for; nothing twice."""
    reads = [(name, *read) for name, disk in disks.items() for read in disk.asked()]
    assert len(set(reads)) == len(reads)
    return sum(length for _, _, length in reads)


def check(repository: Path, result: Mapping[str, Any], disks: Mapping[str, Disk], place: Path) -> None:
    """See that a backup is whole, that nothing is left of those before it, and that reading all makes the same."""
    assert sfasync("restore", result["id"], "--to", place).status == 0
    for name, disk in disks.items():
        assert (place / f"{name}.raw").read_bytes() == disk.image.read_bytes()
    assert sfasync("verify", "--data").status == 0
    assert not [path for path in repository.rglob("*/journals/*") if path.is_file()]
    again = back_up(disks, snapshot=None)
    assert [disk["tree"] for disk in again["disks"]] == [disk["tree"] for disk in result["disks"]]


@pytest.mark.parametrize(("count", "size"), [(1, 256 * MiB), (8, 16 * MiB)], ids=["one disk", "eight disks"])
def test_killed_at_98_percent_it_reads_the_missing_2(count: int, size: int, repository: Path, tmp_path: Path) -> None:
    limit = size * 98 // 100 // MiB * MiB
    with ExitStack() as stack:
        disks = {
            f"vd{number}": stack.enter_context(served(tmp_path / f"disk{number}", size, seed=number))
            for number in range(count)
        }
        for disk in disks.values():
            disk.stop_at(limit)
        assert kill_when_journaled(disks, count * limit) == count * limit
        for disk in disks.values():
            disk.go_on()
        result = back_up(disks)
        assert asked(disks) == count * (size - limit)
        assert resumed(result) == count * limit
        for disk_result in result["disks"]:
            assert disk_result["bytes_read"] == size - limit
            assert disk_result["reasons"][-1] == "resumed"
        check(repository, result, disks, tmp_path / "restored")


def test_killed_several_times_in_a_row(repository: Path, tmp_path: Path) -> None:
    size = 20 * MiB
    with served(tmp_path / "disk", size) as disk:
        disks = {"vda": disk}
        for percent in (10, 15, 99):
            disk.stop_at(size * percent // 100 // MiB * MiB)
            kill_when_journaled(disks, size * percent // 100 // MiB * MiB)
        disk.go_on()
        noted = journaled()
        result = back_up(disks)
        assert asked(disks) == size - noted
        check(repository, result, disks, tmp_path / "restored")


@pytest.fixture
def stopped(repository: Path, tmp_path: Path) -> Iterator[dict[str, Disk]]:
    """A disk of which a killed backup has finished 4 of 8 MiB."""
    with served(tmp_path / "disk", 8 * MiB) as disk:
        disk.stop_at(4 * MiB)
        assert kill_when_journaled({"vda": disk}, 4 * MiB) == 4 * MiB
        disk.go_on()
        yield {"vda": disk}


def test_another_snapshot_is_read_whole(stopped: dict[str, Disk], repository: Path, tmp_path: Path) -> None:
    result = back_up(stopped, snapshot="s2")
    assert (asked(stopped), resumed(result)) == (8 * MiB, 0)
    check(repository, result, stopped, tmp_path / "restored")


@pytest.mark.parametrize("options", [["--no-resume"], []], ids=["not wanted", "not named"])
def test_nothing_is_resumed_that_is_not_wanted(
    options: list[str], stopped: dict[str, Disk], repository: Path, tmp_path: Path
) -> None:
    result = back_up(stopped, *options, snapshot="s1" if options else None)
    assert (asked(stopped), resumed(result)) == (8 * MiB, 0)
    assert "resumed" not in result["disks"][0]["reasons"]
    check(repository, result, stopped, tmp_path / "restored")


def test_a_damaged_journal_is_read_again(stopped: dict[str, Disk], repository: Path, tmp_path: Path) -> None:
    (journal,) = repository.rglob("*/journals/*")
    content = bytearray(journal.read_bytes())
    content[-40] ^= 1
    journal.write_bytes(content)
    assert sfasync("verify").status == 22
    ended = sfasync(*arguments(stopped, "--json"))
    assert ended.status == 0
    assert "a journal is left out" in ended.err
    assert asked(stopped) == 8 * MiB
    check(repository, ended.last, stopped, tmp_path / "restored")


def test_a_disk_of_another_size_is_read_whole(stopped: dict[str, Disk], repository: Path, tmp_path: Path) -> None:
    with served(tmp_path / "grown", 9 * MiB) as grown:
        result = back_up({"vda": grown})
        assert asked({"vda": grown}) == 9 * MiB
        check(repository, result, {"vda": grown}, tmp_path / "restored")


def test_a_disk_that_came_and_one_that_went(stopped: dict[str, Disk], repository: Path, tmp_path: Path) -> None:
    with served(tmp_path / "second", 2 * MiB, seed=2) as second:
        disks = {"vdb": second, **stopped}
        result = back_up(disks)
        assert asked({"vdb": second}) == 2 * MiB
        assert asked(stopped) == 4 * MiB
        check(repository, result, disks, tmp_path / "restored")
        assert resumed(back_up({"vdb": second})) == 0


@pytest.mark.parametrize("seconds", [pytest.param(60, marks=[pytest.mark.faults, pytest.mark.timeout(600)])])
def test_killed_at_any_moment(seconds: int, repository: Path, tmp_path: Path) -> None:
    """Nothing is read twice but what was under way."""
    choice = random.Random(time.time())
    deadline = time.monotonic() + seconds
    kills = 0
    with served(tmp_path / "disk", 64 * MiB) as disk:
        while time.monotonic() < deadline:
            number = f"s{kills}"
            process = start(*arguments({"vda": disk}, snapshot=number))
            time.sleep(choice.uniform(0.1, 1.5))
            process.kill()
            ended = finish(process)
            kills += 1
            disk.asked()
            noted = journaled()
            result = back_up({"vda": disk}, snapshot=number)
            assert resumed(result) == (noted if ended.status else 0)
            assert asked({"vda": disk}) == 64 * MiB - resumed(result)
    assert sfasync("verify", "--data").status == 0
    print(f"{kills} kills")
