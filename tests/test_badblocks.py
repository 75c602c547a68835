from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from sfasync import Engine, Repository
from sfasync.badblocks import FILE, MOST, SalvagedSource, decode, describe, encode
from sfasync.errors import BadBlockError, IntegrityError, SourceError, UsageError
from sfasync.interfaces import SurveyedSource
from sfasync.models import Checkpoint, Extent
from sfasync.units import MiB

from .support.memory import MemoryDisk
from .support.tracking import TrackedDisk, TrackedSnapshotDisk, TrackingPlatform

SECTOR = 512


class ScratchedDisk(MemoryDisk):
    """A disk with bad sectors, given by their offsets, that can be read around."""

    retries = 3

    def __init__(self, content: bytes | bytearray, bad: Sequence[int]) -> None:
        super().__init__(content)
        self.bad = set(bad)

    async def read_around(self, offset: int, buffer: memoryview, *, most: int) -> Sequence[Extent]:
        bad = [Extent(at, SECTOR) for at in sorted(self.bad) if offset <= at < offset + len(buffer)]
        if len(bad) * SECTOR > most:
            raise BadBlockError("too much", offset=bad[0].offset, length=SECTOR)
        buffer[:] = self.content[offset : offset + len(buffer)]
        for extent in bad:
            buffer[extent.offset - offset : extent.end - offset] = bytes(SECTOR)
        return bad


async def test_bad_blocks_are_zeros_and_remembered() -> None:
    disk = ScratchedDisk(b"x" * 8192, [512, 1024, 4096])
    assert isinstance(disk, SurveyedSource)
    source = SalvagedSource(disk)
    buffer = bytearray(4096)
    await source.read_into(4096, memoryview(buffer))
    assert buffer == bytes(512) + b"x" * 3584
    for _ in range(2):  # what is read twice is lost once
        await source.read_into(0, memoryview(buffer))
    assert buffer == b"x" * 512 + bytes(1024) + b"x" * 2560
    assert source.blocks == (Extent(512, 1024), Extent(4096, 512))
    assert source.lost == 1536
    assert [extent async for extent in source.extents()] == [Extent(0, 4096), Extent(4096, 4096)]


async def test_a_disk_that_fails_all_over_is_given_up() -> None:
    disk = ScratchedDisk(bytes(4 * MiB), range(0, 4 * MiB, SECTOR))
    source = SalvagedSource(disk)
    await source.read_into(0, memoryview(bytearray(MOST)))
    with pytest.raises(BadBlockError):
        await source.read_into(MOST, memoryview(bytearray(SECTOR)))


def test_the_list_survives() -> None:
    blocks = {"vda": (Extent(0, 512), Extent(4096, 1024)), "größe": (Extent(1, 1),)}
    assert decode(encode(blocks)) == blocks
    assert decode(encode({**blocks, "vdb": ()})) == blocks
    assert encode({"a": (Extent(0, 512),)}) == b'{"a":[[0,512]]}'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"{",
        b'{"a":1}',
        b'{"a":[[0]]}',
        b'{"a":[[0,0]]}',
        b'{"a":[[0,true]]}',
        b'{"a":[[0,1.0]]}',
        b'{"a":[[-1,1]]}',
        b'{"a":[[8,8],[0,8]]}',
        b'{"a":[[0,8],[4,8]]}',
        b'{"a": [[0,8]]}',
        b'{"a":[]}',
        b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_what_is_no_list_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=FILE):
        decode(data)


def test_one_line_says_what_is_missing() -> None:
    bad = tuple(Extent(at * 4096, 512) for at in range(5))
    assert describe("vda", bad).endswith(
        "2560 bytes could not be read and are zeros in the backup, at offset 0, 4096, 8192, ..."
    )


# --- backups ---------------------------------------------------------------------------------------------------------


async def test_what_was_bad_is_read_again_although_nothing_changed(tmp_path: Path) -> None:
    content = b"x" * (4 * MiB)
    bad: list[int] = [MiB + 512]

    class Platform(TrackingPlatform):
        def _freeze(self, disk: TrackedDisk, base: Checkpoint | None, lost: asyncio.Future[str]) -> TrackedSnapshotDisk:
            frozen = super()._freeze(disk, base, lost)
            frozen.address = ScratchedDisk(bytes(disk.content), bad)
            return frozen

    platform = Platform({"vda": content})
    async with await Repository.open(tmp_path / "r", create=True) as repository, Engine(repository) as engine:
        with pytest.raises(SourceError):
            await engine.backup_vm("vm", platform=platform)
        first = await engine.backup_vm("vm", platform=platform, bad_blocks="zero")
        assert first.bad_blocks == {"vda": (Extent(MiB + 512, SECTOR),)}
        assert first.disks[0].statistics.retries == 3
        assert "could not be read" in first.warnings[0]

        second = await engine.backup_vm("vm", platform=platform, bad_blocks="zero", audit="off")
        assert second.disks[0].mode == "incremental"
        assert second.disks[0].statistics.bytes_read == MiB
        assert second.bad_blocks == first.bad_blocks

        bad.clear()
        third = await engine.backup_vm("vm", platform=platform, audit="off")
        assert (third.disks[0].mode, third.disks[0].statistics.bytes_read) == ("incremental", MiB)
        assert third.bad_blocks == {}
        restored = await engine.restore_vm(third.id, to=tmp_path / "out")
        assert restored.warnings == ()
        assert (tmp_path / "out" / "vda.raw").read_bytes() == content


async def test_the_option_is_checked(tmp_path: Path) -> None:
    async with await Repository.open(tmp_path / "r", create=True) as repository, Engine(repository) as engine:
        with pytest.raises(UsageError, match="bad blocks"):
            engine.start_backup("vm", {"vda": MemoryDisk(b"x")}, bad_blocks="skip")
