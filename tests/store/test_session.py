"""Sessions: one at a time for each VM, visible whole or not at all, never after somebody took over."""

from __future__ import annotations

import asyncio
import fcntl
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from sfasync.errors import BusyError, NoSpaceError, SfasyncError, StateError, StorageError, UsageError
from sfasync.models import FileRecord, Manifest
from sfasync.store.local import LocalStore, LocalWriter
from sfasync.store.names import BACKUPS, SESSIONS, TOMBSTONES, Numbered, backup_key, session_key, vm_name
from sfasync.store.records import Records
from sfasync.store.repository import Repository
from sfasync.store.session import Claim, claim

from .memory import MemoryStore
from .support import CHUNK, back_up, files, manifest_of, noise, read_disk, text, write_disk
from .test_codec import MANIFEST

REPOSITORY = bytes.fromhex(MANIFEST.repository)
VM = vm_name(REPOSITORY, MANIFEST.vm)


# --- claims, every interleaving of two ------------------------------------------------------------------------------


def commit(records: Records, claimed: Claim) -> None:
    """What a session does last."""
    records.put_manifest(claimed.place, replace(MANIFEST, seq=claimed.place.seq))
    records.put_end(claimed.place)
    claimed.hold.release()
    records.store.delete(session_key(*claimed.place))


def die(records: Records, claimed: Claim) -> None:
    claimed.hold.release()


def live(records: Records, claimed: Claim) -> None:
    pass


def die_after_the_manifest(records: Records, claimed: Claim) -> None:
    records.put_manifest(claimed.place, replace(MANIFEST, seq=claimed.place.seq))
    claimed.hold.release()


def store_with_history() -> MemoryStore:
    """Two backups, a void and a dead session."""
    store = MemoryStore()
    records = Records(store, REPOSITORY)
    for _ in range(2):
        commit(records, claim(records, MANIFEST.vm))
    die(records, claim(records, MANIFEST.vm))
    die(records, claim(records, MANIFEST.vm))
    return store


class Intruder:
    """Lets another session in before one operation of the store."""

    def __init__(self, point: int, fate: Callable[[Records, Claim], None]) -> None:
        self.store = store_with_history()
        self.records = Records(self.store, REPOSITORY)
        self.other: Claim | None = None
        self.steps = 0
        self._point = point
        self._fate = fate
        self.store.before = self._before

    def _before(self, operation: str, key: str) -> None:
        self.steps += 1
        if self.steps != self._point:
            return
        self.store.before = _nothing
        with suppress(BusyError):
            self.other = claim(self.records, MANIFEST.vm)
            self._fate(self.records, self.other)
        self.store.before = self._before


def _nothing(operation: str, key: str) -> None:
    pass


def claim_with(intruder: Intruder) -> Claim | None:
    try:
        return claim(intruder.records, MANIFEST.vm)
    except BusyError:
        return None
    finally:
        intruder.store.before = _nothing


@pytest.mark.parametrize("fate", [commit, die, live, die_after_the_manifest])
def test_another_session_at_every_point_of_a_claim(fate: Callable[[Records, Claim], None]) -> None:
    for point in count(1):
        intruder = Intruder(point, fate)
        mine = claim_with(intruder)
        if intruder.steps < point:
            break
        if fate is live:
            assert mine is None or intruder.other is None
        elif intruder.other is not None:
            assert mine is not None
            assert mine.place.seq > intruder.other.place.seq
        if mine is not None:
            assert intruder.store.held(session_key(*mine.place))
            places = intruder.records.numbered(VM)
            assert not any(place.seq >= mine.place.seq for place in places)
            assert mine.parent == intruder.records.manifests(places)[-1]
    assert point > 10


def test_a_number_is_never_used_twice() -> None:
    store = store_with_history()
    records = Records(store, REPOSITORY)
    assert [place.seq for place in records.numbered(VM)] == [1, 2, 3]
    mine = claim(records, MANIFEST.vm)
    assert mine.place.seq == 5
    assert [place.seq for place in records.numbered(VM)] == [1, 2, 3, 4]
    assert records.sessions(VM) == [mine.place]
    assert mine.parent is not None
    assert mine.parent.seq == 2


def test_a_parent_that_was_forgotten_meanwhile_is_no_parent() -> None:
    store = store_with_history()
    records = Records(store, REPOSITORY)

    def forget(operation: str, key: str) -> None:
        if operation == "put" and key.startswith(SESSIONS):
            store.objects.pop(backup_key(VM, 2))

    store.before = forget
    assert claim(records, MANIFEST.vm).parent is None


def test_a_damaged_parent_is_passed_over() -> None:
    store = store_with_history()
    records = Records(store, REPOSITORY)
    store.objects[backup_key(VM, 2)] = b"damaged"
    mine = claim(records, MANIFEST.vm)
    assert mine.place.seq == 5
    assert mine.parent is not None
    assert mine.parent.seq == 1


def test_ends_that_were_left_are_tidied_up() -> None:
    store = store_with_history()
    records = Records(store, REPOSITORY)
    records.put_end(Numbered(VM, 2))
    claim(records, MANIFEST.vm)
    assert records.ends(VM) == []


def test_a_claim_that_fails_leaves_no_session() -> None:
    store = store_with_history()
    records = Records(store, REPOSITORY)
    armed = False

    def fail(operation: str, key: str) -> None:
        nonlocal armed
        armed = armed or (operation == "put" and key.startswith(SESSIONS))
        if armed and operation == "list":
            raise StorageError("no listing")

    store.before = fail
    with pytest.raises(StorageError):
        claim(records, MANIFEST.vm)
    store.before = lambda operation, key: None
    assert store.holds == set()
    assert records.sessions(VM) == []


def test_names_that_are_used_up_are_told() -> None:
    store = MemoryStore()
    store.put(backup_key(VM, 2**52), b"")
    with pytest.raises(StorageError, match="used up"):
        claim(Records(store, REPOSITORY), MANIFEST.vm)


# --- sessions of a repository ---------------------------------------------------------------------------------------


async def test_after_a_backup_nothing_is_left_to_explain(repository: Repository, place: Path) -> None:
    await back_up(repository, "web-01", {"vda": noise(3 * CHUNK)})
    assert files(place, "sessions") == []
    result = await repository.verify(data=True)
    assert result.ok
    assert result.leftovers == ()


async def test_a_second_session_of_a_vm_is_refused_and_of_another_is_not(repository: Repository, place: Path) -> None:
    first = await repository.begin("web-01")
    with pytest.raises(BusyError, match=r"works on VM web-01 \(process \d+ on "):
        await repository.begin("web-01")
    async with await Repository.open(place) as other:
        with pytest.raises(BusyError):
            await other.begin("web-01")
        await (await other.begin("web-02")).abort()
    await first.abort()
    await (await repository.begin("web-01")).abort()


async def test_waiting_for_another_session(repository: Repository) -> None:
    first = await repository.begin("web-01")
    waiting = asyncio.create_task(repository.begin("web-01", wait=30))
    await asyncio.wait({waiting}, timeout=0.3)
    assert not waiting.done()
    await first.abort()
    second = await waiting
    assert second.seq == first.seq + 1
    with pytest.raises(BusyError):
        await repository.begin("web-01", wait=0.3)
    await second.abort()


async def test_a_cancelled_wait_leaves_no_session(repository: Repository, place: Path) -> None:
    for delay in (0.0, 0.0005, 0.002, 0.01, 0.05):
        task = asyncio.create_task(repository.begin("web-01"))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            await task.result().abort()
        assert files(place, "sessions") == []
    await (await repository.begin("web-01")).abort()


async def test_an_aborted_session_is_invisible_and_its_number_used_up(repository: Repository, place: Path) -> None:
    session = await repository.begin("web-01")
    await write_disk(session, "vda", noise(3 * CHUNK))
    await session.abort()
    await session.abort()
    assert await repository.backups() == []
    assert files(place, "sessions") == []
    result = await repository.verify(data=True)
    assert result.ok
    again = await repository.begin("web-01")
    assert again.seq == session.seq + 1
    await again.abort()


async def test_a_session_that_was_taken_over_commits_nothing(repository: Repository, place: Path) -> None:
    """As of one that was suspended while another expired it, which a local store would not do to the living."""
    content = noise(3 * CHUNK)
    session = await repository.begin("web-01")
    record = await write_disk(session, "vda", content)
    repository._records.put_void(Numbered(vm_name(bytes.fromhex(repository.id), "web-01"), session.seq), "fenced")
    with pytest.raises(BusyError, match="another session took over"):
        await session.commit(manifest_of(session, "web-01", [record]))
    assert await repository.backups() == []
    await session.abort()
    assert files(place, "sessions") == []
    manifest = await back_up(repository, "web-01", {"vda": content})
    assert manifest.disks[0].statistics.bytes_new == 0


async def test_the_manifest_must_tell_what_the_session_holds(repository: Repository) -> None:
    session = await repository.begin("web-01")
    record = await write_disk(session, "vda", noise(CHUNK))
    unfinished = session.disk("vdb", CHUNK)
    file = await session.add_file("config.json", b"{}")
    good = manifest_of(session, "web-01", [record])
    for wrong in (
        replace(good, disks=(replace(record, tree="0" * 64),)),
        replace(good, disks=(replace(record, size=1),)),
        replace(good, disks=(replace(record, id="vdc"),)),
        replace(good, disks=(replace(record, id="vdb", size=unfinished.size),)),
        replace(good, files=(FileRecord(name="other", size=2, digest="0" * 64),)),
        replace(good, files=(replace(file, size=3),)),
        replace(good, vm="web-02"),
    ):
        with pytest.raises(StateError):
            await session.commit(wrong)
    manifest = await session.commit(replace(good, files=(file,)))
    assert (await repository.find(manifest.id)) == manifest
    assert await repository.read_file(manifest, "config.json") == b"{}"


async def test_calls_in_the_wrong_order_are_refused(repository: Repository) -> None:
    session = await repository.begin("web-01")
    session.disk("vda", CHUNK)
    with pytest.raises(StateError, match="begun already"):
        session.disk("vda", CHUNK)
    await session.add_file("f", b"")
    with pytest.raises(StateError, match="added already"):
        await session.add_file("f", b"")
    with pytest.raises(UsageError, match="16777216 are the most"):
        await session.add_file("large", bytes(2**24 + 1))
    await session.commit(manifest_of(session, "web-01", []))
    for call in (
        lambda: session.commit(manifest_of(session, "web-01", [])),
        lambda: session.add_file("g", b""),
    ):
        with pytest.raises(StateError, match="is committed"):
            await call()
    with pytest.raises(StateError, match="is committed"):
        session.disk("vdb", CHUNK)
    await session.abort()
    assert len(await repository.backups()) == 1


async def test_packs_that_went_meanwhile_are_not_relied_on(repository: Repository, place: Path) -> None:
    content = noise(3 * CHUNK)
    await back_up(repository, "web-01", {"vda": content})
    packs = files(place, "packs")
    session = await repository.begin("web-02")
    record = await write_disk(session, "vda", content)
    tombstone = place / TOMBSTONES / packs[0].name
    tombstone.parent.mkdir()
    tombstone.write_bytes(b"")
    with pytest.raises(StorageError, match="run it again"):
        await session.commit(manifest_of(session, "web-02", [record]))
    await session.abort()
    again = await back_up(repository, "web-02", {"vda": content})
    assert await read_disk(repository, again, "vda") == content
    assert len(files(place, "packs")) > len(packs)


async def test_several_sessions_at_once_share_and_do_not_disturb(repository: Repository, place: Path) -> None:
    shared = noise(8 * CHUNK)
    contents = {f"vm-{n}": {"a": shared + noise(2 * CHUNK, n), "b": shared + text(CHUNK, n)} for n in range(4)}
    async with await Repository.open(place) as other:
        manifests = await asyncio.gather(
            *(back_up((repository, other)[n % 2], vm, disks) for n, (vm, disks) in enumerate(contents.items()))
        )
    for manifest in manifests:
        for disk_id, content in contents[manifest.vm].items():
            assert await read_disk(repository, manifest, disk_id) == content
    result = await repository.verify(data=True)
    assert result.ok
    assert result.leftovers == ()
    second = await asyncio.gather(*(back_up(repository, vm, disks) for vm, disks in contents.items()))
    assert sum(disk.statistics.bytes_new for manifest in second for disk in manifest.disks) == 0


@pytest.mark.parametrize("step", ["packs", "index", "backups"])
async def test_a_full_file_system_at_any_step(
    repository: Repository, place: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await back_up(repository, "web-01", {"vda": noise(CHUNK, 1)})
    session = await repository.begin("web-01")
    original = LocalWriter.commit

    def full(writer: LocalWriter) -> None:
        if f"/{step}/" in writer._key:
            raise NoSpaceError("no space")
        original(writer)

    monkeypatch.setattr(LocalWriter, "commit", full)
    with pytest.raises(NoSpaceError):
        record = await write_disk(session, "vda", noise(CHUNK, 2))
        await session.commit(manifest_of(session, "web-01", [record]))
    await session.abort()
    monkeypatch.undo()
    assert await repository.backups() == [before]
    assert files(place, "sessions") == []
    again = await back_up(repository, "web-01", {"vda": noise(CHUNK, 2)})
    assert again.parent == before.id
    assert (await repository.verify(data=True)).ok


async def test_closing_the_repository_aborts_its_sessions(place: Path) -> None:
    async with await Repository.init(place, chunk_size=CHUNK) as repository:
        session = await repository.begin("web-01")
        await session.disk("vda", CHUNK).write(0, noise(CHUNK))
    assert repr(session) == "<Session 'web-01' 1, aborted>"
    assert files(place, "sessions") == []
    with pytest.raises(StateError, match="closed"):
        await repository.begin("web-01")


async def test_closing_the_repository_waits_for_a_commit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, leave = threading.Event(), threading.Event()
    original = Records.put_manifest

    def slow(records: Records, at: Numbered, manifest: Manifest) -> None:
        entered.set()
        leave.wait(30)
        original(records, at, manifest)

    monkeypatch.setattr(Records, "put_manifest", slow)
    repository = await Repository.init(place, chunk_size=CHUNK)
    committing = asyncio.create_task(back_up(repository, "web-01", {"vda": noise(CHUNK)}))
    while not entered.is_set():
        await asyncio.sleep(0.01)
    closing = asyncio.create_task(repository.aclose())
    await asyncio.wait({closing}, timeout=0.2)
    assert not closing.done()
    leave.set()
    await closing
    manifest = await committing
    async with await Repository.open(place) as again:
        assert await again.backups() == [manifest]
        assert (await again.verify(data=True)).leftovers == ()


async def test_what_is_used_after_closing_is_told(place: Path) -> None:
    async with await Repository.init(place, chunk_size=CHUNK) as repository:
        manifest = await back_up(repository, "web-01", {"vda": noise(CHUNK)})
        disk = repository.open_disk(manifest, "vda")
        session = await repository.begin("web-01")
        writer = session.disk("vda", CHUNK)
    with pytest.raises(StateError, match="closed"):
        await disk.read_into(0, memoryview(bytearray(CHUNK)))
    with pytest.raises(StateError, match="closed"):
        await writer.write(0, noise(CHUNK))
    await session.abort()


KILLED = """
import asyncio, sys
from sfasync.store.repository import Repository
from tests.store.support import CHUNK, noise, write_disk

async def main(place, stage):
    repository = await Repository.open(place)
    session = await repository.begin("web-01")
    if stage == "begun":
        await stop()
    record = await write_disk(session, "vda", noise(40 * CHUNK, 7))
    if stage == "written":
        await stop()
    session._intake.finish()
    await stop()

async def stop():
    print("ready", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize(("stage", "new"), [("begun", 40), ("written", 40), ("indexed", 0)])
def test_a_killed_writer_stops_nobody(tmp_path: Path, stage: str, new: int) -> None:
    place = tmp_path / "repository"

    async def prepare() -> None:
        async with await Repository.init(place, chunk_size=CHUNK) as repository:
            await back_up(repository, "web-01", {"vda": noise(CHUNK)})

    async def go_on() -> None:
        async with await Repository.open(place) as repository:
            with pytest.raises(BusyError):
                await repository.begin("web-01")
            assert (await repository.verify(data=True)).ok
            process.send_signal(signal.SIGKILL)
            process.wait()
            result = await repository.verify(data=True)
            assert result.ok
            assert any("sessions/" in name for name in result.leftovers)
            content = noise(40 * CHUNK, 7)
            manifest = await back_up(repository, "web-01", {"vda": content})
            assert manifest.seq == 3
            assert manifest.disks[0].statistics.bytes_new == new * CHUNK
            assert await read_disk(repository, manifest, "vda") == content
            result = await repository.verify(data=True)
            assert result.ok
            assert not any("sessions/" in name for name in result.leftovers)
            assert [backup.seq for backup in await repository.backups()] == [1, 3]

    asyncio.run(prepare())
    command = [sys.executable, "-c", KILLED, str(place), stage]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            asyncio.run(go_on())
        finally:
            process.kill()


async def test_what_others_left_in_the_directory_is_reported_not_touched(repository: Repository, place: Path) -> None:
    for name in (f"{SESSIONS}foreign", f"{BACKUPS}.DS_Store", f"{SESSIONS}.tmp-0011223344556677", "notes.txt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"?")
    manifest = await back_up(repository, "web-01", {"vda": noise(CHUNK)})
    assert await repository.backups() == [manifest]
    result = await repository.verify()
    assert result.ok
    assert set(result.leftovers) == {
        f"{SESSIONS}foreign",
        f"{BACKUPS}.DS_Store",
        f"{SESSIONS}.tmp-0011223344556677",
        "notes.txt",
    }


def test_a_lock_that_cannot_be_taken_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)

    def refuse(fd: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SfasyncError, match="No locks available"):
        claim(Records(store, REPOSITORY), "web-01")
    store.close()
