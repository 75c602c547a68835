"""The block devices of the lab: one qemu-storage-daemon that has every disk.

A disk is a qcow2 image with a node of its own. Freezing disks is one transaction over all of them, so that they are of
the same instant::

    guest ── disk ─┬─ bitmap 1 │ bitmap 2 ...     changes are marked in a new bitmap from here on, the old one rests
                   └─ copy ────> frozen image     whole by itself: it survives anything that happens to the disk

The copy has what is allocated, and costs time and space accordingly; for disks to try things on that is little, and a
frozen image needs nothing but its file: several stand side by side, go in any order, and outlive the daemon.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError

from ..errors import PlatformError, printable
from ..models import ExportAddress
from ..programs import running
from ..tasks import Looks, finish
from ..transport.export import open_export

GRANULARITY = 64 << 10
"""Bytes that one bit of a bitmap stands for, as in the platform's change tracking."""

_START_SECONDS = 10.0
_CLEAN_UP_SECONDS = 20.0
_FIRST_LOOK, _LONGEST_PAUSE = 0.005, 0.1  # seconds between two looks at a job

Area = tuple[int, int]
"""A range of a disk: start and length in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """What becomes of one disk when it is frozen.

    Attributes:
        node: The disk.
        image: The file that gets its frozen state; it is created.
        size: Bytes of the disk.
        begin: Name of the bitmap that marks changes from this instant on; None where they are not tracked.
        end: Name of the bitmap that marks none from this instant on; None where there is none.
    """

    node: str
    image: Path
    size: int
    begin: str | None = None
    end: str | None = None


class Storage:
    """The daemon and its monitor; made by `storage`.

    Attributes:
        socket: Where its NBD server is.
    """

    def __init__(self, monitor: QMPClient, socket: Path) -> None:
        self.socket = socket
        self._monitor = monitor
        self._numbers = count(1)

    # --- images ------------------------------------------------------------------------------------------------------

    async def create(self, image: Path, size: int) -> None:
        """Make an empty image; a file that is there is emptied."""
        image.write_bytes(b"")  # noqa: ASYNC240 - it takes no time
        node, job = self._new("file"), self._new("create")
        await self._run("blockdev-add", {"driver": "file", "node-name": node, "filename": str(image)})
        try:
            options = {"driver": "qcow2", "file": node, "size": size}
            await self._run("blockdev-create", {"job-id": job, "options": options})
            await self._end_of([job])
        finally:
            await finish(self.detach(node), _CLEAN_UP_SECONDS)

    async def attach(self, node: str, image: Path, *, read_only: bool = False) -> None:
        """Open an image as a node."""
        file = {"driver": "file", "filename": str(image)}
        options = {"driver": "qcow2", "node-name": node, "file": file, "discard": "unmap", "read-only": read_only}
        await self._run("blockdev-add", options)

    async def detach(self, node: str) -> None:
        """Close a node."""
        await self._run("blockdev-del", {"node-name": node})

    async def grow(self, node: str, size: int) -> None:
        """Make a disk longer."""
        await self._run("block_resize", {"node-name": node, "size": size})

    async def freeze(self, disks: Sequence[Frozen], progress: Callable[[int], None]) -> None:
        """Keep the state that all disks have at one instant.

        Cancelling, or a failure, leaves no image; bitmaps have begun and ended, or have not.

        Args:
            disks: What is frozen.
            progress: Is told the percentage that is done.

        Raises:
            PlatformError: The daemon refused, or an image cannot be written.
        """
        copies = [(disk, self._new("frozen"), self._new("freeze")) for disk in disks]
        attached: list[str] = []
        try:
            for disk, target, _ in copies:
                await self.create(disk.image, disk.size)
                await self.attach(target, disk.image)
                attached.append(target)
            actions = [action for disk, target, job in copies for action in _actions(disk, target, job)]
            await self._run("transaction", {"actions": actions, "properties": {"completion-mode": "individual"}})
            await self._end_of([job for _, _, job in copies], progress)
        except BaseException:
            await finish(self._drop(attached, [job for _, _, job in copies]), _CLEAN_UP_SECONDS)
            for disk in disks:
                disk.image.unlink(missing_ok=True)
            raise
        await finish(self._drop(attached, []), _CLEAN_UP_SECONDS)

    # --- bitmaps -----------------------------------------------------------------------------------------------------

    async def track(self, node: str, bitmap: str) -> None:
        """Begin to mark changes."""
        await self._run("block-dirty-bitmap-add", _bitmap(node, bitmap))

    async def forget(self, node: str, bitmap: str) -> None:
        """Remove a bitmap."""
        await self._run("block-dirty-bitmap-remove", {"node": node, "name": bitmap})

    async def bitmaps(self, node: str) -> dict[str, bool]:
        """The bitmaps of a disk, by name, and whether each can be believed."""
        found: Any = await self._run("query-named-block-nodes", {"flat": True})
        mine = next(each for each in found if each["node-name"] == node)
        return {each["name"]: not each.get("inconsistent", False) for each in mine.get("dirty-bitmaps", ())}

    async def marked(self, node: str, bitmap: str) -> list[Area]:
        """What a bitmap marks, in order, apart from each other."""
        context = f"qemu:dirty-bitmap:{bitmap}"
        async with (
            self.exported(node, bitmap=bitmap) as address,
            await open_export(address, contexts=(context,)) as export,
            aclosing(export.block_status(context, 0, export.size)) as said,
        ):
            return await _joined(said, lambda flags: bool(flags & 1))

    async def allocated(self, node: str) -> list[Area]:
        """What of a disk is not known to be zero, in order, apart from each other."""
        async with (
            self.exported(node) as address,
            await open_export(address) as export,
            aclosing(export.extents()) as extents,
        ):
            return await _joined(((each.offset, each.length, not each.zero) async for each in extents), bool)

    # --- exports -----------------------------------------------------------------------------------------------------

    async def export(self, name: str, node: str, *, writable: bool = False, bitmap: str | None = None) -> None:
        """Serve a node under a name, until `withdraw`."""
        options: dict[str, Any] = {"type": "nbd", "id": _export_id(name), "node-name": node, "name": name}
        options |= {"writable": writable, "bitmaps": [] if bitmap is None else [bitmap]}
        await self._run("block-export-add", options)

    async def withdraw(self, name: str) -> None:
        """Serve it no more: its connections are closed. Returns when the node is free."""
        with suppress(PlatformError):  # it is gone already
            await self._run("block-export-del", {"id": _export_id(name), "mode": "hard"})
        async for _ in Looks(_FIRST_LOOK, _LONGEST_PAUSE):
            if _export_id(name) not in await self._export_ids():
                break

    @asynccontextmanager
    async def exported(
        self, node: str, *, writable: bool = False, bitmap: str | None = None
    ) -> AsyncIterator[ExportAddress]:
        """A node, served within the lab for the time of the block."""
        name = self._new("inside")
        await self.export(name, node, writable=writable, bitmap=bitmap)
        try:
            yield ExportAddress(socket=self.socket, export=name)
        finally:
            await finish(self.withdraw(name), _CLEAN_UP_SECONDS)

    # --- the monitor -------------------------------------------------------------------------------------------------

    def _new(self, what: str) -> str:
        return f"{what}-{next(self._numbers)}"

    async def _run(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        try:
            return await self._monitor.execute(command, arguments)
        except ExecuteError as error:
            raise PlatformError(f"qemu-storage-daemon refused {command}: {printable(str(error))}") from error
        except QMPError as error:
            raise PlatformError(f"qemu-storage-daemon has gone: {printable(str(error))}") from error

    async def _export_ids(self) -> set[str]:
        exports: Any = await self._run("query-block-exports")
        return {each["id"] for each in exports}

    async def _jobs(self, wanted: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        jobs: Any = await self._run("query-jobs")
        return {job["id"]: job for job in jobs if job["id"] in wanted}

    async def _end_of(self, wanted: Sequence[str], progress: Callable[[int], None] | None = None) -> None:
        """Wait until jobs have ended, and dismiss them."""
        async for _ in Looks(_FIRST_LOOK, _LONGEST_PAUSE):
            jobs = await self._jobs(wanted)
            if all(job["status"] == "concluded" for job in jobs.values()):
                break
            if progress is not None:
                total = sum(job["total-progress"] for job in jobs.values())
                done = sum(job["current-progress"] for job in jobs.values())
                progress(min(99, 100 * done // max(1, total)))
        for job_id in jobs:
            await self._run("job-dismiss", {"id": job_id})
        for job in jobs.values():
            if "error" in job:
                raise PlatformError(f"qemu-storage-daemon: {job['type']} failed: {printable(job['error'])}")

    async def _drop(self, nodes: Sequence[str], jobs: Sequence[str]) -> None:
        for job in await self._jobs(jobs) if jobs else ():
            with suppress(PlatformError):  # it has ended by itself
                await self._run("job-cancel", {"id": job})
        with suppress(PlatformError):  # that they were cancelled is no news
            await self._end_of(jobs)
        for node in nodes:
            await self.detach(node)


@asynccontextmanager
async def storage(directory: Path) -> AsyncIterator[Storage]:
    """A storage daemon without disks, for the time of the block.

    Args:
        directory: Where its sockets are made; the path is short enough for a Unix socket.

    Raises:
        SourceError: It does not start.
    """
    ready, monitor_socket, socket = (directory / name for name in ("storage.pid", "monitor", "nbd"))
    command: list[str | Path] = ["qemu-storage-daemon", "--pidfile", ready]
    command += ["--chardev", f"socket,id=monitor,path={monitor_socket},server=on,wait=off"]
    command += ["--monitor", "chardev=monitor", "--nbd-server", f"addr.type=unix,addr.path={socket},max-connections=0"]
    monitor = QMPClient("sfasync-lab")
    async with running(command, ready.exists):
        try:
            async with asyncio.timeout(_START_SECONDS):
                await monitor.connect(str(monitor_socket))
            yield Storage(monitor, socket)
        finally:
            with suppress(QMPError, EOFError, OSError):  # the daemon went first, or cuts the connection off
                await finish(monitor.disconnect(), _CLEAN_UP_SECONDS)


def _actions(disk: Frozen, target: str, job: str) -> list[dict[str, object]]:
    actions: list[dict[str, object]] = []
    if disk.end is not None:
        actions.append({"type": "block-dirty-bitmap-disable", "data": {"node": disk.node, "name": disk.end}})
    if disk.begin is not None:
        actions.append({"type": "block-dirty-bitmap-add", "data": _bitmap(disk.node, disk.begin)})
    # `top` passes over what is not allocated; `full` would write tables for it, 1.3 GiB for a disk of 10 TiB.
    copy = {"job-id": job, "device": disk.node, "target": target, "sync": "top", "auto-dismiss": False}
    return [*actions, {"type": "blockdev-backup", "data": copy}]


def _bitmap(node: str, name: str) -> dict[str, object]:
    return {"node": node, "name": name, "granularity": GRANULARITY, "persistent": True}


def _export_id(name: str) -> str:
    """An id as QEMU takes it (letters, digits, ``-._``) for an export of any name."""
    return "export-" + name.encode().hex()


async def _joined(said: AsyncIterator[tuple[int, int, Any]], wanted: Callable[[Any], bool]) -> list[Area]:
    areas: list[Area] = []
    async for offset, length, flags in said:
        if not wanted(flags):
            continue
        if areas and sum(areas[-1]) == offset:
            areas[-1] = (areas[-1][0], areas[-1][1] + length)
        else:
            areas.append((offset, length))
    return areas
