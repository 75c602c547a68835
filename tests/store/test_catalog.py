"""Backups listed, found, annotated and forgotten."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from sfasync.errors import BackupNotFoundError, IntegrityError, StorageError, UsageError
from sfasync.models import Manifest
from sfasync.store import local
from sfasync.store.annotations import gaps, is_lost
from sfasync.store.cache import cache_path
from sfasync.store.catalog import Catalog
from sfasync.store.names import ANNOTATIONS, Numbered, backup_key, vm_name
from sfasync.store.objectcache import ObjectCache
from sfasync.store.records import Records
from sfasync.store.repository import Repository

from .memory import MemoryStore
from .support import back_up, flip, manifest_of, noise, read_disk, write_disk
from .test_codec import MANIFEST


async def several(repository: Repository, vm: str, count: int) -> list[Manifest]:
    return [await back_up(repository, vm, {"vda": noise(100, n)}) for n in range(count)]


async def test_tags_and_a_note(repository: Repository) -> None:
    first, second = await several(repository, "a", 2)
    tagged = await repository.annotate(first.id[:8], add=["gold", "keep"], note="before the move")
    assert tagged == replace(first, tags=("gold", "keep"), note="before the move")
    assert await repository.annotate(first.id, remove=["keep", "none"]) == replace(tagged, tags=("gold",))
    changed = await repository.annotate("a@latest", note="x")
    changed = await repository.annotate("a@latest", note="", add=["x"])
    assert changed == replace(second, tags=("x",))
    gold = replace(tagged, tags=("gold",))
    assert await repository.backups() == await repository.backups("a") == [gold, changed]
    assert [await repository.find(reference) for reference in (first.id, "a@latest")] == [gold, changed]
    assert await repository.backups(tag="gold") == [gold]
    assert await repository.backups(tag="keep") == []
    assert (await repository.verify(data=True)).ok


async def named(repository: Repository, vm: str, name: str) -> Manifest:
    """An empty backup of a VM that has a name."""
    session = await repository.begin(vm)
    try:
        return await session.commit(replace(manifest_of(session, vm, []), vm_name=name))
    finally:
        await session.abort()


async def test_a_vm_goes_by_its_name_too(repository: Repository) -> None:
    """But first by its id, and by a name only where that tells which VM is meant."""
    first = await named(repository, "id-1", "web")
    last = await named(repository, "id-1", "web")
    other = await named(repository, "id-2", "id-1")
    assert await repository.find("web@latest") == await repository.find("id-1@latest") == last
    assert await repository.backups("web") == await repository.backups("id-1") == [first, last]
    assert await repository.backups("id-2") == [other]
    await named(repository, "id-3", "web")
    for ask in (repository.find("web@latest"), repository.backups("web")):
        with pytest.raises(BackupNotFoundError, match="2 VMs are called web; name one by its id: id-1, id-3"):
            await ask
    assert await repository.backups("nobody") == []


async def test_a_selection_by_time(repository: Repository) -> None:
    first, second = await several(repository, "a", 2)
    assert await repository.backups(since=first.time) == [first, second]
    assert await repository.backups(since=second.time + 0.001) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "nothing to change"),
        ({"add": [""]}, "tag '' must be"),
        ({"remove": ["a\nb"]}, "must be 1 to 255 bytes"),
        ({"add": ["x" * 256]}, "must be 1 to 255 bytes"),
        ({"note": "two\nlines"}, "one line"),
        ({"note": "é" * 2049}, "4096 bytes at most"),
        ({"add": ["a"], "remove": ["a"]}, "added and removed"),
        ({"add": ["x" * 250 + f"{n:05}" for n in range(300)]}, "65536 are the most"),
    ],
)
async def test_what_cannot_be_said(repository: Repository, changes: dict[str, object], message: str) -> None:
    (backup,) = await several(repository, "a", 1)
    with pytest.raises(UsageError, match=message):
        await repository.annotate(backup.id, **changes)  # type: ignore[arg-type] # of any kind
    assert await repository.find(backup.id) == backup


async def test_two_at_once_both_have_their_way(repository: Repository, place: Path) -> None:
    (backup,) = await several(repository, "a", 1)
    async with await Repository.open(place) as other:
        await asyncio.gather(
            *(
                each.annotate(backup.id, add=[f"{n}{name}"])
                for n in range(5)
                for name, each in zip("ab", (repository, other), strict=True)
            )
        )
        assert await repository.find(backup.id) == await other.find(backup.id)
    assert len((await repository.find(backup.id)).tags) == 10


async def test_a_damaged_annotation_hides_no_backup(repository: Repository, place: Path) -> None:
    (backup,) = await several(repository, "a", 1)
    await repository.annotate(backup.id, add=["x"])
    await repository.annotate(backup.id, add=["y"])
    victim = min(path for path in (place / ANNOTATIONS).rglob("*") if path.is_file())
    flip(victim, 60)
    assert [found.tags for found in await repository.backups()] == [("y",)]
    assert (await repository.find(backup.id)).tags == ("y",)
    result = await repository.verify()
    assert [(problem.object, problem.backups) for problem in result.problems] == [
        (str(victim.relative_to(place)), (backup.id,))
    ]
    assert (await repository.verify([backup.id])).problems == result.problems


async def test_lost_annotations_and_annotated_backups_are_found(repository: Repository, place: Path) -> None:
    first, second = await several(repository, "a", 2)
    for backup in (first, first, second):
        await repository.annotate(backup.id, add=["x"])
    name = vm_name(bytes.fromhex(repository.id), "a")
    lost = place / ANNOTATIONS / name / f"{first.seq:016x}.00000001"
    lost.unlink()
    Records(repository._store, bytes.fromhex(repository.id)).remove_manifest(Numbered(name, second.seq))
    problems = {problem.object: problem.backups for problem in (await repository.verify()).problems}
    assert problems == {
        str(lost.relative_to(place)): (first.id,),
        f"domains/default/backups/{name}/{second.seq:016x}": (),
    }


async def test_forgotten_backups_are_gone_and_their_numbers_stay_taken(repository: Repository) -> None:
    first, second, third = await several(repository, "a", 3)
    other = await back_up(repository, "b", {"vda": noise(100)})
    assert await repository.forget("a@latest", first.id[:9], third.id, reason="too old") == [third, first]
    assert await repository.backups() == [second, other]
    assert await repository.find("a@latest") == second
    for reference in (first.id, third.id[:8]):
        with pytest.raises(BackupNotFoundError):
            await repository.find(reference)
    fourth = await back_up(repository, "a", {"vda": noise(100, 9)})
    assert (fourth.seq, fourth.parent) == (4, second.id)
    result = await repository.verify(data=True)
    assert (result.problems, result.leftovers, result.backups) == ((), (), 3)


async def test_all_are_looked_up_before_one_is_forgotten(repository: Repository) -> None:
    (backup,) = await several(repository, "a", 1)
    with pytest.raises(BackupNotFoundError):
        await repository.forget(backup.id, "none@latest")
    with pytest.raises(UsageError, match="reason must be one line"):
        await repository.forget(backup.id, reason="\n")
    assert await repository.forget(backup.id, dry_run=True) == [backup]
    assert await repository.backups() == [backup]


async def test_one_that_could_not_be_removed_is_still_there(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    (backup,) = await several(repository, "a", 1)

    def refuse(key: str) -> None:
        raise StorageError(f"cannot remove {key}")

    monkeypatch.setattr(repository._store, "delete", refuse)
    with pytest.raises(StorageError):
        await repository.forget(backup.id)
    assert await repository.backups() == [backup]
    monkeypatch.undo()
    assert (await repository.verify()).ok
    await repository.forget(backup.id)
    assert await repository.backups() == []
    assert (await repository.verify()).ok


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects are old enough to be remembered."""
    monkeypatch.setattr(local, "_SETTLED", -(10**12))


class Reads:
    """Counts the objects that are read from a repository."""

    def __init__(self, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: list[str] = []
        get = repository._store.get

        def counted(key: str, *, limit: int) -> bytes:
            self.keys.append(key)
            return get(key, limit=limit)

        monkeypatch.setattr(repository._store, "get", counted)

    def take(self) -> int:
        count = len(self.keys)
        self.keys.clear()
        return count


@pytest.mark.usefixtures("settled")
async def test_what_was_read_once_is_not_read_again(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await several(repository, "a", 3)
    made[1] = await repository.annotate(made[1].id, add=["x"])
    (await repository.begin("a")).abort_now()  # leaves a void
    reads = Reads(repository, monkeypatch)
    assert await repository.backups() == made
    assert reads.take() == 2, "a void and an annotation; looking for the id had read the manifests"
    for vm in (None, "a"):
        assert await repository.backups(vm) == made
    assert reads.take() == 0
    assert await repository.find(made[1].id) == made[1]
    assert reads.take() == 2, "the manifest and its annotation, from the repository"
    assert await repository.find(made[1].id[:12]) == made[1]
    assert reads.take() == 2
    assert await repository.find("a@latest") == made[2]
    assert reads.take() == 2, "the void after it, too"
    made.append(await back_up(repository, "a", {"vda": b"x"}))
    reads.take()
    assert await repository.backups() == made
    assert reads.take() == 1


@pytest.mark.usefixtures("settled")
async def test_what_was_forgotten_or_changed_is_not_remembered(
    repository: Repository, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = await several(repository, "a", 3)
    assert await repository.backups() == [first, second, third]
    name = vm_name(bytes.fromhex(repository.id), "a")
    (place / backup_key(name, first.seq)).unlink()
    flip(place / backup_key(name, second.seq), 100)
    assert await repository.backups() == [third]
    assert "a backup is left out" in caplog.text
    for reference, error in ((first.id, IntegrityError), (second.id, IntegrityError), (second.id[:9], IntegrityError)):
        with pytest.raises(error, match="there is damage"):
            await repository.find(reference)
    flip(place / backup_key(name, second.seq), 100)
    assert await repository.find(second.id) == second
    assert await repository.backups() == [second, third]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", ["data = x'00'", "data = zeroblob(500)", "backup = 'x'", "key = 'x'", "stamp = 'x'"])
async def test_a_cache_that_lies_is_not_believed(repository: Repository, damage: str) -> None:
    made = await several(repository, "a", 2)
    assert await repository.backups() == made
    path = cache_path(bytes.fromhex(repository.id))
    assert path is not None
    with closing(sqlite3.connect(path.with_name("objects.sqlite"), isolation_level=None)) as cache:
        cache.execute(f"UPDATE OR REPLACE objects SET {damage}")  # noqa: S608  # fixed words
    assert await repository.backups() == made
    assert [await repository.find(backup.id) for backup in made] == made
    assert [await repository.find(backup.id[:8]) for backup in made] == made


class Killed(Exception):  # noqa: N818  # not an error of ours
    """The process ended here."""


@pytest.mark.parametrize("step", range(4))
def test_a_killed_forget_leaves_the_backup_or_the_record(step: int) -> None:
    repository = bytes.fromhex(MANIFEST.repository)
    store = MemoryStore()
    records = Records(store, repository)
    place = Numbered(vm_name(repository, MANIFEST.vm), MANIFEST.seq)
    records.put_manifest(place, MANIFEST)
    catalog = Catalog(records, ObjectCache(repository))
    operations = iter(range(100))

    def before(operation: str, key: str) -> None:
        if next(operations) == step:
            raise Killed

    store.before = before
    with nullcontext() if step == 3 else pytest.raises(Killed):  # a listing, the record, and the removal
        catalog.forget(MANIFEST, "")
    store.before = lambda operation, key: None
    assert (records.numbered() == []) == (step == 3)
    assert (records.annotated() == []) == (step < 2)
    assert not is_lost(records, place)
    catalog.forget(MANIFEST, "again")
    assert records.numbered() == []
    assert list(gaps(records.annotated())) == []


async def test_a_session_goes_on_when_its_parent_is_forgotten(repository: Repository) -> None:
    (parent,) = await several(repository, "a", 1)
    session = await repository.begin("a")
    assert session.parent == parent
    await repository.forget(parent.id)
    writer = session.disk("vda", 100, parent=parent.disks[0])
    await writer.keep(0, 100)
    root, tree = await writer.finish()
    kept = replace(await write_disk(session, "vdb", b"x"), id="vda", size=100, root=root, tree=tree)
    second = await write_disk(session, "vdc", b"y")
    backup = await session.commit(manifest_of(session, "a", [kept, second]))
    assert (backup.seq, backup.parent) == (2, parent.id)
    assert await read_disk(repository, backup, "vda") == noise(100, 0)
    assert (await repository.verify(data=True)).ok
