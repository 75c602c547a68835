"""Damage heals: it is told, put in quarantine, and stored again by the next backup that reads these bytes."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sfasync.errors import IntegrityError, StorageError, UsageError
from sfasync.models import Manifest
from sfasync.store.checks import Scope, decode_check
from sfasync.store.names import CHECKS, INDEX, pack_key
from sfasync.store.objects import ObjectKind, decode
from sfasync.store.packs import PackReader
from sfasync.store.quarantine import BadObject, put_quarantine
from sfasync.store.repository import Repository
from sfasync.store.seal import BlobKind

from .support import CHUNK, back_up, files, flip, noise, read_disk, text
from .test_format import Reader

pytestmark = pytest.mark.one_loop  # what is damaged and mended is files; threads read them

CONTENT = text(CHUNK, 1) + noise(2 * CHUNK, 2) + bytes(CHUNK) + noise(400, 3)


@pytest.fixture
async def first(repository: Repository) -> Manifest:
    """A backup of `CONTENT`, in one pack of data and one of pages."""
    return await back_up(repository, "web-01", {"vda": CONTENT})


def packs(place: Path) -> list[Path]:
    """The packs, the largest first."""
    return sorted(files(place / "domains/default/packs"), key=lambda path: -path.stat().st_size)


def quarantine(place: Path) -> list[Path]:
    return files(place / "domains/default/quarantine")


def checks(place: Path) -> list[Path]:
    return files(place / "domains/default/checks")


def damage_chunk(repository: Repository, place: Path, manifest: Manifest, index: int) -> Path:
    """Flip a bit of every copy of a chunk of `vda`."""
    source = repository.open_disk(manifest, "vda")
    digest = source._tree.digest(0, index)
    length = source._geometry.length(0, index)
    for location in repository._locator.locations(BlobKind.CHUNK, digest, length):
        path = place / pack_key(location.pack)
        flip(path, location.offset + location.length // 2)
    return path


def flip_pack(path: Path) -> None:
    """Flip a bit of the first blob of a pack."""
    content = path.read_bytes()
    (trailer,) = struct.unpack_from("<Q", content, len(content) - 52)
    offset, length = struct.unpack_from("<II", content, trailer + 40)
    flip(path, offset + length // 2)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("harm", [flip_pack, halve, Path.unlink])
@pytest.mark.parametrize("which", [0, 1])
async def test_every_kind_of_damage_heals(
    repository: Repository, place: Path, first: Manifest, harm: Callable[[Path], None], which: int, data: bool
) -> None:
    victim = packs(place)[which]
    name = str(victim.relative_to(place))
    harm(victim)
    found = await repository.verify(data=True)
    assert {problem.object for problem in found.problems} == {name}
    assert {backup for problem in found.problems for backup in problem.backups} == {first.id}
    again = await repository.verify(data=data)
    assert {problem.object for problem in again.problems} == {name}, "told as long as a backup needs it"
    second = await back_up(repository, "web-01", {"vda": CONTENT})
    assert second.disks[0].statistics.bytes_stored > 0
    healed = await repository.verify(data=data)
    assert (healed.problems, healed.leftovers) == ((), ())
    assert [known.object for known in healed.known] == [name]
    assert healed.quarantined > 0
    for manifest in (first, second):
        assert await read_disk(repository, manifest, "vda") == CONTENT
        assert (await repository.verify([manifest.id], data=True)).ok
    reader = Reader(place)
    for seq in (1, 2):
        assert b"".join(reader.disk(reader.manifest("web-01", seq)["disks"][0])) == CONTENT, "another reader as well"
    third = await back_up(repository, "web-01", {"vda": CONTENT})
    assert third.disks[0].statistics.bytes_stored == 0, "once is enough"


async def test_only_what_is_bad_is_stored_again(repository: Repository, place: Path, first: Manifest) -> None:
    damage_chunk(repository, place, first, 1)
    assert len((await repository.verify(data=True)).problems) == 1
    second = await back_up(repository, "web-02", {"vda": CONTENT})
    assert second.disks[0].statistics.bytes_new == CHUNK
    healed = await repository.verify(data=True)
    assert (healed.problems, healed.quarantined) == ((), 1)


async def test_what_no_verification_has_found_is_relied_on(
    repository: Repository, place: Path, first: Manifest
) -> None:
    """The counter-check: it is the quarantine that heals."""
    damage_chunk(repository, place, first, 1)
    second = await back_up(repository, "web-02", {"vda": CONTENT})
    assert second.disks[0].statistics.bytes_new == 0


async def test_a_bad_page_is_noticed_by_those_who_read_pages_only(
    repository: Repository, place: Path, first: Manifest
) -> None:
    flip_pack(packs(place)[1])
    assert [problem.backups for problem in (await repository.verify()).problems] == [(first.id,)]
    second = await back_up(repository, "web-01", {"vda": CONTENT})
    assert second.disks[0].statistics.bytes_new == 0
    assert second.disks[0].statistics.bytes_stored > 0
    assert (await repository.verify(data=True)).ok
    assert await read_disk(repository, first, "vda") == CONTENT


async def test_damage_that_no_backup_needs_is_told_once(repository: Repository, place: Path, first: Manifest) -> None:
    await repository.forget(first.id)
    flip_pack(packs(place)[0])
    assert not (await repository.verify(data=True)).ok
    for data in (False, True):
        result = await repository.verify(data=data)
        assert result.ok
        assert [known.object for known in result.known] == [str(packs(place)[0].relative_to(place))]
        assert result.quarantined == 1


async def test_a_pack_that_comes_back_is_let_out(repository: Repository, place: Path, first: Manifest) -> None:
    victim = packs(place)[0]
    victim.rename(place.parent / "away")
    assert not (await repository.verify()).ok
    assert quarantine(place)
    (place.parent / "away").rename(victim)
    assert await read_disk(repository, first, "vda") == CONTENT, "the digest decides, where there is nothing else"
    assert (await repository.verify(data=True)).ok
    assert not quarantine(place)
    assert (await repository.verify()).ok
    assert (await back_up(repository, "web-02", {"vda": CONTENT})).disks[0].statistics.bytes_stored == 0


async def put_right(repository: Repository, place: Path, path: Path, content: bytes) -> None:
    """Undo damage; a verification finds that."""
    path.write_bytes(content)
    result = await repository.verify(data=True)
    assert (result.problems, result.known) == ((), ())
    assert not quarantine(place), "nothing good stays in quarantine"


@pytest.fixture
async def one_of_each(repository: Repository, place: Path, first: Manifest) -> dict[str, Path]:
    """An object of every kind that can be in quarantine, by kind; of each but the checks there are others as well."""
    await back_up(repository, "web-02", {"vda": noise(CHUNK, 4)})
    (index, *_) = files(place / "domains/default/index")
    session = await repository.begin("web-03")
    await session.disk("vda", CHUNK).write(0, noise(CHUNK, 5))
    before = set(packs(place)), set(files(place / "domains/default/index"))
    session._intake.finish()
    (stray,) = set(packs(place)) - before[0]
    for path in set(files(place / "domains/default/index")) - before[1]:
        path.unlink()  # its writer died before it was written
    session._claim.hold.release()
    await session.abort()
    await repository.verify(data=True)
    (check,) = checks(place)
    return {"pack": packs(place)[0], "stray": stray, "index": index, "check": check}


@pytest.mark.parametrize("kind", ["pack", "stray", "index", "check"])
async def test_what_was_put_right_is_new_when_it_goes_bad_again(
    repository: Repository, place: Path, one_of_each: dict[str, Path], kind: str
) -> None:
    path = one_of_each[kind]
    content, name = path.read_bytes(), str(path.relative_to(place))
    flip(path, len(content) // 2)
    assert name in {problem.object for problem in (await repository.verify(data=True)).problems}
    await put_right(repository, place, path, content)
    path = path if path.exists() else checks(place)[0]  # a check goes with the next one
    flip(path, path.stat().st_size // 3)
    found = await repository.verify(data=True)
    assert str(path.relative_to(place)) in {problem.object for problem in found.problems}
    assert found.known == ()


@pytest.mark.parametrize("kind", ["pack", "stray", "index", "check"])
@pytest.mark.parametrize("needed", [False, True])
async def test_every_damaged_object_is_named_each_time(
    repository: Repository, place: Path, first: Manifest, one_of_each: dict[str, Path], kind: str, needed: bool
) -> None:
    if not needed:
        await repository.forget(*[backup.id for backup in await repository.backups()])
    path = one_of_each[kind]
    content, name = path.read_bytes(), str(path.relative_to(place))
    for offset in (len(content) // 2, 3, len(content) // 2):
        path.write_bytes(content)  # and nobody looks
        flip(path, offset)
        result = await repository.verify(data=True)
        told = {problem.object for problem in result.problems} - {INDEX}
        assert told | {known.object for known in result.known} == {name}
        assert len(told) + len(result.known) == 1
    assert result.ok == (not needed or kind in ("stray", "check")), "the third time it is known"
    await put_right(repository, place, path, content)


async def test_a_record_of_damage_that_is_good_again_is_let_out(
    repository: Repository, place: Path, first: Manifest
) -> None:
    pack = packs(place)[0]
    content = pack.read_bytes()
    flip_pack(pack)
    await repository.verify(data=True)
    pack.write_bytes(content)
    (record,) = quarantine(place)
    written, name = record.read_bytes(), str(record.relative_to(place))
    for offset in (100, 50):
        record.write_bytes(written)
        flip(record, offset)
        result = await repository.verify(data=True)
        assert [one.object for one in (*result.problems, *result.known)] == [name]
    assert result.ok
    await put_right(repository, place, record, written)


async def test_what_nobody_could_let_out_is_named_when_it_goes_bad_again(
    repository: Repository, place: Path, first: Manifest
) -> None:
    """As long as the configuration is damaged, nothing is recorded: what is good again is in quarantine still."""
    await repository.forget(first.id)
    (index,) = files(place / "domains/default/index")
    content, configuration = index.read_bytes(), (place / "config").read_bytes()
    flip(index, 200)
    await repository.verify(data=True)
    index.write_bytes(content)
    flip(place / "config", 50)
    assert [problem.object for problem in (await repository.verify(data=True)).problems] == ["config"]
    (place / "config").write_bytes(configuration)
    flip(index, 300)
    assert [known.object for known in (await repository.verify(data=True)).known] == [str(index.relative_to(place))]


async def test_an_index_object_that_may_know_of_a_good_copy_is_a_problem_each_time(
    repository: Repository, place: Path, first: Manifest
) -> None:
    damage_chunk(repository, place, first, 1)
    await repository.verify(data=True)
    before = set(files(place / "domains/default/index"))
    await back_up(repository, "web-02", {"vda": CONTENT})
    (index,) = set(files(place / "domains/default/index")) - before
    flip(index, 200)
    for data in (True, True, False):
        result = await repository.verify(data=data)
        assert str(index.relative_to(place)) in {problem.object for problem in result.problems}
        assert result.known == ()


async def test_an_index_object_that_is_replaced_does_not_rot_unseen(
    repository: Repository, place: Path, first: Manifest
) -> None:
    (index,) = files(place / "domains/default/index")
    content, name = index.read_bytes(), str(index.relative_to(place))
    flip(index, 200)
    await repository.repair()
    for data in (False, True):
        result = await repository.verify(data=data)
        assert (result.problems, [known.object for known in result.known]) == ((), [name])
    await put_right(repository, place, index, content)


async def test_a_pack_with_a_bad_frame_and_good_blobs_serves_on(
    repository: Repository, place: Path, first: Manifest
) -> None:
    victim = packs(place)[0]
    flip(victim, victim.stat().st_size - 5)
    found = await repository.verify(data=True)
    assert [(problem.object, problem.backups) for problem in found.problems] == [(str(victim.relative_to(place)), ())]
    assert (await repository.verify(data=True)).ok
    assert (await back_up(repository, "web-02", {"vda": CONTENT})).disks[0].statistics.bytes_stored == 0


async def test_new_damage_beside_known_damage_is_told(repository: Repository, place: Path, first: Manifest) -> None:
    await repository.forget(first.id)
    victim = damage_chunk(repository, place, first, 1)
    assert len((await repository.verify(data=True)).problems) == 1
    assert (await repository.verify(data=True)).ok
    damage_chunk(repository, place, first, 2)
    assert [problem.object for problem in (await repository.verify(data=True)).problems] == [
        str(victim.relative_to(place))
    ]
    victim.unlink()
    assert [problem.problem for problem in (await repository.verify()).problems] == ["it is missing"]
    assert (await repository.verify()).ok


async def test_an_index_object_that_is_good_again_is_read(repository: Repository, place: Path, first: Manifest) -> None:
    """Its digest proves it: after a fault of the device that came and went nobody has to verify first."""
    (index,) = files(place / "domains/default/index")
    content = index.read_bytes()
    flip(index, len(content) // 2)
    assert not (await repository.verify(data=True)).ok
    await (await repository.begin("web-02")).abort()  # looks at the index
    with pytest.raises(IntegrityError):
        await read_disk(repository, first, "vda")
    index.write_bytes(content)
    assert await read_disk(repository, first, "vda") == CONTENT
    assert quarantine(place)


async def test_damaged_records_are_told_once(repository: Repository, place: Path, first: Manifest) -> None:
    flip_pack(packs(place)[0])
    await repository.verify(data=True)
    for path in (*quarantine(place), *checks(place)):
        flip(path, 100)
        name = str(path.relative_to(place))
        assert name in {problem.object for problem in (await repository.verify()).problems}
        again = await repository.verify()
        assert name not in {problem.object for problem in again.problems}
        assert name in {known.object for known in again.known}
        assert path.exists(), "nobody removes what cannot be read"


@pytest.mark.parametrize("part", ["index", "quarantine", "checks", "backups", "annotations"])
async def test_a_bad_sector_under_a_small_object_stops_nobody(
    repository: Repository, place: Path, first: Manifest, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await back_up(repository, "web-02", {"vda": noise(CHUNK, 4)})
    await repository.annotate(first.id, add=["x"])
    await repository.verify()
    put_quarantine(repository._store, bytes.fromhex(repository.id), [BadObject(blobs=(), key="x", reason="y")])
    victim = files(place / "domains/default" / part)[0]
    sector, pread = victim.stat().st_ino, os.pread

    def failing(fd: int, size: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == sector:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", failing)
    async with await Repository.open(place) as fresh:
        problems = (await fresh.verify(data=True)).problems
        assert str(victim.relative_to(place)) in {problem.object for problem in problems}
        await fresh.repair()
        assert victim.exists()
        assert len(await fresh.backups()) == (1 if part == "backups" else 2)
        for vm in ("web-01", "web-02"):
            assert await read_disk(fresh, await back_up(fresh, vm, {"vda": CONTENT}), "vda") == CONTENT


async def test_a_directory_in_the_place_of_an_annotated_manifest_is_told(
    repository: Repository, place: Path, first: Manifest
) -> None:
    await repository.annotate(first.id, add=["x"])
    (manifest,) = files(place / "domains/default/backups")
    manifest.unlink()
    manifest.mkdir()
    problems = (await repository.verify()).problems
    assert [problem.object for problem in problems] == [str(manifest.relative_to(place))]


async def test_a_repository_that_cannot_be_written_is_verified(
    repository: Repository, place: Path, first: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_pack(packs(place)[0])
    before = files(place)

    monkeypatch.setattr("sfasync.store.local.LocalStore._open_directory", _readonly)
    result = await repository.verify(data=True)
    assert len(result.problems) == 1
    assert len(result.warnings) == 1
    assert result.warnings[0].startswith("the result is not remembered: cannot create ")
    assert files(place) == before


def _readonly(store: object, path: str, *, create: bool = False) -> int:
    """`LocalStore._open_directory` on a file system that is mounted to be read."""
    if create:
        raise OSError(30, "Read-only file system")
    root: int = store._root  # type: ignore[attr-defined] # of a directory
    return os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)


# --- what is remembered ----------------------------------------------------------------------------------------------


async def test_each_run_leaves_one_check(repository: Repository, place: Path, first: Manifest) -> None:
    for _ in range(3):
        await repository.verify()
        await repository.verify(data=True)
    (path,) = checks(place)
    key = CHECKS + path.name
    frame = decode(path.read_bytes(), key, bytes.fromhex(repository.id), ObjectKind.CHECK)
    check = decode_check(frame.payload, key)
    assert (check.scope, check.problems) == (Scope.EVERYTHING, 0)
    assert {pack.hex() for pack in check.packs} == {path.name for path in packs(place)}
    assert list(check.last.values()) == [1]


async def test_ten_tenths_read_everything(repository: Repository, place: Path) -> None:
    for number in range(25):
        await back_up(repository, f"vm-{number}", {"vda": noise(CHUNK // 4 + 999 * number, number)})
    whole = sum(path.stat().st_size for path in packs(place))
    since = []
    read = 0
    for _ in range(10):
        result = await repository.verify(percent=10)
        assert result.data
        since.append(result.all_read_since)
        read += result.bytes_read
    assert since[-1] is not None
    assert since[0] is None
    assert whole <= read <= 2.5 * whole, "and what is read of structure, each time"
    eleventh = await repository.verify(percent=10)
    assert eleventh.all_read_since is not None
    assert eleventh.all_read_since > since[-1]


async def test_what_was_read_lately_is_not_read_again(repository: Repository, place: Path, first: Manifest) -> None:
    await repository.verify(data=True)
    second = await back_up(repository, "web-02", {"vda": noise(CHUNK, 9)})
    small = await repository.verify(older_than=86400)
    assert small.bytes_read < 2 * CHUNK
    for path in packs(place)[:2]:
        flip_pack(path)
    assert (await repository.verify(older_than=86400)).ok, "nobody looked"
    found = await repository.verify(older_than=0)
    assert {backup for problem in found.problems for backup in problem.backups} == {first.id, second.id}


async def test_what_could_not_be_read_for_now_was_not_read(
    repository: Repository, place: Path, first: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(pack: PackReader) -> None:
        raise StorageError("not now")

    monkeypatch.setattr(PackReader, "read_all", refused)
    assert {problem.problem for problem in (await repository.verify(data=True)).problems} == {"not now"}
    monkeypatch.undo()
    result = await repository.verify(older_than=3600.0)
    assert result.ok
    assert result.bytes_read > sum(path.stat().st_size for path in packs(place))


async def test_some_of_what_one_backup_needs(repository: Repository, place: Path, first: Manifest) -> None:
    await back_up(repository, "web-02", {"vda": noise(CHUNK, 9)})
    result = await repository.verify([first.id], percent=0.001)
    assert result.all_read_since is None
    assert (await repository.verify([first.id], older_than=60)).all_read_since is not None
    assert (await repository.verify()).all_read_since is None, "the other one's were not read"


async def test_a_wrong_clock_is_not_believed(
    repository: Repository, first: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 10 * 86400)
    await repository.verify(data=True)
    monkeypatch.setattr("time.time", lambda: now)
    assert (await repository.verify()).all_read_since is None


@pytest.mark.parametrize(
    "arguments", [{"data": True, "percent": 1}, {"percent": 0}, {"percent": 101}, {"older_than": -1}]
)
async def test_contradictions_are_refused(repository: Repository, arguments: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        await repository.verify(**arguments)  # type: ignore[arg-type]  # data is a bool


async def test_two_verifications_at_once(repository: Repository, place: Path, first: Manifest) -> None:
    flip_pack(packs(place)[0])
    async with await Repository.open(place) as other:
        results = await asyncio.gather(repository.verify(data=True), other.verify(data=True))
    assert all(len(result.problems) <= 1 for result in results)
    assert any(result.problems for result in results)
    await back_up(repository, "web-01", {"vda": CONTENT})
    assert (await repository.verify(data=True)).ok
    assert len(checks(place)) <= 2


# --- where a blob is in several places --------------------------------------------------------------------------------


async def test_every_copy_is_tried(repository: Repository, place: Path, first: Manifest) -> None:
    victim = packs(place)[0]
    good = victim.read_bytes()
    flip_pack(victim)
    await repository.verify(data=True)
    await back_up(repository, "web-01", {"vda": CONTENT})
    assert await read_disk(repository, first, "vda") == CONTENT
    victim.write_bytes(good)
    for path in packs(place):
        if path != victim and path.stat().st_size > CHUNK // 2:
            path.unlink()
    async with await Repository.open(place) as fresh:
        assert await read_disk(fresh, first, "vda") == CONTENT, "the one that was bad is the last that is tried"


async def test_nothing_is_read_when_every_copy_is_bad(repository: Repository, place: Path, first: Manifest) -> None:
    damage_chunk(repository, place, first, 1)
    await repository.verify(data=True)
    with pytest.raises(IntegrityError):
        await read_disk(repository, first, "vda")
