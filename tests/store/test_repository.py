"""Opening, making, listing and finding."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from sfasync.errors import (
    BackupNotFoundError,
    IntegrityError,
    RepositoryError,
    RepositoryVersionError,
    StateError,
    StorageError,
    TargetRefusedError,
    UsageError,
)
from sfasync.interfaces import BackupStore
from sfasync.models import DiskRecord
from sfasync.store.cache import cache_path
from sfasync.store.local import LocalStore
from sfasync.store.names import CONFIG, backup_key, vm_name
from sfasync.store.repository import Repository
from sfasync.units import KiB, MiB

from .support import CHUNK, back_up, files, flip, manifest_of, noise, read_disk
from .test_objects import rewritten


async def test_a_new_repository_has_its_configuration_and_nothing_else(place: Path) -> None:
    async with await Repository.init(place) as repository:
        store: BackupStore = repository
        assert len(store.id) == 32
        assert store.chunk_size == MiB
        assert repository.location == str(place)
        assert await repository.backups() == []
        assert files(place) == [place / "config"]
        assert (await repository.verify(data=True)).ok
    assert place.stat().st_mode & 0o777 == 0o700
    await repository.aclose()


async def test_it_is_the_same_when_opened_again(place: Path) -> None:
    async with await Repository.init(place, chunk_size=512 * KiB) as made:
        pass
    async with await Repository.open(str(place)) as opened:
        assert (opened.id, opened.chunk_size) == (made.id, 512 * KiB)
    async with await Repository.open(place, create=True) as opened:
        assert opened.id == made.id


async def test_create_makes_one_where_none_is(place: Path) -> None:
    place.mkdir()
    (place / "lost+found").mkdir()
    async with await Repository.open(place, create=True) as made:
        pass
    async with await Repository.open(place) as opened:
        assert opened.id == made.id
    async with await Repository.open(place.parent / "some/more/levels", create=True):
        pass


async def test_the_name_of_its_directory_is_durable_whoever_made_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.mkdir()
    synced: list[Path] = []
    monkeypatch.setattr("sfasync.store.repository.sync_directory", synced.append)
    async with await Repository.init(place):
        assert synced == [place.parent]


async def test_two_who_create_get_the_same_one(place: Path) -> None:
    opened = await asyncio.gather(*(Repository.open(place, create=True) for _ in range(6)))
    assert len({repository.id for repository in opened}) == 1
    for repository in opened:
        await repository.aclose()


@pytest.mark.parametrize("where", ["missing", "missing/below", "empty", "file", "file/below"])
async def test_where_none_is_the_message_says_what_to_do(tmp_path: Path, where: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        RepositoryError, match=f"no repository in {tmp_path / where}; make one with: sfasync init"
    ) as caught:
        await Repository.open(tmp_path / where)
    assert caught.value.exit_code == 10
    assert not (tmp_path / "missing").exists()


async def test_init_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_bytes(b"precious")
    with pytest.raises(TargetRefusedError, match="not empty"):
        await Repository.init(tmp_path / "full")
    with pytest.raises(RepositoryError, match="no repository"):
        await Repository.open(tmp_path / "full", create=True)
    with pytest.raises(TargetRefusedError, match="not a directory"):
        await Repository.init(tmp_path / "full/file")
    async with await Repository.init(tmp_path / "new"):
        pass
    with pytest.raises(TargetRefusedError, match=r"a repository in .* already"):
        await Repository.init(tmp_path / "new")
    for size in (0, 100_000, 8 * MiB):
        with pytest.raises(UsageError, match="chunk size"):
            await Repository.init(tmp_path / "other", chunk_size=size)
    for location in ("s3://bucket/prefix", "", "a\0b"):
        with pytest.raises(UsageError):
            await Repository.init(location)
    assert files(tmp_path / "full") == [tmp_path / "full/file"]


async def test_a_store_that_overwrites_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overwrite(store: LocalStore, key: str, data: bytes) -> None:
        Path(store.location, key).write_bytes(data)

    monkeypatch.setattr(LocalStore, "put", overwrite)
    with pytest.raises(StorageError, match="cannot live there"):
        await Repository.init(place)


async def test_every_flipped_bit_of_the_configuration_is_found(place: Path) -> None:
    async with await Repository.init(place):
        pass
    data = (place / CONFIG).read_bytes()
    for offset in range(len(data)):
        flip(place / CONFIG, offset, offset % 8)
        with pytest.raises(RepositoryError) as caught:
            await Repository.open(place)
        assert "\n" not in str(caught.value)
        (place / CONFIG).write_bytes(data)
    (place / CONFIG).write_bytes(b"")
    with pytest.raises(RepositoryError, match="cannot be read"):
        await Repository.open(place)


async def test_a_newer_repository_is_told_from_a_damaged_one(place: Path) -> None:
    async with await Repository.init(place) as repository:
        data = (place / CONFIG).read_bytes()
        (place / CONFIG).write_bytes(rewritten(data, 8, b"\x02\x00"))
        with pytest.raises(RepositoryVersionError, match="format version 2"):
            await Repository.open(place)
        (place / CONFIG).write_bytes(rewritten(data, 16, b"\x00\x00\x00\x80"))
        async with await Repository.open(place) as readable:
            assert await readable.backups() == []
            with pytest.raises(RepositoryVersionError, match="may only be written"):
                await readable.begin("web-01")
        with pytest.raises(RepositoryVersionError):
            await repository.begin("web-01")


async def test_a_repository_that_is_not_there_any_more_is_not_written(place: Path) -> None:
    async with await Repository.init(place) as repository:
        (place / CONFIG).unlink()
        with pytest.raises(RepositoryError, match="no repository"):
            await repository.begin("web-01")
        assert files(place) == []
        async with await Repository.init(place):
            pass
        with pytest.raises(RepositoryError, match="another repository"):
            await repository.begin("web-01")


async def test_backups_are_listed_and_found(repository: Repository) -> None:
    made = [await back_up(repository, vm, {"vda": noise(100, n)}) for n, vm in enumerate(["b", "a", "b", "a"])]
    listed = await repository.backups()
    assert [(backup.vm, backup.seq) for backup in listed] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert await repository.backups("a") == [made[1], made[3]]
    assert await repository.backups("none") == []
    for backup in made:
        assert await repository.find(backup.id) == backup
        assert await repository.find(backup.id[:12]) == backup
    assert await repository.find("b@latest") == made[2]
    assert [backup.parent for backup in made] == [None, None, made[0].id, made[1].id]


async def test_an_older_backup_never_passes_for_a_damaged_latest_one(repository: Repository, place: Path) -> None:
    first, last = [await back_up(repository, "a", {"vda": noise(100, n)}) for n in range(2)]
    other = await back_up(repository, "b", {"vda": noise(100)})
    (await repository.begin("a")).abort_now()  # its void is not what is latest
    flip(Path(place, backup_key(vm_name(bytes.fromhex(repository.id), "a"), last.seq)), 200)

    for reference in ("a@latest", last.id):
        with pytest.raises(IntegrityError, match="damage") as caught:
            await repository.find(reference)
        assert caught.value.path is not None
    assert await repository.find(first.id) == first
    assert await repository.find("b@latest") == other


async def test_a_name_that_is_no_text_has_no_backups(repository: Repository) -> None:
    assert await repository.backups("\udcff") == []


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("none@latest", "no backup of VM none"),
        ("abc", "4 or more"),
        ("ABCDEF", "4 or more"),
        ("../../etc/passwd", "4 or more"),
        ("\x1b[31m", r"\\x1b"),
        ("00000000", "there is no backup 00000000"),
    ],
)
async def test_what_is_not_found_is_told(repository: Repository, reference: str, message: str) -> None:
    with pytest.raises(BackupNotFoundError, match=message) as caught:
        await repository.find(reference)
    assert caught.value.exit_code == 2


async def test_an_ambiguous_prefix_is_refused(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    tails = iter("12345")
    monkeypatch.setattr("secrets.token_hex", lambda size: ("abcd" + next(tails)).ljust(2 * size, "0"))
    first = await back_up(repository, "a", {"vda": b"x"})
    await back_up(repository, "b", {"vda": b"x"})
    with pytest.raises(BackupNotFoundError, match="2 backups begin with abcd"):
        await repository.find("abcd")
    assert await repository.find("abcd1") == first


async def test_files_come_back(repository: Repository, place: Path) -> None:
    contents = {"config.json": b'{"cpu":4}', "nvram": bytes(1000) + b"x" * 200_000, "empty": b"", "zeros": bytes(5000)}
    session = await repository.begin("web-01")
    records = [await session.add_file(name, data) for name, data in contents.items()]
    manifest = manifest_of(session, "web-01", [])
    manifest = await session.commit(replace(manifest, files=tuple(records)))
    for name, data in contents.items():
        assert await repository.read_file(manifest, name) == data
    with pytest.raises(BackupNotFoundError, match="no file 'other'"):
        await repository.read_file(manifest, "other")
    (pack,) = files(place, "packs")
    flip(pack, 200)
    with pytest.raises(IntegrityError):
        for name in contents:
            await repository.read_file(manifest, name)


async def test_reading_works_without_the_cache_and_without_the_right_to_write(place: Path) -> None:
    content = noise(3 * CHUNK)
    async with await Repository.init(place, chunk_size=CHUNK) as repository:
        manifest = await back_up(repository, "web-01", {"vda": content})
        path = cache_path(bytes.fromhex(repository.id))
    assert path is not None
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    path.parent.write_bytes(b"in the way")
    directories = sorted(place.rglob("*"), reverse=True)
    for entry in directories:
        entry.chmod(0o500 if entry.is_dir() else 0o400)
    async with await Repository.open(place) as repository:
        assert await repository.find("web-01@latest") == manifest
        assert await read_disk(repository, manifest, "vda") == content
        assert (await repository.verify(data=True)).ok
    for entry in directories:
        entry.chmod(0o700)


async def test_nothing_is_stored_within_the_repository_but_objects(repository: Repository, place: Path) -> None:
    manifest = await back_up(repository, "web-01", {"vda": noise(3 * CHUNK)})
    await read_disk(repository, manifest, "vda")
    await repository.verify(data=True)
    assert {path.relative_to(place).parts[0] for path in files(place)} == {"config", "domains"}
    kinds = {path.parts[len(place.parts) + 2] for path in files(place / "domains")}
    assert kinds == {"backups", "checks", "index", "packs"}


async def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with await Repository.init("here", chunk_size=CHUNK) as repository:
        monkeypatch.chdir("/")
        await back_up(repository, "web-01", {"vda": noise(CHUNK)})
        assert repository.location == str(tmp_path / "here")
    assert (tmp_path / "here/config").exists()


async def test_a_closed_repository_is_refused(place: Path) -> None:
    async with await Repository.init(place, chunk_size=CHUNK) as repository:
        manifest = await back_up(repository, "web-01", {"vda": noise(CHUNK)})
    for call in (repository.backups, lambda: repository.find("web-01@latest"), repository.verify):
        with pytest.raises(StateError, match="closed"):
            await call()
    with pytest.raises(StateError, match="closed"):
        repository.open_disk(manifest, "vda")


@pytest.mark.parametrize("end", ["abort", "aclose"])
async def test_a_session_ends_although_its_end_is_cancelled_while_all_threads_are_busy(place: Path, end: str) -> None:
    busy = threading.Event()
    async with await Repository.init(place) as repository:
        session = await repository.begin("web-01")
        waiting = [repository._workers.submit(busy.wait, 10) for _ in range(repository._workers.count)]
        task = asyncio.create_task(session.abort() if end == "abort" else repository.aclose())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        busy.set()
        await asyncio.gather(*map(asyncio.wrap_future, waiting))
        with pytest.raises(asyncio.CancelledError):
            await task
        if end == "abort":
            await (await repository.begin("web-01")).abort()
    async with await Repository.open(place) as again:
        await (await again.begin("web-01")).abort()


async def test_a_cancelled_open_leaves_nothing_open(place: Path) -> None:
    async with await Repository.init(place):
        pass
    for turns in range(5):
        task = asyncio.create_task(Repository.open(place))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            await task.result().aclose()


def test_memory_is_bounded_for_a_large_sparse_disk(tmp_path: Path) -> None:
    """16 TiB with data in 2,000 places: what is held does not follow the size."""

    async def run() -> None:
        async with await Repository.init(tmp_path / "r", chunk_size=CHUNK) as repository:
            session = await repository.begin("web-01")
            size, step = 1 << 44, (1 << 44) // 2000 // CHUNK * CHUNK
            writer = session.disk("vda", size)
            before = _resident()
            position = 0
            for offset in range(0, size - CHUNK, step):
                await writer.zero(position, offset - position)
                await writer.write(offset, offset.to_bytes(8, "big") * (CHUNK // 8))
                position = offset + CHUNK
            await writer.zero(position, size - position)
            root, tree = await writer.finish()
            record = DiskRecord(id="vda", size=size, root=root, tree=tree, mode="full")
            manifest = await session.commit(manifest_of(session, "web-01", [record]))
            source = repository.open_disk(manifest, "vda")
            count = 0
            async for extent in source.extents():
                count += not extent.zero
            assert count >= 2000
            assert _resident() - before < 40 * MiB

    asyncio.run(run())


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
