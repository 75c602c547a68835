"""Rows S5 to S7 and S10 to S12: backups and restores."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from ...programs import find_tool, run_tool
from ...units import GiB, KiB, MiB, TiB
from .contest import SFASYNC, Contest, Entrant, Facts, Place, bytes_below, limited_by, result_of, synced
from .data import PIECE, random_image, sparse_qcow2, usr_image
from .servers import nbdkit, qemu_nbd

_PIECES_EACH = 8 * TiB // 24_000
_DISKS = 16
_EQUAL_DISKS = 8
_SPARSE_PIECES = 4096  # of 64 KiB, on a sparse disk of any size

_RESTIC = 'nbdcopy "$1" - | restic --quiet backup --stdin --stdin-filename disk.raw'
_BORG = (
    'nbdcopy "$1" - | borg create --compression zstd,1 --chunker-params fixed,1048576'
    ' --stdin-name disk.raw "$2::{now}" -'
)
_QEMU_IMG = 'qemu-img convert -c -O qcow2 -o compression_type=zstd "$1" "$2" && sync "$2"'
_RESTIC_DUMP = 'restic --quiet dump latest disk.raw > "$1" && sync "$1"'


class _Site:
    """Repositories of all programs in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ours = directory / "sfasync"
        self.restic = directory / "restic"
        self.borg = directory / "borg"
        self.qcow2 = directory / "disk.qcow2"
        self.target = directory / "restored"
        self.environment = {
            "SFASYNC_REPOSITORY": str(self.ours),
            "XDG_CACHE_HOME": str(directory / "cache"),
            "RESTIC_REPOSITORY": str(self.restic),
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": str(directory / "restic-cache"),
            "BORG_BASE_DIR": str(directory / "borg-base"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }

    async def new_ours(self) -> None:
        self._clear("sfasync", "cache")
        await self.run(*SFASYNC, "init")
        await synced()

    async def new_restic(self) -> None:
        self._clear("restic", "restic-cache")
        await self.run("restic", "--quiet", "init", "--repository-version", "2")
        await synced()

    async def new_borg(self) -> None:
        self._clear("borg", "borg-base")
        await self.run("borg", "init", "--encryption", "none", str(self.borg))
        await synced()

    async def new_qcow2(self) -> None:
        self._clear("disk.qcow2")
        await synced()

    async def new_target(self) -> None:
        self._clear("restored")
        await synced()

    async def run(self, *command: str) -> None:
        """Run a program that is not measured."""
        assignments = [f"{name}={value}" for name, value in self.environment.items()]
        await run_tool("env", *assignments, *command)

    def backup(self, *disks: tuple[str, str]) -> tuple[str, ...]:
        """Our command for a backup."""
        named = [f"--disk={disk}={uri}" for disk, uri in disks]
        return (*SFASYNC, "backup", "--quiet", "--json", "vm", *named)

    def _clear(self, *names: str) -> None:
        for name in names:
            path = self.directory / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


async def first(place: Place) -> AsyncGenerator[Contest, None]:
    """S5: a backup of a file system into a new repository."""
    site = _Site(place.directory)
    async with nbdkit(place.sockets, "--readonly", "file", await usr_image(place.shared, place.size)) as uri:
        command = site.backup(("disk", uri))
        restic, borg = ("sh", "-c", _RESTIC, "sh", uri), ("sh", "-c", _BORG, "sh", uri, str(site.borg))
        qemu = ("sh", "-c", _QEMU_IMG, "sh", uri, str(site.qcow2))
        yield Contest(
            work="backup of an ext4 image of /usr into a new repository",
            size=place.size,
            environment=site.environment,
            entrants=place.with_peers(
                Entrant(name="sfasync", command=command, prepare=site.new_ours, facts=_stored(site.ours, limited_by)),
                {
                    "restic": Entrant(
                        name="restic", command=restic, prepare=site.new_restic, facts=_stored(site.restic)
                    ),
                    "borg": Entrant(name="borg", command=borg, prepare=site.new_borg, facts=_stored(site.borg)),
                    "qemu-img": Entrant(
                        name="qemu-img", command=qemu, prepare=site.new_qcow2, facts=_stored(site.qcow2)
                    ),
                },
            ),
        )


async def again(place: Place) -> AsyncGenerator[Contest, None]:
    """S6: a backup of a disk that has not changed, which no program knows before it has read it."""
    site = _Site(place.directory)
    async with nbdkit(place.sockets, "--readonly", "file", await usr_image(place.shared, place.size)) as uri:
        command, theirs = site.backup(("disk", uri)), ("sh", "-c", _RESTIC, "sh", uri)
        await site.new_ours()
        await site.run(*command)
        if find_tool("restic") is not None:
            await site.new_restic()
            await site.run(*theirs)
        yield Contest(
            work="backup of the same image, unchanged, without changed-block information",
            size=place.size,
            environment=site.environment,
            entrants=place.with_peers(
                Entrant(name="sfasync", command=command, prepare=synced, facts=limited_by),
                {"restic": Entrant(name="restic", command=theirs, prepare=synced)},
            ),
        )


async def restore(place: Place) -> AsyncGenerator[Contest, None]:
    """S7: a restore to a raw file, durable."""
    site = _Site(place.directory)
    async with nbdkit(place.sockets, "--readonly", "file", await usr_image(place.shared, place.size)) as uri:
        await site.new_ours()
        await site.run(*site.backup(("disk", uri)))
        if find_tool("restic") is not None:
            await site.new_restic()
            await site.run("sh", "-c", _RESTIC, "sh", uri)
    ours = (*SFASYNC, "restore", "--quiet", "vm@latest", "--to", site.target)
    theirs = ("sh", "-c", _RESTIC_DUMP, "sh", site.target)
    yield Contest(
        work="restore of it to a raw file, durable",
        size=place.size,
        environment=site.environment,
        entrants=place.with_peers(
            Entrant(name="sfasync", command=ours, prepare=site.new_target),
            {"restic": Entrant(name="restic", command=theirs, prepare=site.new_target)},
        ),
    )


async def memory(place: Place) -> AsyncGenerator[Contest, None]:
    """S10: peak memory of large jobs; ours alone."""
    site = _Site(place.directory)

    def ours(work: str, size: int, *disks: tuple[str, str]) -> Contest:
        command = site.backup(*disks)
        entrant = Entrant(name="sfasync", command=command, prepare=site.new_ours, facts=limited_by)
        return Contest(work=work, size=size, entrants=[entrant], environment=site.environment)

    async with nbdkit(place.sockets, "--readonly", "file", await usr_image(place.shared, place.size)) as uri:
        yield ours("peak memory: S5", place.size, ("disk", uri))
    async with _many(place, _DISKS) as disks:
        yield ours(f"peak memory: {_DISKS} disks at once", place.size, *disks)
    for size in (place.size * 512, place.size * 8192):
        image = await sparse_qcow2(place, size, min(_SPARSE_PIECES, size // PIECE))
        async with qemu_nbd(place.sockets, image) as uri:
            yield ours(f"peak memory: sparse disk of {size // GiB} GiB", size, ("disk", uri))
        image.unlink()


async def fairness(place: Place) -> AsyncGenerator[Contest, None]:
    """S11: eight equal disks at once against one disk of the same total."""
    site = _Site(place.directory)
    whole = await random_image(place.directory / "whole.raw", place.size)
    async with _many(place, _EQUAL_DISKS) as disks, nbdkit(place.sockets, "--readonly", "file", whole) as uri:
        yield Contest(
            work="backup of 8 equal disks at once, against one disk of the same total",
            size=place.size,
            environment=site.environment,
            entrants=[
                Entrant(name="8 disks", command=site.backup(*disks), prepare=site.new_ours, facts=_finish_times),
                Entrant(name="1 disk", command=site.backup(("disk", uri)), prepare=site.new_ours, facts=limited_by),
            ],
        )


async def scattered(place: Place) -> AsyncGenerator[Contest, None]:
    """S12: a large sparse disk with small pieces of data all over it; two settings of its server."""
    site = _Site(place.directory)
    pieces = max(1, place.size // _PIECES_EACH)
    image = await sparse_qcow2(place, place.size, pieces)
    for tables_at_once, how in ((64 * KiB, "l2-cache-entry-size=64K"), (None, "qemu-nbd's own settings")):
        async with qemu_nbd(place.sockets, image, tables_at_once=tables_at_once) as uri:
            totals = Entrant(name="map", command=(*SFASYNC, "info", "--map", "--totals", uri))
            command = site.backup(("disk", uri))
            backup = Entrant(name="full backup", command=command, prepare=site.new_ours, facts=limited_by)
            yield Contest(
                work=f"sparse qcow2 of {place.size // GiB} GiB with {pieces} scattered pieces of 64 KiB; {how}",
                size=place.size,
                environment=site.environment,
                entrants=[backup, totals],
            )


@asynccontextmanager
async def _many(place: Place, count: int) -> AsyncIterator[list[tuple[str, str]]]:
    """Equal disks of different random content, on one server; as (id, URI)."""
    images = place.directory / f"{count}-disks"
    images.mkdir()
    each = max(MiB, place.size // count)
    for number in range(count):
        await random_image(images / f"disk-{number}", each)
    async with nbdkit(place.sockets, "--readonly", "file", f"dir={images}") as uri:
        yield [(path.name, uri.replace(":///", f":///{path.name}")) for path in sorted(images.iterdir())]
    shutil.rmtree(images)


def _stored(path: Path, more: Callable[[Path], Facts] | None = None) -> Callable[[Path], Facts]:
    """Tells how much a program has stored."""

    def facts(log: Path) -> Mapping[str, float | str]:
        stored = bytes_below(path) if path.is_dir() else path.stat().st_size
        return {"stored MiB": round(stored / MiB, 1), **(more(log) if more is not None else {})}

    return facts


def _finish_times(log: Path) -> Facts:
    """How far apart the disks of a job ended."""
    disks = result_of(log)["disks"]
    assert isinstance(disks, list), "docs/json-schema.json"
    totals = [disk["seconds"]["total"] for disk in disks]
    apart = 100 * (max(totals) - min(totals)) / max(totals)
    return {"finish apart %": round(apart, 1), **limited_by(log)}
