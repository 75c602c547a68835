from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfasync.errors import StorageError
from sfasync.platform.scp.journal import Journal
from sfasync.workers import Workers

ORIGIN = "https://scp.example"


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers(1, "test")
    yield workers
    workers.close()


@pytest.fixture
def journal(workers: Workers, tmp_path: Path) -> Journal:
    return Journal(ORIGIN, workers, tmp_path / "journal")


async def test_a_run_that_is_undone_leaves_nothing(journal: Journal, tmp_path: Path) -> None:
    run = await journal.begin()
    entry = await run.intend("snapshot", vm="vm", name="sfasync-1")
    [path] = (tmp_path / "journal").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await run.made(entry, "5e1c")
    assert [(one.kind, one.vm, one.name, one.id) for one in run.entries] == [("snapshot", "vm", "sfasync-1", "5e1c")]
    await run.gone(entry)
    await run.gone(entry)
    await run.end()
    await run.end()
    assert list(path.parent.iterdir()) == []


async def test_a_living_run_is_not_abandoned(journal: Journal) -> None:
    run = await journal.begin()
    await run.intend("snapshot", vm="vm", name="sfasync-1")
    assert await journal.abandoned() == []
    await run.end()
    [dead] = await journal.abandoned()
    assert await journal.abandoned() == []  # it is ours now
    [entry] = dead.entries
    await dead.gone(entry)
    await dead.end()
    assert await journal.abandoned() == []


async def test_what_a_killed_process_had_intended_is_found(journal: Journal, tmp_path: Path) -> None:
    script = f"""
import asyncio, os, signal
from pathlib import Path
from sfasync.platform.scp.journal import Journal
from sfasync.workers import Workers

async def main():
    run = await Journal({ORIGIN!r}, Workers(1, "test"), Path({str(tmp_path / "journal")!r})).begin()
    snapshot = await run.intend("snapshot", vm="vm", name="sfasync-1")
    await run.made(snapshot, "5e1c")
    lease = await run.intend("backup resource", vm="vm", name="backup", seconds=1800)
    await run.made(lease, "8d06:cb2a")
    await run.gone(lease)
    await run.intend("virtual machine", vm="", name="copy")
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == -signal.SIGKILL
    [run] = await journal.abandoned()
    assert [(entry.kind, entry.name, entry.id) for entry in run.entries] == [
        ("snapshot", "sfasync-1", "5e1c"),
        ("virtual machine", "copy", ""),
    ]
    assert all(entry.token and entry.at for entry in run.entries)
    more = await run.intend("snapshot", vm="vm", name="sfasync-2")
    assert more.number not in {entry.number for entry in run.entries[:-1]}
    await run.end()


async def test_runs_of_other_platforms_and_vms_are_left_alone(
    journal: Journal, workers: Workers, tmp_path: Path
) -> None:
    other = Journal("https://other.example", workers, tmp_path / "journal")
    for vm, where in [("vm", other), ("other", journal)]:
        run = await where.begin()
        await run.intend("snapshot", vm=vm, name="sfasync-1")
        await run.end()
    assert await journal.abandoned("vm") == []
    (tmp_path / "journal" / f"{1:032x}.jsonl").write_bytes(b'{"origin": "https://scp.example", "pid": 1}\n')
    [empty] = await journal.abandoned("vm")  # it has made nothing, so it is anybody's
    await empty.end()
    [run] = await journal.abandoned()
    assert [entry.vm for entry in run.entries] == ["other"]
    await run.end()
    assert len(list((tmp_path / "journal").iterdir())) == 2


async def test_a_line_without_its_end_counts_as_not_written(journal: Journal, tmp_path: Path) -> None:
    run = await journal.begin()
    first = await run.intend("snapshot", vm="vm", name="sfasync-1")
    await run.end()
    [path] = (tmp_path / "journal").iterdir()
    with path.open("ab") as file:
        file.write(b'{"entry": 0, "gone": tr')
    [dead] = await journal.abandoned()
    assert [entry.number for entry in dead.entries] == [first.number]
    await dead.made(dead.entries[0], "5e1c")
    await dead.end()
    [dead] = await journal.abandoned()
    assert [entry.id for entry in dead.entries] == ["5e1c"]
    await dead.end()


async def test_what_is_no_journal_is_left_alone(journal: Journal, tmp_path: Path) -> None:
    place = tmp_path / "journal"
    run = await journal.begin()
    await run.end()
    name = "{:032x}.jsonl"
    (place / name.format(1)).write_bytes(b"nonsense\n")
    (place / name.format(2)).write_bytes(b'{"origin": "https://scp.example", "pid": 1, "version": 2}\n')
    (place / name.format(3)).symlink_to("/etc/passwd")
    os.mkfifo(place / name.format(4))
    (place / name.format(5)).mkdir()
    (place / name.format(6)).write_bytes(b"x" * (2 << 20))
    (place / "notes.txt").write_text("mine")
    assert await journal.abandoned() == []
    assert len(list(place.iterdir())) == 7


async def test_a_run_that_is_about_to_begin_is_left_alone(journal: Journal, tmp_path: Path) -> None:
    place = tmp_path / "journal"
    await (await journal.begin()).end()
    young, old = place / f"{1:032x}.jsonl", place / f"{2:032x}.jsonl"
    young.write_bytes(b"")
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    assert await journal.abandoned() == []
    assert list(place.iterdir()) == [young]


async def test_a_journal_that_cannot_be_written_says_so(workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot create .*/file/journal: Not a directory"):
        await Journal(ORIGIN, workers, tmp_path / "file" / "journal").begin()
