"""A platform of one's own: each VM is a directory of raw images, and nbdkit serves them.

::

    vms/web-01/vda.raw
    vms/web-01/vdb.raw
    vms/web-01/running      # there while the VM runs: then its images cannot be copied

What is frozen is a copy, instant where the file system shares blocks. Nobody tracks changes here, so every backup reads
all that is not zero. `docs/platforms.md` explains it step by step.
"""

from __future__ import annotations

import asyncio
import fcntl
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sfasync import (
    Checkpoint,
    ExportAddress,
    Leftover,
    PlatformError,
    UsageError,
    VirtualDisk,
    VirtualMachine,
)

FROZEN = ".frozen"


@dataclass(frozen=True)
class FrozenDisk:
    """One disk of a snapshot."""

    id: str
    size: int
    address: ExportAddress
    shares: Mapping[str, int] = field(default_factory=dict)  # no host, no datastore to go easy on
    checkpoint: Checkpoint | None = None
    reason: str = "no-cbt"

    def changed(self) -> None:
        """Nobody tracks changes."""


@dataclass(frozen=True)
class Snapshot:
    """Copies of the images."""

    vm_id: str
    snapshot_id: str
    disks: Sequence[FrozenDisk]
    lost: asyncio.Future[str]
    config: bytes | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def vm_name(self) -> str:
        return self.vm_id

    async def check(self) -> None:
        """Nobody takes copies away."""

    async def committed(self, disk_ids: Sequence[str]) -> None:
        """There are no checkpoints to drop."""


@dataclass(frozen=True)
class TargetDisk:
    """One disk that is restored."""

    address: ExportAddress
    shares: Mapping[str, int] = field(default_factory=dict)
    reason: str = "no-cbt"

    def changed(self) -> None:
        """All of it is written."""


@dataclass(frozen=True)
class Target:
    """Images that get their name when they are complete."""

    vm_id: str
    directory: Path
    images: Path
    disks: Mapping[str, TargetDisk]
    lost: asyncio.Future[str]

    @property
    def vm_name(self) -> str:
        return self.vm_id

    async def check(self) -> None:
        pass

    async def finish(self) -> Sequence[str]:
        self.directory.mkdir(exist_ok=True)
        for image in self.images.iterdir():
            image.rename(self.directory / image.name)
        return ()


class DirectoryPlatform:
    """VMs that are directories below `root`."""

    name = "directory"

    def __init__(self, root: Path) -> None:
        self._root = root

    async def vms(self) -> Sequence[VirtualMachine]:
        return [self._describe(path) for path in sorted(self._root.iterdir()) if path.name != FROZEN]

    async def identify(self, vm: str) -> str:
        if vm not in [known.name for known in await self.vms()]:
            raise UsageError(f"there is no VM {vm!r} in {self._root}")
        return vm

    @asynccontextmanager
    async def snapshot(
        self,
        vm: str,
        *,
        disks: Sequence[str] | None = None,
        base: Mapping[str, Checkpoint] | None = None,
        chain: str = "",
        reuse: str | None = None,
    ) -> AsyncIterator[Snapshot]:
        machine = self._describe(self._root / await self.identify(vm))
        if machine.refusal is not None:
            raise UsageError(f"VM {vm!r} cannot be backed up: {machine.refusal}")
        sizes = {disk.id: disk.size or 0 for disk in machine.disks}
        wanted = list(sizes) if disks is None else disks
        for disk in wanted:
            if disk not in sizes:
                raise UsageError(f"VM {vm!r} has no disk {disk!r}", disk=disk)
        async with self._workspace(vm) as place:
            images = [str(self._root / vm / f"{disk}.raw") for disk in wanted]
            await run("cp", "--reflink=auto", "--sparse=always", "--", *images, str(place))
            async with served(place, "--readonly") as socket:
                frozen = [FrozenDisk(disk, sizes[disk], export(socket, disk)) for disk in wanted]
                yield Snapshot(vm, place.name, frozen, asyncio.get_running_loop().create_future())

    @asynccontextmanager
    async def restore(
        self,
        vm: str | None,
        *,
        new_name: str | None = None,
        config: bytes | None,
        files: Mapping[str, bytes],
        disks: Mapping[str, int],
        since: Mapping[str, Checkpoint] | None = None,
    ) -> AsyncIterator[Target]:
        name = await self.identify(vm) if vm is not None else str(new_name)
        directory = self._root / name
        if vm is None and (directory.exists() or Path(name).name != name or name.startswith(".")):
            raise UsageError(f"{name!r} cannot be the name of a new VM")
        if (directory / "running").exists():
            raise UsageError(f"VM {name!r} runs; switch it off to restore to it")
        async with self._workspace(name) as place:
            for disk, size in disks.items():
                with (place / f"{disk}.raw").open("wb") as image:
                    image.truncate(size)
            async with served(place) as socket:
                targets = {disk: TargetDisk(export(socket, disk)) for disk in disks}
                yield Target(name, directory, place, targets, asyncio.get_running_loop().create_future())

    async def cleanup(self, *, dry_run: bool = False) -> Sequence[Leftover]:
        left = []
        for lock in sorted((self._root / FROZEN).glob("*.lock")):
            with lock.open("r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:  # whoever made it is alive
                    continue
                if not dry_run:
                    remove(lock)
                left.append(Leftover(kind="copy", id=lock.stem, vm=lock.stem.rpartition(".")[0], removed=not dry_run))
        return left

    def _describe(self, directory: Path) -> VirtualMachine:
        running = (directory / "running").exists()
        images = sorted(directory.glob("*.raw"))
        return VirtualMachine(
            id=directory.name,
            name=directory.name,
            state="running" if running else "stopped",
            disks=tuple(VirtualDisk(id=image.stem, size=image.stat().st_size, tracked=False) for image in images),
            refusal="its images cannot be copied while it runs" if running else None,
        )

    @asynccontextmanager
    async def _workspace(self, vm: str) -> AsyncIterator[Path]:
        """A directory for the time of the block; the lock beside it says that we are alive, before it is there."""
        (self._root / FROZEN).mkdir(exist_ok=True)
        lock = self._root / FROZEN / f"{vm}.{uuid.uuid4().hex}.lock"
        with lock.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                lock.with_suffix("").mkdir(mode=0o700)
                yield lock.with_suffix("")
            finally:
                remove(lock)


def export(socket: Path, disk: str) -> ExportAddress:
    return ExportAddress(socket=socket, export=f"{disk}.raw")


def remove(lock: Path) -> None:
    """What a lock speaks for, then the lock: the other way round, nobody would know of what is left."""
    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    lock.unlink(missing_ok=True)


@asynccontextmanager
async def served(images: Path, *options: str) -> AsyncIterator[Path]:
    """An nbdkit that serves each file of a directory, for the time of the block; gives its socket."""
    with tempfile.TemporaryDirectory() as place:  # a path of a socket has 107 bytes at most
        socket = Path(place) / "socket"
        command = ("nbdkit", "--foreground", "--exit-with-parent", "--unix", str(socket))
        server = await asyncio.create_subprocess_exec(*command, *options, "file", f"dir={images}")
        try:
            while not socket.exists():
                if server.returncode is not None:
                    raise PlatformError(f"nbdkit ended with exit code {server.returncode}")
                await asyncio.sleep(0.01)
            yield socket
        finally:
            if server.returncode is None:
                server.terminate()
            await server.wait()


async def run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    try:
        status = await process.wait()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if status:
        raise PlatformError(f"{command[0]} ended with exit code {status}")
