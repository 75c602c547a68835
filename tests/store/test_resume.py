"""What interrupted sessions had finished is taken over where it can be proven to belong, and nowhere else."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from sfasync.errors import StateError
from sfasync.models import Checkpoint, DiskRecord, Extent, Frozen, Manifest
from sfasync.store import packline
from sfasync.store import resume as module
from sfasync.store.names import JOURNALS, SESSIONS, session_key, vm_name
from sfasync.store.records import Records
from sfasync.store.repository import Repository
from sfasync.store.session import Session

from .memory import MemoryStore
from .support import CHUNK, back_up, files, flip, manifest_of, noise, read_disk

FROZEN = Frozen(snapshot="s1", checkpoint=Checkpoint("c1", "disk", 8 * CHUNK))
CONTENT = noise(2 * CHUNK) + bytes(CHUNK) + noise(3 * CHUNK, 1) + b"the last chunk is short"
COUNT = 7


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[Repository]:
    async with await Repository.init(tmp_path / "repository", chunk_size=CHUNK) as opened:
        yield opened


def journals(repository: Repository) -> list[Path]:
    return files(Path(repository.location), "journals")


async def interrupt(
    repository: Repository,
    chunks: range,
    *,
    vm: str = "web-01",
    disks: tuple[str, ...] = ("vda",),
    frozen: Frozen = FROZEN,
    content: bytes = CONTENT,
    doubtful: range = range(0),
) -> None:
    """A session that finishes some chunks of disks, adopting what it can, and is then cut short."""
    session = await repository.begin(vm)
    for disk in disks:
        writer = session.disk(
            disk,
            len(content),
            frozen=frozen,
            doubtful=lambda offset, length: offset // CHUNK in doubtful,
        )
        done = {extent.offset for extent in await writer.adopt(0, len(content))}
        for index in chunks:
            if index * CHUNK not in done:
                await writer.write(index * CHUNK, content[index * CHUNK : (index + 1) * CHUNK])
    await session.abort()


async def adopted(
    session: Session, *, disk: str = "vda", content: bytes = CONTENT, frozen: Frozen | None = FROZEN
) -> list[Extent]:
    return await session.disk(disk, len(content), frozen=frozen).adopt(0, len(content))


async def finish(
    repository: Repository, session: Session, *, content: bytes = CONTENT, disks: tuple[str, ...] = ("vda",)
) -> Manifest:
    """Back disks up to their end, in a session that was begun."""
    records = []
    for disk in disks:
        writer = session.disk(disk, len(content), frozen=FROZEN)
        done = await writer.adopt(0, len(content))
        for offset in range(0, len(content), CHUNK):
            if not any(extent.offset <= offset < extent.end for extent in done):
                await writer.write(offset, content[offset : offset + CHUNK])
        root, tree = await writer.finish()
        records.append(
            DiskRecord(id=disk, size=len(content), root=root, tree=tree, mode="full", statistics=writer.statistics)
        )
    return await session.commit(manifest_of(session, "web-01", records))


async def test_what_was_finished_is_adopted(repository: Repository) -> None:
    whole = await back_up(repository, "web-02", {"vda": CONTENT})
    await interrupt(repository, range(1, 4))
    session = await repository.begin("web-01")
    assert session.interrupted is not None
    assert session.interrupted.snapshot == "s1"
    writer = session.disk("vda", len(CONTENT), frozen=FROZEN)
    assert await writer.adopt(0, len(CONTENT)) == [Extent(CHUNK, 3 * CHUNK)]
    for index in (0, 4, 5, 6):
        await writer.write(index * CHUNK, CONTENT[index * CHUNK : (index + 1) * CHUNK])
    root, tree = await writer.finish()
    assert tree == whole.disks[0].tree
    statistics = writer.statistics
    assert statistics.bytes_zero == CHUNK
    assert statistics.bytes_new + statistics.bytes_duplicate + statistics.bytes_zero == len(CONTENT)
    disk = replace(whole.disks[0], root=root, tree=tree, statistics=statistics)
    manifest = await session.commit(manifest_of(session, "web-01", [disk]))
    assert await read_disk(repository, manifest, "vda") == CONTENT
    assert (await repository.verify(data=True)).problems == ()
    assert journals(repository) == []
    assert await repository.unfinished() == []


async def test_again_and_again(repository: Repository) -> None:
    for index in range(COUNT):
        await interrupt(repository, range(index, index + 1))
        (unfinished,) = await repository.unfinished()
        assert unfinished.bytes_journaled == min((index + 1) * CHUNK, len(CONTENT))
    session = await repository.begin("web-01")
    held = Records(repository._store, repository._records.repository).session(session._claim.place)
    assert held.resumes == tuple(range(1, COUNT + 1)), "the session says what it relies on"
    assert await adopted(session) == [Extent(0, len(CONTENT))]
    await session.abort()
    manifest = await finish(repository, await repository.begin("web-01"))
    assert manifest.disks[0].statistics.bytes_new == 0
    assert await read_disk(repository, manifest, "vda") == CONTENT
    assert journals(repository) == []


async def test_a_number_that_is_used_again_has_room_for_journals(repository: Repository) -> None:
    for index in range(3):
        await interrupt(repository, range(index, index + 1))
        for void in files(Path(repository.location), "backups"):
            void.unlink()  # as on a disk that was too full for it
    (unfinished,) = await repository.unfinished()
    assert unfinished.bytes_journaled == 3 * CHUNK
    session = await repository.begin("web-01")
    assert session.seq == 1
    assert await adopted(session) == [Extent(0, 3 * CHUNK)]
    await session.abort()


async def test_only_part_of_a_run_may_be_asked_for(repository: Repository) -> None:
    await interrupt(repository, range(COUNT))
    session = await repository.begin("web-01")
    writer = session.disk("vda", len(CONTENT), frozen=FROZEN)
    assert await writer.adopt(CHUNK, 2 * CHUNK) == [Extent(CHUNK, 2 * CHUNK)]
    assert await writer.adopt(5 * CHUNK, len(CONTENT) - 5 * CHUNK) == [Extent(5 * CHUNK, len(CONTENT) - 5 * CHUNK)]
    with pytest.raises(StateError, match="twice"):
        await writer.adopt(0, 3 * CHUNK)
    await session.abort()


@pytest.mark.parametrize(
    ("disk", "size", "frozen"),
    [
        ("vda", len(CONTENT), Frozen(snapshot="s2", checkpoint=FROZEN.checkpoint)),
        ("vda", len(CONTENT), Frozen(snapshot="s1", checkpoint=None)),
        ("vda", len(CONTENT), Frozen(snapshot="s1", checkpoint=Checkpoint("c2", "disk", 8 * CHUNK))),
        ("vda", len(CONTENT), Frozen(snapshot="s1", checkpoint=Checkpoint("c1", "another", 8 * CHUNK))),
        ("vda", len(CONTENT), None),
        ("vda", len(CONTENT) + 1, FROZEN),
        ("vda", len(CONTENT) - 1, FROZEN),
        ("vda", 4 * CHUNK, FROZEN),
        ("vdb", len(CONTENT), FROZEN),
    ],
)
async def test_another_state_is_read_again(disk: str, size: int, frozen: Frozen | None, repository: Repository) -> None:
    await interrupt(repository, range(COUNT))
    session = await repository.begin("web-01")
    assert await session.disk(disk, size, frozen=frozen).adopt(0, size) == []
    await session.abort()


async def test_another_vm_is_read_again(repository: Repository) -> None:
    await interrupt(repository, range(COUNT))
    session = await repository.begin("web-02")
    assert session.interrupted is None
    assert await adopted(session) == []
    await session.abort()


async def test_without_a_name_for_the_state_nothing_is_noted(repository: Repository) -> None:
    session = await repository.begin("web-01")
    writer = session.disk("vda", len(CONTENT))
    await writer.write(0, CONTENT[:CHUNK])
    await session.checkpoint()
    await session.abort()
    assert journals(repository) == []


async def test_on_request_nothing_is_resumed_and_all_is_forgotten(repository: Repository) -> None:
    await interrupt(repository, range(COUNT))
    session = await repository.begin("web-01", resume=False)
    assert journals(repository) == []
    assert await adopted(session) == []
    await session.abort()


async def test_what_could_not_be_read_is_not_noted(repository: Repository) -> None:
    await interrupt(repository, range(COUNT), doubtful=range(1, 2))
    session = await repository.begin("web-01")
    assert await adopted(session) == [Extent(0, CHUNK), Extent(2 * CHUNK, len(CONTENT) - 2 * CHUNK)]
    await session.abort()


async def test_several_disks_one_of_them_new(repository: Repository) -> None:
    await interrupt(repository, range(COUNT), disks=("vda", "vdb"))
    assert [backup.disks for backup in await repository.unfinished()] == [("vda", "vdb")]
    session = await repository.begin("web-01")
    assert await adopted(session, disk="vdb") == [Extent(0, len(CONTENT))]
    assert await adopted(session, disk="vdc") == []
    await session.abort()


# --- what cannot be relied on ----------------------------------------------------------------------------------------


async def test_a_damaged_journal_is_left_out_and_told(repository: Repository, caplog: pytest.LogCaptureFixture) -> None:
    await interrupt(repository, range(COUNT))
    (path,) = journals(repository)
    flip(path, 200)
    (problem,) = (await repository.verify()).problems
    assert problem.object == str(path.relative_to(repository.location))
    manifest = await finish(repository, await repository.begin("web-01"))
    assert "a journal is left out" in caplog.text
    assert await read_disk(repository, manifest, "vda") == CONTENT
    assert journals(repository) == []
    assert (await repository.verify()).ok


async def test_a_journal_is_checked_and_no_damage(repository: Repository) -> None:
    await interrupt(repository, range(COUNT))
    (path,) = journals(repository)
    verified = await repository.verify(data=True)
    assert verified.ok
    assert str(path.relative_to(repository.location)) in verified.leftovers


async def test_a_journal_that_goes_bad_after_it_was_found(repository: Repository) -> None:
    await interrupt(repository, range(COUNT))
    session = await repository.begin("web-01")
    (path,) = journals(repository)
    path.write_bytes(b"")
    assert await adopted(session) == [Extent(2 * CHUNK, CHUNK)], "zeros need no digests"
    await session.abort()


async def test_a_chunk_that_the_repository_does_not_have_any_more(repository: Repository) -> None:
    await interrupt(repository, range(COUNT))
    for path in files(Path(repository.location), "packs"):
        path.unlink()
    session = await repository.begin("web-01")
    assert await adopted(session) == [Extent(2 * CHUNK, CHUNK)]
    await session.abort()


async def test_a_pack_that_goes_while_the_next_session_relies_on_it(repository: Repository) -> None:
    await interrupt(repository, range(COUNT))
    session = await repository.begin("web-01")
    writer = session.disk("vda", len(CONTENT), frozen=FROZEN)
    await writer.adopt(0, len(CONTENT))
    root, tree = await writer.finish()
    for path in files(Path(repository.location), "packs"):
        path.unlink()
    record = DiskRecord(id="vda", size=len(CONTENT), root=root, tree=tree, mode="full")
    with pytest.raises(Exception, match="were removed"):
        await session.commit(manifest_of(session, "web-01", [record]))
    await session.abort()


async def test_no_more_runs_than_fit_into_memory(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    await interrupt(repository, range(COUNT))
    monkeypatch.setattr(module, "MAX_RUNS", 2)
    (unfinished,) = await repository.unfinished()
    assert unfinished.bytes_journaled == 3 * CHUNK
    session = await repository.begin("web-01")
    assert await adopted(session) == [Extent(0, 3 * CHUNK)], "a run of data and one of zeros"
    await session.abort()


async def test_no_more_journals_than_can_be_read_soon(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        await interrupt(repository, range(index, index + 1))
    monkeypatch.setattr(module, "MAX_JOURNALS", 2)
    session = await repository.begin("web-01")
    assert await adopted(session) == [Extent(CHUNK, 2 * CHUNK)], "the last two"
    await session.abort()


async def test_a_journal_older_than_the_last_backup_is_of_no_use(repository: Repository) -> None:
    """Its session committed, and was killed before it had removed it."""
    await interrupt(repository, range(COUNT))
    (path,) = journals(repository)
    content = path.read_bytes()
    await finish(repository, await repository.begin("web-01"))
    path.write_bytes(content)
    assert await repository.unfinished() == []
    session = await repository.begin("web-01")
    assert journals(repository) == []
    assert await adopted(session) == []
    await session.abort()


@pytest.mark.parametrize("ends", ["commits", "aborts", "drops"])
async def test_a_session_ends_though_its_journals_were_moved_away(
    repository: Repository, tmp_path: Path, ends: str
) -> None:
    session = await repository.begin("web-01")
    place = Path(repository.location) / "domains/default/journals"
    place.symlink_to(tmp_path)
    if ends == "commits":
        assert await read_disk(repository, await finish(repository, session), "vda") == CONTENT
    else:
        await session.disk("vda", len(CONTENT), frozen=FROZEN).write(0, CONTENT[:CHUNK])
        await session.checkpoint()
        await session.abort(keep=ends == "aborts")
    assert files(Path(repository.location), "sessions") == []
    place.unlink()
    assert len((await repository.verify(data=True)).problems) == 0
    await finish(repository, await repository.begin("web-01"))


# --- when it is noted ------------------------------------------------------------------------------------------------


async def test_a_checkpoint_makes_durable_what_is_finished(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packline, "SLOW", 1 << 40)
    session = await repository.begin("web-01")
    writer = session.disk("vda", len(CONTENT), frozen=FROZEN)
    await writer.write(0, CONTENT[:CHUNK])
    deadline = time.monotonic() + 10
    while not journals(repository):
        assert time.monotonic() < deadline
        await asyncio.sleep(await session.checkpoint())
    (unfinished,) = await repository.unfinished()
    assert (unfinished.vm, unfinished.snapshot, unfinished.disks) == ("web-01", "s1", ("vda",))
    assert (unfinished.bytes_journaled, unfinished.running) == (CHUNK, True)
    assert len(files(Path(repository.location), "packs")) == 1
    await session.abort()
    (unfinished,) = await repository.unfinished()
    assert not unfinished.running
    assert abs(unfinished.updated - time.time()) < 60
    assert abs(unfinished.started - time.time()) < 60


async def test_a_pack_that_fills_fast_is_left_to_fill(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packline, "SLOW", 0)
    session = await repository.begin("web-01")
    writer = session.disk("vda", len(CONTENT), frozen=FROZEN)
    await writer.write(0, CONTENT[:CHUNK])
    await writer.write(2 * CHUNK, CONTENT[2 * CHUNK : 3 * CHUNK])
    await session.checkpoint()
    assert files(Path(repository.location), "packs") == []
    (unfinished,) = await repository.unfinished()
    assert unfinished.bytes_journaled == CHUNK, "zeros need no pack"
    await session.abort()


async def test_what_may_not_be_the_snapshots_is_forgotten(repository: Repository) -> None:
    await interrupt(repository, range(1))
    before = journals(repository)
    session = await repository.begin("web-01")
    await session.disk("vda", len(CONTENT), frozen=FROZEN).write(2 * CHUNK, CONTENT[2 * CHUNK : 3 * CHUNK])
    await session.checkpoint()
    assert len(journals(repository)) == 2
    await session.abort(keep=False)
    assert journals(repository) == before


async def test_after_its_end_a_session_notes_nothing(repository: Repository) -> None:
    session = await repository.begin("web-01")
    writer = session.disk("vda", 0, frozen=FROZEN)
    root, tree = await writer.finish()
    record = DiskRecord(id="vda", size=0, root=root, tree=tree, mode="full")
    await session.commit(manifest_of(session, "web-01", [record]))
    await session.checkpoint()
    assert files(Path(repository.location), "journals") == []


# --- when it is given up ---------------------------------------------------------------------------------------------


async def test_what_nobody_comes_back_for_goes_after_seven_days(repository: Repository) -> None:
    for vm in ("old", "new", "live"):
        await interrupt(repository, range(COUNT), vm=vm)
    names = {vm: vm_name(bytes.fromhex(repository.id), vm) for vm in ("old", "new", "live")}
    paths = {vm: path for vm, name in names.items() for path in journals(repository) if path.name.startswith(name)}
    ago = time.time() - module.LIFETIME
    os.utime(paths["old"], (ago - 60, ago - 60))
    os.utime(paths["new"], (ago + 600, ago + 600))
    os.utime(paths["live"], (ago - 60, ago - 60))
    live = await repository.begin("live")
    await back_up(repository, "another", {"vda": b"x"})
    assert set(journals(repository)) == {paths["new"], paths["live"]}
    await live.abort()
    await back_up(repository, "another", {"vda": b"x"})
    assert set(journals(repository)) == {paths["new"]}


def test_age_is_told_by_the_clock_of_the_store() -> None:
    """Whatever the machine's clock says: the journal is six days older than the session, then eight."""
    store = MemoryStore()
    records = Records(store, bytes(16))
    store.clock = lambda: 0.0
    store.put(f"{JOURNALS}{'a' * 32}.{1:016x}.{1:016x}", b"")
    for days, left in ((6, 1), (8, 0)):
        store.clock = lambda days=days: days * 86400.0  # type: ignore[misc] # days is given
        key = session_key("b" * 32, days)
        store.put(key, b"")
        module.reclaim(records, key)
        assert len(store.list(JOURNALS)) == left
    assert len(store.list(SESSIONS)) == 2
