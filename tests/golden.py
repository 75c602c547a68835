"""The golden repository: made once by this format version, kept in ``tests/data/golden``, and readable for ever.

    python -m tests.golden

makes it, which is to be done for a new format version only: into a new directory, so that the old one stays. What its
disks hold is computed here, from a hash, so that no library can change it.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from sfasync import Engine, Repository

from .support.memory import MemoryDisk
from .support.tracking import TrackingPlatform

KIB = 1 << 10
PLACE = Path(__file__).parent / "data/golden"
CHUNK = 256 * KIB
PLATFORM_VM, PLAIN_VM = "web-01", "dévice ☃"
FILES = {"nvram": b"\x01\x02", "config.json": b'{"cpus": 2}'}

_CHANGES = {
    "system": ((CHUNK - 7, b"over the edge of a chunk"), (600 * KIB, b"a line of text\n" * 9000)),
    "data": ((33_000 * KIB, b"far behind"),),
}
_GROWN, _SHRUNK = 900 * KIB + 100, 30_000 * KIB


def noise(size: int, name: str) -> bytes:
    """Bytes that do not compress, the same for ever."""
    return hashlib.shake_128(name.encode()).digest(size)


def first() -> dict[str, bytes]:
    """The disks of the first backup: bytes that compress and that do not, many chunks, zeros, nothing."""
    system = noise(20 * KIB, "system") + bytes(CHUNK) + b"".join(b"%d\n" % n for n in range(60_000)) + b"end"
    return {"system": system, "data": noise(10, "data") + bytes(34_000 * KIB), "zero": bytes(700 * KIB), "empty": b""}


def expected() -> list[tuple[str, int, Mapping[str, bytes]]]:
    """VM, number and disks of each backup; what is missing between the numbers was given up."""
    disks = first()
    backups: list[tuple[str, int, Mapping[str, bytes]]] = [(PLATFORM_VM, 1, dict(disks))]
    for name, changes in _CHANGES.items():
        for offset, data in changes:
            disks[name] = disks[name][:offset] + data + disks[name][offset + len(data) :]
    backups.append((PLATFORM_VM, 3, dict(disks)))
    disks["system"] = disks["system"].ljust(_GROWN, b"\0")[:_GROWN]
    disks["data"] = disks["data"][:_SHRUNK]
    backups.append((PLATFORM_VM, 4, dict(disks)))
    backups.append((PLAIN_VM, 1, {"a disk": first()["system"] + noise(100, "other")}))
    return backups


async def make(place: Path) -> None:
    """Make the repository: full, given up, incremental, resized, and a second VM that shares chunks."""
    async with _engine(place) as engine:
        platform = TrackingPlatform(first())
        await engine.backup_vm(PLATFORM_VM, platform=platform)
    async with await Repository.open(place) as repository:
        await (await repository.begin(PLATFORM_VM)).abort()
    async with _engine(place) as engine:
        for name, changes in _CHANGES.items():
            for offset, data in changes:
                platform.vm_disks[name].write(offset, data)
        await engine.backup_vm(PLATFORM_VM, platform=platform)
        platform.vm_disks["system"].resize(_GROWN)
        platform.vm_disks["data"].resize(_SHRUNK)
        await engine.backup_vm(PLATFORM_VM, platform=platform)
        last = expected()[-1][2]
        await engine.backup_vm(PLAIN_VM, {disk: MemoryDisk(content) for disk, content in last.items()})


@asynccontextmanager
async def _engine(place: Path) -> AsyncIterator[Engine]:
    opened = Repository.open(place) if place.exists() else Repository.init(place, chunk_size=CHUNK)
    async with await opened as repository, Engine(repository) as engine:
        yield engine


def main() -> None:
    if PLACE.exists():
        sys.exit(f"{PLACE} is there; a golden repository is never made again")
    PLACE.parent.mkdir(exist_ok=True)
    asyncio.run(make(PLACE))


if __name__ == "__main__":
    main()
