"""Verification finds every flipped bit, names what it touches, and takes left-overs for what they are."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from sfasync.errors import BackupNotFoundError, IntegrityError
from sfasync.models import Manifest, Problem, VerifyResult
from sfasync.store.names import INDEX, backup_key, pack_key, session_key, vm_name
from sfasync.store.packs import PackReader
from sfasync.store.repository import Repository
from sfasync.store.scrub import Scrubber
from sfasync.store.seal import BlobKind

from .support import CHUNK, back_up, files, flip, noise, read_disk, text


@dataclass(frozen=True)
class Case:
    """A small repository: `first` and `second` of web-01 share a chunk; `other` of web-02 shares nothing."""

    repository: Repository
    place: Path
    first: Manifest
    second: Manifest
    other: Manifest

    def all_ids(self) -> set[str]:
        return {self.first.id, self.second.id, self.other.id}

    async def verify(self, *ids: str, data: bool = True) -> VerifyResult:
        """What a verification finds that knows of none before."""
        for part in ("checks", "quarantine"):
            shutil.rmtree(self.place / "domains/default" / part, ignore_errors=True)
        return await self.repository.verify(ids, data=data)

    async def restorable(self) -> set[str]:
        """Ids of the backups that can be read, byte for byte."""
        good = set()
        for manifest in await self.repository.backups():
            with suppress(IntegrityError):
                for disk in manifest.disks:
                    await read_disk(self.repository, manifest, disk.id)
                good.add(manifest.id)
        return good


@pytest.fixture
async def case(repository: Repository, place: Path) -> Case:
    shared = text(CHUNK, 1)
    return Case(
        repository,
        place,
        await back_up(repository, "web-01", {"vda": shared + noise(400, 2), "vdb": bytes(CHUNK)}),
        await back_up(repository, "web-01", {"vda": shared + noise(400, 3)}),
        await back_up(repository, "web-02", {"vda": text(CHUNK, 4) + noise(400, 5)}),
    )


@pytest.mark.parametrize("data", [False, True])
async def test_a_whole_repository(case: Case, data: bool) -> None:
    seen: list[tuple[int, int]] = []
    result = await case.repository.verify(data=data, progress=lambda *told: seen.append(told))
    await asyncio.sleep(0)
    assert result.ok
    assert (result.backups, result.problems, result.leftovers, result.data) == (3, (), (), data)
    objects = [path for path in files(case.place) if path.parent.name != "checks"]
    assert result.objects == len(objects)
    assert result.blobs >= 8
    if data:
        assert result.bytes_read >= sum(path.stat().st_size for path in objects)
    assert seen[-1] == (len(objects), len(objects))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


async def test_some_backups(case: Case) -> None:
    for data in (False, True):
        result = await case.verify(case.first.id, data=data)
        assert result.ok
        assert result.backups == 1
    both = await case.verify(case.first.id, case.other.id)
    assert both.backups == 2
    with pytest.raises(BackupNotFoundError, match="there is no backup 0000"):
        await case.verify("0" * 32)


async def test_an_empty_repository(repository: Repository) -> None:
    for data in (False, True):
        result = await repository.verify(data=data)
        assert (result.ok, result.backups, result.objects) == (True, 0, 2 if data else 1)


def targets(place: Path, part: str) -> list[Path]:
    return [path for path in files(place) if part in str(path.relative_to(place))]


@pytest.mark.one_loop
@pytest.mark.parametrize("part", ["config", "index/", "backups/"])
async def test_every_flipped_byte_of_small_objects_is_found_and_named(case: Case, part: str) -> None:
    for path in targets(case.place, part):
        name = str(path.relative_to(case.place))
        size = path.stat().st_size
        for offset in range(0, size, 1 if size < 200 else 17):
            flip(path, offset, offset % 8)
            result = await case.verify(data=False)
            assert name in {problem.object for problem in result.problems}, (name, offset)
            flip(path, offset, offset % 8)
    assert (await case.verify()).ok


@pytest.mark.one_loop
async def test_every_flipped_byte_of_packs_is_found_and_named(case: Case) -> None:
    for path in targets(case.place, "packs/"):
        name = str(path.relative_to(case.place))
        size = path.stat().st_size
        for offset in range(0, size, max(1, size // 60)):
            flip(path, offset, offset % 8)
            result = await case.verify()
            assert {problem.object for problem in result.problems} == {name}, (name, offset)
            assert all(set(problem.backups) <= case.all_ids() for problem in result.problems)
            flip(path, offset, offset % 8)
    assert (await case.verify()).ok


@pytest.mark.one_loop
async def test_exactly_the_backups_that_cannot_be_restored_are_named(case: Case) -> None:
    for path in targets(case.place, "packs/"):
        content = path.read_bytes()
        for offset in random.Random(1).sample(range(len(content)), 8):
            flip(path, offset)
            result = await case.verify()
            named = {backup for problem in result.problems for backup in problem.backups}
            assert case.all_ids() - named == await case.restorable(), offset
            assert len(result.problems) == 1
            path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\x00")


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("damage", [truncate, empty, extend, Path.unlink])
async def test_packs_of_another_size_are_found(case: Case, damage: Callable[[Path], None], data: bool) -> None:
    for path in targets(case.place, "packs/"):
        content = path.read_bytes()
        damage(path)
        result = await case.verify(data=data)
        named = {backup for problem in result.problems for backup in problem.backups}
        assert {problem.object for problem in result.problems} == {str(path.relative_to(case.place))}
        assert case.all_ids() - named == await case.restorable()
        path.write_bytes(content)
    assert (await case.verify()).ok


@pytest.mark.parametrize("damage", [truncate, empty, extend, Path.unlink])
async def test_the_next_backup_stores_again_what_was_in_packs_of_another_size(
    case: Case, damage: Callable[[Path], None]
) -> None:
    content = await read_disk(case.repository, case.first, "vda")
    for path in targets(case.place, "packs"):
        damage(path)
    healed = await back_up(case.repository, "web-01", {"vda": content})
    assert await read_disk(case.repository, healed, "vda") == content


async def test_what_is_no_file_is_told_and_the_rest_checked(case: Case, tmp_path: Path) -> None:
    index = targets(case.place, "index")[0]
    session = case.place / session_key(vm_name(bytes.fromhex(case.repository.id), "web-01"), 9)
    session.parent.mkdir(exist_ok=True)
    for path in (index, session):
        path.unlink(missing_ok=True)
        path.symlink_to(tmp_path)
    told = {problem.object for problem in (await case.verify()).problems}
    assert {str(path.relative_to(case.place)) for path in (index, session)} <= told


async def test_swapped_packs_are_found(case: Case) -> None:
    first, second, *_ = targets(case.place, "packs/")
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    result = await case.verify()
    assert {problem.object for problem in result.problems} == {
        str(first.relative_to(case.place)),
        str(second.relative_to(case.place)),
    }


async def test_a_lost_index_is_missed_by_its_backups(case: Case) -> None:
    for path in targets(case.place, "index/"):
        path.unlink()
    for data in (False, True):
        result = await case.verify(data=data)
        (problem,) = result.problems
        assert problem == Problem(
            object=INDEX,
            problem="blobs that backups need are in no index object",
            backups=tuple(sorted(case.all_ids())),
        )
        assert len(result.leftovers) == len(targets(case.place, "packs/"))


async def test_a_cache_that_knows_better_is_not_believed(case: Case) -> None:
    """What was remembered while all was well does not make damage good."""
    await read_disk(case.repository, case.first, "vda")
    for path in targets(case.place, "index/"):
        path.unlink()
    assert not (await case.verify(data=False)).ok


async def test_a_damaged_manifest_is_named_and_the_rest_checked(case: Case) -> None:
    key = backup_key(vm_name(bytes.fromhex(case.repository.id), "web-01"), 1)
    flip(case.place / key, 60)
    result = await case.verify()
    assert result.backups == 2
    assert [problem.object for problem in result.problems] == [key]
    assert (await case.verify(case.second.id)).ok
    with pytest.raises(BackupNotFoundError):
        await case.verify(case.first.id)


async def test_damage_elsewhere_does_not_touch_the_backups_asked_for(case: Case) -> None:
    repository = case.repository
    pages = {}
    for manifest in (case.first, case.other):
        digest = repository.open_disk(manifest, "vda")._tree.digest(0, 0)
        (location,) = repository._locator.locations(BlobKind.CHUNK, digest, CHUNK)
        pages[manifest.id] = location
    damaged = pages[case.other.id]
    flip(case.place / pack_key(damaged.pack), damaged.offset + 1)
    assert (await case.verify(case.first.id)).ok
    result = await case.verify(case.other.id)
    assert [problem.backups for problem in result.problems] == [(case.other.id,)]


async def test_a_tree_digest_that_is_not_the_roots(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfasync.store.walk.disk_digest", lambda size, root: bytes(32))
    result = await case.verify(case.first.id, data=False)
    assert [(problem.problem, problem.backups) for problem in result.problems] == [
        ("the tree digest of disk 'vda' is not that of its root and size", (case.first.id,))
    ]


async def test_left_overs_are_no_damage(case: Case) -> None:
    session = await case.repository.begin("web-03")
    await session.disk("vda", CHUNK).write(0, noise(CHUNK))
    running = await case.verify()
    assert running.ok
    assert running.leftovers == ()
    session._intake.finish()
    await session.abort()
    for path in targets(case.place, "index/")[-1:]:
        path.rename(case.place / "domains/default/index/not-ours")
    (case.place / ".tmp-0123456789abcdef").write_bytes(b"half")
    (case.place / "domains/other/packs").mkdir(parents=True)
    (case.place / "domains/other/packs/x").write_bytes(b"")
    result = await case.verify()
    assert {".tmp-0123456789abcdef", "domains/other/packs/x", "domains/default/index/not-ours"} <= set(result.leftovers)


async def test_packs_of_dead_writers_are_left_overs_and_checked(case: Case, place: Path) -> None:
    session = await case.repository.begin("web-03")
    await session.disk("vda", 2 * CHUNK).write(0, noise(CHUNK))
    before = set(targets(place, "packs/"))
    indexes = set(targets(place, "index/"))
    session._intake.finish()
    (pack,) = set(targets(place, "packs/")) - before
    (index,) = set(targets(place, "index/")) - indexes
    index.unlink()
    session._claim.hold.release()
    result = await case.verify()
    assert result.ok
    assert str(pack.relative_to(place)) in result.leftovers
    assert any("sessions/" in name for name in result.leftovers)
    for offset in random.Random(1).sample(range(pack.stat().st_size), 10):
        flip(pack, offset)
        damaged = await case.verify()
        assert [(problem.object, problem.backups) for problem in damaged.problems] == [
            (str(pack.relative_to(place)), ())
        ]
        flip(pack, offset)
    (session_file,) = targets(place, "sessions/")
    for offset in range(0, session_file.stat().st_size, 11):
        flip(session_file, offset)
        assert not (await case.verify(data=False)).ok
        flip(session_file, offset)
    await session.abort()


async def test_shared_trees_are_walked_once_but_blamed_for_all(repository: Repository, place: Path) -> None:
    content = noise(200 * CHUNK)
    made = [await back_up(repository, f"vm-{n}", {"vda": content}) for n in range(3)]
    packs = targets(place, "packs/")
    page_pack = min(packs, key=lambda path: path.stat().st_size)
    good = page_pack.read_bytes()
    flip(page_pack, 200)
    for data in (False, True):
        result = await repository.verify(data=data)
        (problem,) = result.problems
        assert set(problem.backups) == {manifest.id for manifest in made}
    page_pack.write_bytes(good)
    assert (await repository.verify(data=True)).ok


async def test_cancelling_ends_it_soon(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    original = Scrubber.check_bytes

    def look(scrubber: Scrubber, pack: object) -> None:
        looked.append(pack)
        loop.call_soon_threadsafe(task.cancel)
        original(scrubber, pack)  # type: ignore[arg-type]  # passed on as it is

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(Scrubber, "check_bytes", look)
    task = asyncio.create_task(case.verify())
    await asyncio.wait({task})
    assert task.cancelled()
    assert (await case.repository.backups())[0].vm == "web-01"
    assert looked


async def test_reading_a_pack_stays_bounded(case: Case) -> None:
    store = case.repository._store
    for path in targets(case.place, "packs/"):
        reader = PackReader(store, bytes.fromhex(path.name), bytes.fromhex(case.repository.id))
        views = [sealed for _, sealed in reader.read_all()]
        assert len({id(view.obj) for view in views}) <= 1


@pytest.fixture
async def copied(case: Case, tmp_path: Path) -> AsyncIterator[Repository]:
    """The same repository in another place: nothing in it depends on where it is."""
    shutil.copytree(case.place, tmp_path / "copy")
    async with await Repository.open(tmp_path / "copy") as repository:
        yield repository


async def test_a_copy_is_as_good(case: Case, copied: Repository) -> None:
    assert (await copied.verify(data=True)).ok
    manifest = await copied.find(case.first.id)
    assert await read_disk(copied, manifest, "vda") == await read_disk(case.repository, case.first, "vda")
