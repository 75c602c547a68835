"""Backups made without an engine, and damage."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from pathlib import Path

from sfasync.models import DiskRecord, Manifest
from sfasync.store.repository import Repository
from sfasync.store.session import Session
from sfasync.units import KiB

CHUNK = 256 * KiB


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def text(size: int, seed: int = 0) -> bytes:
    """Bytes that compress, the same for the same seed."""
    words = [noise(6, seed + n) for n in range(64)]
    return b"".join(random.Random(seed).choices(words, k=size // 6 + 1))[:size]


async def write_disk(session: Session, disk_id: str, content: bytes) -> DiskRecord:
    """Write a disk, chunk by chunk, several at a time."""
    writer = session.disk(disk_id, len(content))
    step = writer.chunk_size
    async with asyncio.TaskGroup() as group:
        for offset in range(0, len(content), step):
            group.create_task(writer.write(offset, memoryview(content)[offset : offset + step]))
    root, tree = await writer.finish()
    return DiskRecord(id=disk_id, size=len(content), root=root, tree=tree, mode="full", statistics=writer.statistics)


def manifest_of(session: Session, vm: str, disks: list[DiskRecord]) -> Manifest:
    """What an engine would commit."""
    return Manifest(
        id="",
        repository="",
        seq=session.seq,
        vm=vm,
        vm_name=vm,
        time=time.time(),
        parent=session.parent.id if session.parent else None,
        platform="test",
        version="0",
        disks=tuple(disks),
    )


async def back_up(repository: Repository, vm: str, disks: Mapping[str, bytes]) -> Manifest:
    """A backup of whole disks."""
    session = await repository.begin(vm)
    try:
        records = [await write_disk(session, disk_id, content) for disk_id, content in disks.items()]
        return await session.commit(manifest_of(session, vm, records))
    finally:
        await session.abort()


async def read_disk(repository: Repository, manifest: Manifest, disk_id: str) -> bytes:
    """All bytes of a disk of a backup."""
    source = repository.open_disk(manifest, disk_id)
    content = bytearray(source.size)
    await source.read_into(0, memoryview(content))
    return bytes(content)


def files(root: Path, part: str = "") -> list[Path]:
    """The files below a directory, or below each directory of a name in it."""
    return sorted(path for path in root.rglob(f"{part}/**/*" if part else "*") if path.is_file())


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Damage one bit."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)
