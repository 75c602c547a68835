"""An incremental backup keeps nothing that is lost."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sfasync import Engine, Progress, Repository, StorageError
from sfasync.errors import CbtError, SourceError
from sfasync.models import Frozen, Manifest
from sfasync.store.names import index_key, pack_key
from sfasync.store.quarantine import BadObject, put_quarantine
from sfasync.store.seal import BlobKind

from ..support.memory import MemoryDisk
from ..support.tracking import TrackedSnapshotDisk, TrackingPlatform
from .support import CHUNK, back_up, files, flip, manifest_of, noise, read_disk, write_disk

pytestmark = pytest.mark.one_loop  # what is lost is files; threads read them

SIZE = 130 * CHUNK + 512


@pytest.fixture
async def engine(repository: Repository) -> AsyncIterator[Engine]:
    async with Engine(repository) as engine:
        yield engine


@pytest.fixture
def platform() -> TrackingPlatform:
    """A disk with two pages of chunks, most of them zeros."""
    disk = bytearray(SIZE)
    for index in (0, 1, 2, 127, 128, 129, 130):
        disk[index * CHUNK : index * CHUNK + 64] = random.Random(index).randbytes(64)
    return TrackingPlatform({"vda": bytes(disk)})


async def back_up_vm(engine: Engine, platform: TrackingPlatform, repository: Repository, **options: str) -> Manifest:
    result = await engine.backup_vm("web-01", platform=platform, audit="off", **options)  # type: ignore[arg-type] # of any kind
    return await repository.find(result.id)


def pack_of(repository: Repository, place: Path, manifest: Manifest, level: int, index: int) -> tuple[Path, int, int]:
    """Where the first copy of a chunk or page of `vda` is: file, offset and length."""
    source = repository.open_disk(manifest, "vda")
    digest = source._tree.digest(level, index)
    geometry = source._geometry
    length = geometry.children(level, index) * 32 if level else geometry.length(0, index)
    kind = BlobKind.PAGE if level else BlobKind.CHUNK
    location = repository._locator.locations(kind, digest, length)[0]
    return place / pack_key(location.pack), location.offset, location.length


def damage(repository: Repository, place: Path, manifest: Manifest, level: int, index: int) -> None:
    path, offset, length = pack_of(repository, place, manifest, level, index)
    flip(path, offset + length // 2)


async def check_all_well(engine: Engine, repository: Repository, platform: TrackingPlatform, *made: Manifest) -> None:
    for data in (True, False):
        result = await engine.verify(data=data)
        assert (result.problems, result.leftovers) == ((), ())
    content = bytes(platform.vm_disks["vda"].content)
    for manifest in made:
        assert await read_disk(repository, manifest, "vda") == content
        target = MemoryDisk(b"\xff" * SIZE)
        await engine.restore_vm(manifest.id, to_disks={"vda": target})
        assert bytes(target.content) == content


async def test_exactly_the_damaged_chunks_are_read_again(
    engine: Engine, repository: Repository, place: Path, platform: TrackingPlatform
) -> None:
    first = await back_up_vm(engine, platform, repository)
    for index in (0, 128, 129, 130):
        damage(repository, place, first, 0, index)
    assert len((await engine.verify(data=True)).problems) == 4
    second = await back_up_vm(engine, platform, repository)
    (disk,) = second.disks
    assert (disk.mode, disk.reasons) == ("incremental", ())
    assert disk.statistics.bytes_new == 3 * CHUNK + 512
    await check_all_well(engine, repository, platform, first, second)
    third = await back_up_vm(engine, platform, repository)
    assert third.disks[0].statistics.bytes_read == 0


async def test_without_damage_nothing_is_looked_for(
    engine: Engine, repository: Repository, platform: TrackingPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await back_up_vm(engine, platform, repository)
    walks: list[object] = []
    monkeypatch.setattr("sfasync.store.session.lost_ranges", lambda *arguments: walks.extend(arguments))
    second = await back_up_vm(engine, platform, repository)
    assert second.disks[0].statistics.bytes_skipped == 6 * CHUNK + 512
    assert walks == []


@pytest.mark.parametrize("level", [1, 2])
async def test_a_lost_page_makes_the_disk_full(
    engine: Engine, repository: Repository, place: Path, platform: TrackingPlatform, level: int
) -> None:
    first = await back_up_vm(engine, platform, repository)
    damage(repository, place, first, level, 0)
    assert len((await engine.verify(data=True)).problems) == 1
    with pytest.raises(CbtError, match="parent-damaged"):
        await back_up_vm(engine, platform, repository, mode="incremental")
    second = await back_up_vm(engine, platform, repository)
    assert (second.disks[0].mode, second.disks[0].reasons) == ("full", ("parent-damaged",))
    assert second.disks[0].statistics.bytes_new == 0
    await check_all_well(engine, repository, platform, first, second)
    assert (await back_up_vm(engine, platform, repository)).disks[0].mode == "incremental"


def rot(monkeypatch: pytest.MonkeyPatch, path: Path, offset: int, length: int) -> None:
    """Flip a bit."""
    flip(path, offset + length // 2)


def wear_out(monkeypatch: pytest.MonkeyPatch, path: Path, offset: int, length: int) -> None:
    """Let the device fail where a blob is."""
    pack, preadv = path.stat().st_ino, os.preadv

    def failing(fd: int, buffers: list[memoryview], start: int) -> int:
        if os.fstat(fd).st_ino == pack and start == offset:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(fd, buffers, start)

    monkeypatch.setattr(os, "preadv", failing)


@pytest.mark.parametrize("harm", [rot, wear_out])
async def test_a_page_that_turns_out_damaged_makes_the_disk_full(
    engine: Engine,
    repository: Repository,
    place: Path,
    platform: TrackingPlatform,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[pytest.MonkeyPatch, Path, int, int], None],
) -> None:
    """Nobody has verified. The page is needed because one chunk below it has changed; another one serves on."""
    first = await back_up_vm(engine, platform, repository)
    harm(monkeypatch, *pack_of(repository, place, first, 1, 1))
    platform.vm_disks["vda"].write(129 * CHUNK, b"new")
    seen: list[Progress] = []
    result = await engine.backup_vm("web-01", platform=platform, progress=seen.append)
    second = await repository.find(result.id)
    (disk,) = second.disks
    assert (disk.mode, disk.reasons) == ("full", ("parent-damaged",))
    counted = disk.statistics
    assert (counted.bytes_skipped, counted.bytes_new + counted.bytes_duplicate + counted.bytes_zero) == (0, SIZE)
    assert (seen[-1].done, await repository.unfinished()) == (SIZE, [])
    assert await read_disk(repository, second, "vda") == bytes(platform.vm_disks["vda"].content)
    problems = (await engine.verify(data=True)).problems
    assert [problem.backups for problem in problems] == [(first.id,)], "what the page said of the old chunk is gone"
    assert (await back_up_vm(engine, platform, repository)).disks[0].mode == "incremental"


async def test_a_page_that_turns_out_damaged_ends_a_backup_that_must_not_be_full(
    engine: Engine, repository: Repository, place: Path, platform: TrackingPlatform
) -> None:
    first = await back_up_vm(engine, platform, repository)
    damage(repository, place, first, 1, 1)
    platform.vm_disks["vda"].write(129 * CHUNK, b"new")
    with pytest.raises(CbtError, match="parent-damaged"):
        await back_up_vm(engine, platform, repository, mode="incremental")


async def test_a_backup_that_began_a_disk_anew_is_gone_on_from(
    engine: Engine,
    repository: Repository,
    place: Path,
    platform: TrackingPlatform,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it had finished counts, before that and after it, and none of it twice."""
    first = await back_up_vm(engine, platform, repository)
    damage(repository, place, first, 1, 1)
    for changed in (0, 129):
        platform.vm_disks["vda"].write(changed * CHUNK, b"new")
    freeze = platform._freeze

    def freeze_badly(*arguments: Any) -> TrackedSnapshotDisk:
        disk = freeze(*arguments)
        disk.address.bad.add(130 * CHUNK)  # it is read only if all is read
        return disk

    monkeypatch.setattr(platform, "_freeze", freeze_badly)
    with pytest.raises(SourceError, match="cannot read"):
        await back_up_vm(engine, platform, repository)
    noted = sum(unfinished.bytes_journaled for unfinished in await repository.unfinished())
    assert noted % CHUNK == 0
    for (disk,) in platform.kept.values():
        disk.address.bad.clear()
    result = await engine.backup_vm("web-01", platform=platform)
    assert result.bytes_resumed == noted
    second = await repository.find(result.id)
    assert second.disks[0].reasons[0] == "parent-damaged"
    assert await read_disk(repository, second, "vda") == bytes(platform.vm_disks["vda"].content)


async def test_a_missing_pack_counts_before_anybody_verifies(
    engine: Engine, repository: Repository, place: Path, platform: TrackingPlatform
) -> None:
    first = await back_up_vm(engine, platform, repository)
    pack_of(repository, place, first, 0, 1)[0].unlink()
    second = await back_up_vm(engine, platform, repository)
    assert second.disks[0].mode == "incremental"
    assert second.disks[0].statistics.bytes_new > 0
    assert await read_disk(repository, second, "vda") == bytes(platform.vm_disks["vda"].content)
    assert [problem.problem for problem in (await engine.verify()).problems] == ["it is missing"]
    await check_all_well(engine, repository, platform, first, second)


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: flip(path, 100)])
async def test_a_lost_index_makes_the_disk_full(
    engine: Engine,
    repository: Repository,
    place: Path,
    platform: TrackingPlatform,
    harm: Callable[[Path], None],
) -> None:
    first = await back_up_vm(engine, platform, repository)
    for index in files(place / index_key(bytes(16)).rpartition("/")[0]):
        harm(index)
    assert first.id in {backup for problem in (await engine.verify()).problems for backup in problem.backups}
    second = await back_up_vm(engine, platform, repository)
    assert second.disks[0].reasons == ("parent-damaged",)
    assert second.disks[0].statistics.bytes_new == 6 * CHUNK + 512
    assert (await engine.verify(data=True)).ok
    for manifest in (first, second):
        assert await read_disk(repository, manifest, "vda") == bytes(platform.vm_disks["vda"].content)


@pytest.mark.parametrize("forgotten", [False, True])
async def test_what_a_backup_found_in_the_repository_may_lose_its_index(
    engine: Engine, repository: Repository, place: Path, platform: TrackingPlatform, forgotten: bool
) -> None:
    """The packs are those of a backup that was given up, or forgotten since."""
    content = bytes(platform.vm_disks["vda"].content)
    if forgotten:
        await back_up(repository, "web-02", {"vda": content})
        await repository.forget("web-02@latest")
    else:
        session = await repository.begin("web-02")
        writer = session.disk("vda", SIZE, frozen=Frozen(snapshot="s1"))
        for offset in range(0, SIZE, CHUNK):
            await writer.write(offset, content[offset : offset + CHUNK])
        await session.abort()
    theirs = set(files(place / index_key(bytes(16)).rpartition("/")[0]))
    first = await back_up_vm(engine, platform, repository)
    assert first.disks[0].statistics.bytes_new == 0
    for index in theirs:
        index.unlink()
    second = await back_up_vm(engine, platform, repository)
    assert second.disks[0].statistics.bytes_new == 6 * CHUNK + 512
    assert await read_disk(repository, second, "vda") == bytes(platform.vm_disks["vda"].content)
    assert (await engine.verify(data=True)).ok


async def test_what_is_in_no_index_and_no_pack_heals_once_it_was_found(
    engine: Engine, repository: Repository, place: Path, platform: TrackingPlatform
) -> None:
    content = bytes(platform.vm_disks["vda"].content)
    await back_up(repository, "web-02", {"vda": content})
    theirs = [*files(place / "domains/default/index"), *files(place / "domains/default/packs")]
    first = await back_up_vm(engine, platform, repository)
    for path in theirs:
        path.unlink()
    for _ in range(2):
        (problem,) = (await engine.verify()).problems
        assert first.id in problem.backups
    second = await back_up_vm(engine, platform, repository)
    assert second.disks[0].statistics.bytes_new == 6 * CHUNK + 512
    assert await read_disk(repository, second, "vda") == content
    assert (await engine.verify(data=True)).ok
    assert files(place / "domains/default/quarantine") == [], "nothing is missing any more"


async def test_packs_of_killed_writers_cost_nothing_once_all_is_stored_again(
    engine: Engine, repository: Repository, place: Path, platform: TrackingPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await back_up(repository, "web-02", {"vda": bytes(platform.vm_disks["vda"].content)})
    for index in files(place / index_key(bytes(16)).rpartition("/")[0]):
        index.unlink()
    await back_up_vm(engine, platform, repository)
    monkeypatch.setattr("sfasync.store.session.lost_ranges", None)
    second = await back_up_vm(engine, platform, repository)
    assert second.disks[0].mode == "incremental"


async def test_damage_elsewhere_costs_pages_only(
    engine: Engine, repository: Repository, place: Path, platform: TrackingPlatform
) -> None:
    await back_up_vm(engine, platform, repository)
    other = await back_up(repository, "web-02", {"vda": noise(CHUNK, 5)})
    damage(repository, place, other, 0, 0)
    assert not (await engine.verify(data=True)).ok
    second = await back_up_vm(engine, platform, repository)
    assert (second.disks[0].mode, second.disks[0].statistics.bytes_read) == ("incremental", 0)


# --- what is found bad while a backup runs ---------------------------------------------------------------------------


async def test_a_backup_does_not_rely_on_what_was_found_damaged_meanwhile(repository: Repository, place: Path) -> None:
    content = noise(3 * CHUNK)
    first = await back_up(repository, "web-01", {"vda": content})
    session = await repository.begin("web-02")
    record = await write_disk(session, "vda", content)
    damage(repository, place, first, 0, 1)
    async with await Repository.open(place) as other:
        assert not (await other.verify(data=True)).ok
    with pytest.raises(StorageError, match="was found damaged meanwhile; run it again"):
        await session.commit(manifest_of(session, "web-02", [record]))
    await session.abort()
    again = await back_up(repository, "web-02", {"vda": content})
    assert again.disks[0].statistics.bytes_new == CHUNK
    assert (await repository.verify(data=True)).ok
    assert await read_disk(repository, first, "vda") == content


async def test_damage_of_what_it_does_not_rely_on_does_not_matter(repository: Repository, place: Path) -> None:
    await back_up(repository, "web-01", {"vda": noise(3 * CHUNK)})
    session = await repository.begin("web-02")
    record = await write_disk(session, "vda", noise(CHUNK, 9))
    for path in files(place / "domains/default/packs"):
        bad = BadObject(key=str(path.relative_to(place)), blobs=None, reason="a test")
        put_quarantine(repository._store, bytes.fromhex(repository.id), [bad])
    assert (await session.commit(manifest_of(session, "web-02", [record]))).seq == 1
