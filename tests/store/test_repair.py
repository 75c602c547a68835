"""Repair gives back what can be had, removes nothing that it cannot read, and says what it does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sfasync.errors import StorageError
from sfasync.models import Manifest, RepairResult
from sfasync.store.local import LocalHold, LocalStore
from sfasync.store.names import SESSIONS, backup_key, session_key, vm_name
from sfasync.store.packs import PackClass, PackReader, PackWriter
from sfasync.store.repository import Repository
from sfasync.store.seal import BlobKind, Sealed

from .support import CHUNK, back_up, files, flip, noise, read_disk
from .test_format import Reader
from .test_heal import CONTENT, flip_pack, packs


@pytest.fixture
async def first(repository: Repository) -> Manifest:
    return await back_up(repository, "web-01", {"vda": CONTENT})


def steps(result: RepairResult) -> list[str]:
    return sorted({action.action for action in result.actions})


def tree(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in files(place)}


def part(place: Path, name: str) -> list[Path]:
    return files(place / "domains/default" / name)


async def repaired(repository: Repository, place: Path) -> RepairResult:
    """Repair; what the dry run said before is what is done, and a dry run changes nothing."""
    before = tree(place)
    planned = await repository.repair(dry_run=True)
    assert tree(place) == before
    result = await repository.repair()
    assert result.actions == planned.actions
    after = tree(place)
    assert {name for name in before if name not in after} <= {action.object for action in result.actions} | {
        name for name in before if "/checks/" in name or "/quarantine/" in name
    }
    assert all(after[name] == before[name] for name in before if name in after)
    assert steps(await repository.repair()) == [], "once is enough"
    return result


async def test_a_whole_repository_needs_nothing(repository: Repository, place: Path, first: Manifest) -> None:
    result = await repaired(repository, place)
    assert (result.actions, result.problems) == ((), ())


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: flip(path, 100), lambda path: os.truncate(path, 0)])
@pytest.mark.parametrize("verified", [False, True])
async def test_an_index_is_made_anew(
    repository: Repository, place: Path, first: Manifest, harm: Callable[[Path], None], verified: bool
) -> None:
    (index,) = part(place, "index")
    harm(index)
    if verified:
        assert not (await repository.verify()).ok
    result = await repaired(repository, place)
    assert steps(result) == (["index", "replace"] if index.exists() else ["index"])
    assert result.problems == ()
    async with await Repository.open(place) as fresh:
        assert (await fresh.verify(data=True)).problems == ()
        assert await read_disk(fresh, first, "vda") == CONTENT
        again = await back_up(fresh, "web-02", {"vda": CONTENT})
        assert again.disks[0].statistics.bytes_stored == 0
    reader = Reader(place)
    assert b"".join(reader.disk(reader.manifest("web-01", 1)["disks"][0])) == CONTENT


async def test_packs_of_a_killed_backup_serve_the_next_one(repository: Repository, place: Path) -> None:
    content = noise(3 * CHUNK)
    session = await repository.begin("web-01")
    for offset in range(0, len(content), CHUNK):
        await session.disk(f"disk-{offset}", CHUNK).write(0, content[offset : offset + CHUNK])
    session._intake.finish()
    for index in part(place, "index"):
        index.unlink()
    assert steps(await repository.repair(dry_run=True)) == [], "it lives"
    session._claim.hold.release()
    result = await repaired(repository, place)
    assert steps(result) == ["index", "remove"]
    verified = await repository.verify(data=True)
    assert (verified.problems, verified.leftovers) == ((), ())
    next_one = await back_up(repository, "web-02", {"vda": content})
    assert next_one.disks[0].statistics.bytes_new == 0
    await session.abort()


async def test_a_backup_that_begins_meanwhile_is_left_alone(
    repository: Repository, place: Path, first: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_store = LocalStore.list
    begun: list[LocalHold] = []
    session = session_key(vm_name(bytes.fromhex(repository.id), "web-02"), 1)

    def listed(store: LocalStore, prefix: str) -> list[str]:
        keys = of_store(store, prefix)
        if prefix == SESSIONS and not begun:
            begun.append(store.hold(session, b""))
            name = session.removeprefix(SESSIONS)
            pack = PackWriter(store, bytes(16), bytes.fromhex(repository.id), PackClass.DATA, name)
            pack.append(BlobKind.CHUNK, [Sealed(bytes(32), 1, b"x")])
            pack.close()
        return keys

    monkeypatch.setattr(LocalStore, "list", listed)
    result = await repository.repair(dry_run=True)
    assert begun and result.actions == ()
    begun[0].release()


async def test_a_pack_that_cannot_be_read_for_now_is_not_indexed(
    repository: Repository, place: Path, first: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in part(place, "index"):
        index.unlink()
    before = tree(place)

    def refused(pack: PackReader) -> None:
        raise StorageError("not now")

    monkeypatch.setattr(PackReader, "read_all", refused)
    with pytest.raises(StorageError, match="not now"):
        await repository.repair()
    assert tree(place) == before
    monkeypatch.undo()
    assert (await repaired(repository, place)).problems == ()


async def test_what_is_bad_goes_into_quarantine(repository: Repository, place: Path, first: Manifest) -> None:
    for index in part(place, "index"):
        index.unlink()
    bad, pages = packs(place)
    flip_pack(bad)
    result = await repaired(repository, place)
    assert steps(result) == ["index", "quarantine"]
    assert [(problem.object, problem.backups) for problem in result.problems] == [
        (str(bad.relative_to(place)), (first.id,))
    ]
    again = await back_up(repository, "web-01", {"vda": CONTENT})
    assert again.disks[0].statistics.bytes_new == CHUNK
    assert (await repository.verify(data=True)).ok
    assert await read_disk(repository, first, "vda") == CONTENT
    assert pages.exists()


async def test_a_pack_that_cannot_be_taken_apart_stays(repository: Repository, place: Path, first: Manifest) -> None:
    for index in part(place, "index"):
        index.unlink()
    bad = packs(place)[0]
    os.truncate(bad, 1000)
    result = await repaired(repository, place)
    assert steps(result) == ["index", "quarantine"]
    assert bad.exists()
    assert {backup for problem in result.problems for backup in problem.backups} == {first.id}
    await back_up(repository, "web-01", {"vda": CONTENT})
    assert (await repository.verify(data=True)).ok


async def test_what_is_good_again_is_let_out(repository: Repository, place: Path, first: Manifest) -> None:
    victim = packs(place)[0]
    victim.rename(place.parent / "away")
    assert not (await repository.verify()).ok
    assert steps(await repository.repair()) == []
    (place.parent / "away").rename(victim)
    result = await repaired(repository, place)
    assert steps(result) == ["release"]
    assert result.problems == ()
    assert part(place, "quarantine") == []


async def test_temporary_files_of_dead_writers_are_removed(
    repository: Repository, place: Path, first: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = place / "domains/default/packs/.tmp-0123456789abcdef"
    left.write_bytes(b"half")
    foreign = place / "domains/default/packs/notes.txt"
    foreign.write_bytes(b"not ours")

    def unsupported(directory: int) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("sfasync.store.local.open_nameless", unsupported)
    writer = repository._store.writer("domains/default/packs/ab/" + "ab" * 16)
    writer.write(b"on its way")
    result = await repository.repair()
    assert [action.object for action in result.actions] == [str(left.relative_to(place))]
    writer.abort()
    assert foreign.exists()
    assert not left.exists()


# --- annotations that are gone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: flip(path, 100)])
async def test_an_annotation_that_is_lost_is_given_up(
    repository: Repository, place: Path, first: Manifest, harm: Callable[[Path], None]
) -> None:
    for tag in "abc":
        await repository.annotate(first.id, add=[tag])
    _, victim, _ = part(place, "annotations")
    content, name = victim.read_bytes(), str(victim.relative_to(place))
    harm(victim)
    for _ in range(2):
        (problem,) = (await repository.verify(data=True)).problems
        assert (problem.object, problem.backups) == (name, (first.id,))
    result = await repaired(repository, place)
    assert [(action.action, action.object) for action in result.actions] == [("quarantine", name)]
    assert result.problems == ()
    for ids in ([], [first.id]):
        verified = await repository.verify(ids, data=True)
        assert (verified.problems, [known.object for known in verified.known]) == ((), [name])
    assert (await repository.find(first.id)).tags == ("a", "c")
    victim.write_bytes(content)
    verified = await repository.verify()
    assert (verified.problems, verified.known, part(place, "quarantine")) == ((), (), [])
    assert (await repository.find(first.id)).tags == ("a", "b", "c")


async def test_a_lost_backup_that_has_annotations_is_given_up(
    repository: Repository, place: Path, first: Manifest
) -> None:
    await repository.annotate(first.id, add=["x"])
    victim = manifest_path(repository, place, 1)
    victim.unlink()
    name = str(victim.relative_to(place))
    assert [problem.object for problem in (await repository.verify()).problems] == [name]
    result = await repaired(repository, place)
    assert [(action.action, action.object) for action in result.actions] == [("void", name)]
    assert result.problems == ()
    assert (await back_up(repository, "web-01", {"vda": CONTENT})).seq == 2


@pytest.mark.parametrize("was_forgotten", [False, True])
async def test_an_annotation_that_is_given_up_does_not_hide_that_its_backup_is_lost(
    repository: Repository, place: Path, first: Manifest, was_forgotten: bool
) -> None:
    """Whether it was forgotten nobody knows any more."""
    await repository.annotate(first.id, add=["x"])
    if was_forgotten:
        await repository.forget(first.id)
    flip(part(place, "annotations")[-1], 100)
    await repaired(repository, place)
    victim = manifest_path(repository, place, 1)
    if not was_forgotten:
        victim.unlink()
        name = str(victim.relative_to(place))
        assert [problem.object for problem in (await repository.verify()).problems] == [name]
        assert [action.object for action in (await repaired(repository, place)).actions] == [name]
    assert (await repository.verify(data=True)).ok
    assert victim.exists()


# --- manifests that are gone -----------------------------------------------------------------------------------------


def manifest_path(repository: Repository, place: Path, seq: int) -> Path:
    return place / backup_key(vm_name(bytes.fromhex(repository.id), "web-01"), seq)


async def test_a_manifest_that_was_removed_is_missed(repository: Repository, place: Path, first: Manifest) -> None:
    await back_up(repository, "web-01", {"vda": CONTENT})
    victim = manifest_path(repository, place, 1)
    victim.unlink()
    name = str(victim.relative_to(place))
    assert [problem.object for problem in (await repository.verify()).problems] == [name]
    result = await repaired(repository, place)
    assert [(action.action, action.object) for action in result.actions] == [("void", name)]
    assert result.problems == ()
    assert (await repository.verify(data=True)).ok


@pytest.mark.parametrize("harm", ["remove", "directory"])
async def test_the_last_manifest_is_missed_where_a_verification_saw_it(
    repository: Repository, place: Path, first: Manifest, harm: str
) -> None:
    assert (await repository.verify()).ok
    victim = manifest_path(repository, place, 1)
    victim.unlink()
    if harm == "directory":
        victim.mkdir()
    for _ in range(2):
        (problem,) = (await repository.verify()).problems
        assert problem.object == str(victim.relative_to(place))
        assert ("not a regular file" in problem.problem) == (harm == "directory")
    assert steps(await repository.repair()) == (["void"] if harm == "remove" else [])


async def test_a_backup_that_was_forgotten_is_not_missed(repository: Repository, first: Manifest) -> None:
    await back_up(repository, "web-01", {"vda": CONTENT})
    assert (await repository.verify()).ok
    for manifest in await repository.backups():
        await repository.forget(manifest.id)
    assert (await repository.verify()).ok


async def test_backups_that_were_given_up_are_not_missed(repository: Repository, place: Path) -> None:
    for _ in range(3):
        await (await repository.begin("web-01")).abort()
    await back_up(repository, "web-01", {"vda": b"x"})
    assert (await repository.verify()).ok
