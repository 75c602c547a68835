"""The engine, end to end, on real servers and a real repository."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sfasync import (
    BusyError,
    CbtError,
    ConnectError,
    Engine,
    IntegrityError,
    Limits,
    Progress,
    Repository,
    SourceError,
    StateError,
    StorageError,
    TargetError,
    TargetRefusedError,
    TlsError,
    UsageError,
    parse_uri,
)
from sfasync.units import KiB, MiB

from .support.images import allocated, qcow2_of, same_content, sparse_image
from .support.memory import MemoryDisk
from .support.servers import nbd_server, nbdkit, qemu_nbd


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[Repository]:
    async with await Repository.open(tmp_path / "repository", create=True) as repository:
        yield repository


@pytest.fixture
async def engine(repository: Repository) -> AsyncIterator[Engine]:
    async with Engine(repository) as engine:
        yield engine


def image(tmp_path: Path, name: str = "disk.raw", *, size: int = 40 * MiB + 512, seed: int = 1) -> Path:
    data = [(0, 3 * MiB), (10 * MiB + 4096, 300 * KiB), (size - 70 * KiB, 70 * KiB)]
    return sparse_image(tmp_path / name, size, data=data, seed=seed)


async def test_three_disks_of_three_servers_there_and_back(
    tmp_path: Path, certificates: Path, engine: Engine, repository: Repository
) -> None:
    a, b, c = (image(tmp_path, f"{name}.raw", seed=seed) for seed, name in enumerate("abc"))
    with (
        nbdkit("file", a, "--readonly", tls=certificates, tcp=True) as first,
        qemu_nbd(qcow2_of(b, tmp_path / "b.qcow2"), fmt="qcow2") as second,
        nbd_server(c) as third,
    ):
        disks = {"a": first.uri, "b": second.uri, "c": third.uri}
        backup = await engine.backup_vm("web-01", disks)
        again = await engine.backup_vm("web-01", disks)

    assert [disk.size for disk in backup.disks] == [path.stat().st_size for path in (a, b, c)]
    assert all(disk.mode == "full" for disk in backup.disks)
    assert backup.disks[0].reasons == ("first-backup", "no-cbt")
    assert again.parent == backup.id
    assert again.bytes_new == 0
    assert again.bytes_stored < MiB
    assert [d.tree for d in again.disks] == [d.tree for d in backup.disks]

    restored = await engine.restore_vm(backup.id, to=tmp_path / "out", verify_after=True)
    assert [disk.verified for disk in restored.disks] == [True] * 3
    for path in (a, b, c):
        copy = tmp_path / "out" / path.name
        assert same_content(copy, path)
        assert allocated(copy) < 6 * MiB
    assert (await engine.verify(data=True)).ok
    assert [manifest.id for manifest in await repository.backups()] == [backup.id, again.id]


async def test_zeros_are_not_read(tmp_path: Path, engine: Engine) -> None:
    source = image(tmp_path)
    log = tmp_path / "requests"
    with nbdkit("file", source, f"logfile={log}", filters=["log"]) as server:
        backup = await engine.backup_vm("web-01", {"vda": server.uri})
    read = sum(
        int(line.split("count=0x")[1].split()[0], 16) for line in log.read_text().splitlines() if " Read " in line
    )
    assert read == backup.disks[0].statistics.bytes_read < 5 * MiB
    assert backup.disks[0].statistics.bytes_zero > 30 * MiB


async def test_only_the_change_is_stored(tmp_path: Path, engine: Engine) -> None:
    source = image(tmp_path)
    with qemu_nbd(source) as server:
        first = await engine.backup_vm("web-01", {"vda": server.uri})
        with source.open("r+b") as file:
            file.seek(20 * MiB)
            file.write(b"changed" * 1000)
        second = await engine.backup_vm("web-01", {"vda": server.uri})
    assert first.bytes_new > 3 * MiB
    assert second.bytes_new == MiB
    await engine.restore_vm("web-01@latest", to=tmp_path / "out")
    assert same_content(tmp_path / "out" / "vda.raw", source)


async def test_restore_to_an_nbd_target(tmp_path: Path, engine: Engine) -> None:
    source = image(tmp_path)
    with qemu_nbd(source) as server:
        backup = await engine.backup_vm("web-01", {"vda": server.uri})
    target = sparse_image(tmp_path / "target.raw", 50 * MiB, data=[(0, 50 * MiB)], seed=9)
    tail = target.read_bytes()[source.stat().st_size :]
    with nbdkit("file", target) as server:
        await engine.restore_vm(backup.id, to_disks={"vda": server.uri}, verify_after=True)
    content = target.read_bytes()
    assert content[: source.stat().st_size] == source.read_bytes()
    assert content[source.stat().st_size :] == tail


async def test_restore_to_qcow2(tmp_path: Path, engine: Engine) -> None:
    source = image(tmp_path)
    with qemu_nbd(source) as server:
        backup = await engine.backup_vm("web-01", {"vda": server.uri})
    await engine.restore_vm(backup.id, to=tmp_path / "out", image_format="qcow2", verify_after=True)
    result = tmp_path / "out" / "vda.qcow2"
    assert allocated(result) < 8 * MiB
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, result], check=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["vda.qcow2"]


async def test_a_disk_may_be_an_address_or_any_source(tmp_path: Path, engine: Engine) -> None:
    source = image(tmp_path)
    memory = MemoryDisk(b"memory" * 100_000)
    with qemu_nbd(source) as server:
        backup = await engine.backup_vm("web-01", {"nbd": parse_uri(server.uri), "memory": memory})
    target = MemoryDisk(bytes(memory.size))
    await engine.restore_vm(backup.id, to_disks={"memory": target})
    assert target.content == memory.content
    assert target.flushes == 1


async def test_odd_disk_ids_become_safe_file_names(tmp_path: Path, engine: Engine) -> None:
    disks = {"../x": MemoryDisk(b"1" * 5000), "a b/ü": MemoryDisk(b"2" * 5000)}
    backup = await engine.backup_vm("../vm", disks)
    await engine.restore_vm(backup.id, to=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["..%2Fx.raw", "a%20b%2F%C3%BC.raw"]
    with pytest.raises(UsageError, match="cannot be restored to a file"):
        dots = await engine.backup_vm("dots", {"..": MemoryDisk(b"3")})
        await engine.restore_vm(dots.id, to=tmp_path / "out")


async def test_a_directory_that_cannot_be_made_is_a_plain_error(tmp_path: Path, engine: Engine) -> None:
    backup = await engine.backup_vm("web-01", {"vda": MemoryDisk(b"data")})
    (tmp_path / "file").touch()
    with pytest.raises(TargetRefusedError, match="is not a directory"):
        await engine.restore_vm(backup.id, to=tmp_path / "file" / "out")
    for directory in (Path("/proc/none"), tmp_path / ("x" * 256)):
        with pytest.raises(StorageError, match="cannot make the directory"):
            await engine.restore_vm(backup.id, to=directory)


async def test_a_target_that_cannot_be_read_back_is_at_fault_not_a_source(engine: Engine) -> None:
    class Forgetful(MemoryDisk):
        async def flush(self) -> bool:
            self.bad.add(0)
            return await super().flush()

    backup = await engine.backup_vm("web-01", {"vda": MemoryDisk(b"data")})
    target = Forgetful(bytes(4))
    with pytest.raises(TargetError, match="reading back failed: cannot read") as caught:
        await engine.restore_vm(backup.id, to_disks={"vda": target}, verify_after=True)
    assert caught.value.disk == "vda"


async def test_two_disks_never_go_to_one_place(engine: Engine) -> None:
    backup = await engine.backup_vm("web-01", {"vda": MemoryDisk(b"a"), "vdb": MemoryDisk(b"b")})
    sink = MemoryDisk(b"1")
    for one, other in ((sink, sink), ("nbd://h/x", "nbd://h:10809/x")):
        with pytest.raises(UsageError, match="the same place"):
            await engine.restore_vm(backup.id, to_disks={"vda": one, "vdb": other})
    assert sink.content == b"1"


async def test_a_target_whose_blocks_do_not_fit_is_refused_before_anything_is_written(engine: Engine) -> None:
    content = b"x" * 5000
    backup = await engine.backup_vm("web-01", {"vda": MemoryDisk(content)})
    target = MemoryDisk(bytes(8192), block_size=4096)
    with pytest.raises(TargetRefusedError, match="blocks of 4096 bytes"):
        await engine.restore_vm(backup.id, to_disks={"vda": target})
    assert not any(target.content)
    exact = MemoryDisk(bytes(5000), block_size=4096)
    await engine.restore_vm(backup.id, to_disks={"vda": exact})
    assert exact.content == content


async def test_existing_files_are_refused_without_force(tmp_path: Path, engine: Engine) -> None:
    disk = MemoryDisk(b"new" * 1000)
    backup = await engine.backup_vm("web-01", {"vda": disk})
    (tmp_path / "out").mkdir()
    existing = tmp_path / "out" / "vda.raw"
    existing.write_bytes(b"old")
    with pytest.raises(TargetRefusedError, match="exists"):
        await engine.restore_vm(backup.id, to=tmp_path / "out")
    assert existing.read_bytes() == b"old"
    await engine.restore_vm(backup.id, to=tmp_path / "out", force=True)
    assert existing.read_bytes() == disk.content


async def test_a_smaller_target_is_refused_before_anything_is_written(engine: Engine) -> None:
    disks = {"a": MemoryDisk(b"a" * 5000), "b": MemoryDisk(b"b" * 5000)}
    backup = await engine.backup_vm("web-01", disks)
    large, small = MemoryDisk(bytes(5000)), MemoryDisk(bytes(4999))
    with pytest.raises(TargetRefusedError, match="4999 bytes, the disk has 5000"):
        await engine.restore_vm(backup.id, to_disks={"a": large, "b": small})
    assert not any(large.content)


async def test_a_damaged_repository_never_restores_wrong_bytes(
    tmp_path: Path, engine: Engine, repository: Repository
) -> None:
    backup = await engine.backup_vm("web-01", {"vda": MemoryDisk(bytes(range(256)) * 8192)})
    pack = max((tmp_path / "repository").rglob("packs/*/*"), key=lambda path: path.stat().st_size)
    pack.chmod(0o600)
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.write_bytes(content)
    with pytest.raises(IntegrityError):
        await engine.restore_vm(backup.id, to=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    result = await engine.verify(data=True)
    assert [problem.backups for problem in result.problems] == [(backup.id,)] * len(result.problems)
    assert not result.ok


async def test_a_failing_disk_fails_the_backup_and_the_next_one_succeeds(
    engine: Engine, repository: Repository
) -> None:
    good, bad = MemoryDisk(b"g" * 3 * MiB), MemoryDisk(b"b" * 3 * MiB)
    bad.bad.add(2 * MiB)
    with pytest.raises(SourceError) as caught:
        await engine.backup_vm("web-01", {"good": good, "bad": bad})
    assert (caught.value.disk, caught.value.offset) == ("bad", 2 * MiB)
    assert await repository.backups() == []
    bad.bad.clear()
    await engine.backup_vm("web-01", {"good": good, "bad": bad})
    assert (await engine.verify(data=True)).ok


async def test_errors_of_connecting(tmp_path: Path, certificates: Path, engine: Engine) -> None:
    with pytest.raises(ConnectError, match="nobody"):
        await engine.backup_vm("web-01", {"vda": f"nbd+unix:///?socket={tmp_path}/nobody"})
    with nbdkit("memory", "1M") as server, pytest.raises(TlsError):
        await engine.backup_vm(
            "web-01", {"vda": f"nbds+unix:///?socket={server.socket}&tls-certificates={certificates}"}
        )
    with nbdkit("memory", "1M", "--readonly") as server:
        backup = await engine.backup_vm("web-01", {"vda": server.uri})
        with pytest.raises(TargetRefusedError, match="read-only"):
            await engine.restore_vm(backup.id, to_disks={"vda": server.uri})
    with pytest.raises(TargetError, match="nobody"):
        await engine.restore_vm(backup.id, to_disks={"vda": f"nbd+unix:///?socket={tmp_path}/nobody"})


async def test_incremental_without_changed_blocks_is_an_error(engine: Engine) -> None:
    disk = MemoryDisk(b"x")
    with pytest.raises(CbtError, match="first-backup, no-cbt"):
        await engine.backup_vm("web-01", {"vda": disk}, mode="incremental")
    backup = await engine.backup_vm("web-01", {"vda": disk}, mode="full")
    assert backup.disks[0].reasons == ("forced",)


async def test_a_job_can_be_watched_and_cancelled(engine: Engine, repository: Repository) -> None:
    disk = MemoryDisk(b"x" * 4 * MiB)
    disk.gate.clear()
    states: list[str] = []
    async with engine.start_backup("web-01", {"vda": disk}, progress=lambda p: states.append(p.state)) as job:
        while job.progress().state != "running":
            await asyncio.sleep(0.01)
        with pytest.raises(BusyError):
            await engine.backup_vm("web-01", {"vda": disk})
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job.result()
    assert states[0] == "running"
    assert states[-1] == "cancelled"
    assert await repository.backups() == []
    disk.gate.set()
    await engine.backup_vm("web-01", {"vda": disk})


async def test_leaving_the_block_of_a_job_waits_for_it(engine: Engine, repository: Repository) -> None:
    async with engine.start_backup("web-01", {"vda": MemoryDisk(b"x" * MiB)}):
        pass
    assert len(await repository.backups()) == 1


async def test_closing_the_engine_cancels_its_jobs(repository: Repository) -> None:
    disk = MemoryDisk(b"x" * MiB)
    disk.gate.clear()
    async with Engine(repository) as engine:
        job = engine.start_backup("web-01", {"vda": disk})
        while job.progress().state != "running":
            await asyncio.sleep(0.01)
    assert job.done
    assert await repository.backups() == []
    with pytest.raises(StateError):
        engine.start_backup("web-01", {"vda": disk})


async def test_progress_counts_every_byte(tmp_path: Path, engine: Engine) -> None:
    seen: list[Progress] = []
    with qemu_nbd(image(tmp_path)) as server:
        await engine.backup_vm("web-01", {"vda": server.uri}, progress=seen.append)
    assert [p.state for p in seen][-1] == "done"
    assert seen[-1].done == seen[-1].size == 40 * MiB + 512


async def test_a_progress_callback_that_raises_is_dropped(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def callback(progress: Progress) -> None:
        calls.append(progress)
        raise ValueError("mine")

    await engine.backup_vm("web-01", {"vda": MemoryDisk(b"x" * MiB)}, progress=callback)
    assert len(calls) == 1
    assert "progress callback failed" in caplog.text


async def test_jobs_share_one_budget(repository: Repository) -> None:
    async with Engine(repository, limits=Limits(memory=16 * MiB)) as engine:
        disks = [MemoryDisk(bytes([number + 1]) * 8 * MiB) for number in range(4)]
        await asyncio.gather(*(engine.backup_vm(f"vm-{n}", {"vda": disk}) for n, disk in enumerate(disks)))
        assert repr(engine).endswith(f"0 of {12 * MiB} buffer bytes in use>")
    assert len(await repository.backups()) == 4


async def test_copy_between_servers_and_files(tmp_path: Path) -> None:
    source = image(tmp_path)
    async with Engine() as engine:
        with qemu_nbd(source) as server:
            result = await engine.copy(server.uri, tmp_path / "copy.raw")
            assert result.durable
            null = await engine.copy(server.uri, "null:", extents=False)
        assert null.bytes_read == source.stat().st_size
        assert same_content(tmp_path / "copy.raw", source)
        assert allocated(tmp_path / "copy.raw") < 5 * MiB
        with nbdkit("memory", str(source.stat().st_size)) as server:
            await engine.copy(tmp_path / "copy.raw", server.uri)
            await engine.copy(server.uri, tmp_path / "back.raw")
        assert same_content(tmp_path / "back.raw", source)
        with pytest.raises(TargetRefusedError, match="both source and target"):
            await engine.copy(source, tmp_path / "disk.raw")
        with nbdkit("memory", "1M") as server, pytest.raises(TargetRefusedError, match="1048576 bytes"):
            await engine.copy(source, server.uri)


async def test_an_engine_without_a_repository_only_copies() -> None:
    async with Engine() as engine:
        with pytest.raises(StateError, match="no repository"):
            await engine.backup_vm("web-01", {"vda": MemoryDisk(b"x")})
