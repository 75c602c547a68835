"""Removes what was made through a monitor for the time of a job: at its end, and after one that was killed.

Both are the same: what bears the monitor's name is looked for and removed, from what uses others to what is used::

    export -> backup job (with its filter) -> fleecing nodes -> bitmap -> NBD server -> files

Nothing of it is on the guest's path any more when the job is gone.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import msgspec

from ...errors import BusyError, PlatformError
from ...models import Leftover
from ...tasks import finish
from .fleecing import empty_files
from .inventory import Node, exports, nodes
from .monitor import CommandError, Monitor, open_monitor
from .places import Places
from .settings import QemuTimeouts, QemuVm

_T = TypeVar("_T")

_logger = logging.getLogger(__name__)

_LOOK: Final = 0.02


class _Job(msgspec.Struct, frozen=True, rename="kebab"):
    id: str
    status: str


class _Object(msgspec.Struct, frozen=True, rename="kebab"):
    name: str


@dataclass(slots=True)
class Sweep:
    """One look through a QEMU.

    Args:
        monitor: Which is ours alone.
        vm: The VM, for what is reported.
        settings: Its settings.
        places: Where its files are.
        patience: Seconds to wait for something to go.

    Attributes:
        found: What there was.
    """

    monitor: Monitor
    vm: str
    settings: QemuVm
    places: Places
    patience: float
    found: list[Leftover] = field(default_factory=list)

    async def run(self) -> list[Leftover]:
        """Remove everything.

        Raises:
            PlatformError: The monitor is lost.
        """
        await self._remove("export", await self._exports(), self._delete_export, self._exports)
        await self._remove("job", await self._jobs(), self._end_job, self._jobs)
        present = await nodes(self.monitor)
        await self._remove_fleecing(present)
        for node in present:
            await self._remove("bitmap", self._bitmaps(node), partial(self._delete_bitmap, node.node_name))
        await self._stop_server()
        self.places.clear()
        return self.found

    async def look(self) -> list[Leftover]:
        """What `run` would remove.

        Raises:
            PlatformError: The monitor is lost.
        """
        present = await nodes(self.monitor)
        for kind, names in (
            ("export", await self._exports()),
            ("job", await self._jobs()),
            ("node", self._fleecing(present, "fqdm")),
            ("bitmap", [bitmap for node in present for bitmap in self._bitmaps(node)]),
        ):
            self.found += [Leftover(kind=kind, id=name, vm=self.vm, removed=False) for name in names]
        return self.found

    async def _remove_fleecing(self, present: Sequence[Node]) -> None:
        for kind in "fqdm":  # from what uses others to what is used
            await self._remove("node", self._fleecing(present, kind), self._delete_node)
        if not self.places.local:  # the files have their names still; the next job uses them again
            for parts in map(self.places.parse, self._fleecing(present, "m")):
                assert parts is not None, "it was found by its name"
                await empty_files(self.monitor, self.places, parts[0])

    # --- what there is ---

    async def _exports(self) -> list[str]:
        return [export.id for export in await exports(self.monitor) if export.id.startswith(self.places.prefix)]

    async def _jobs(self) -> list[str]:
        jobs = await self.monitor.ask("query-jobs", tuple[_Job, ...])
        return [job.id for job in jobs if job.id.startswith(self.places.prefix)]

    def _fleecing(self, present: Sequence[Node], kinds: str) -> list[str]:
        """Our nodes of some kinds; the filters go with their jobs."""
        named = [(node.node_name, self.places.parse(node.node_name)) for node in present]
        return [name for name, parts in named if parts is not None and parts[1] in kinds]

    def _bitmaps(self, node: Node) -> list[str]:
        """Our bitmaps of a node, but for those that record changes."""
        names = [bitmap.name for bitmap in node.dirty_bitmaps]
        return [name for name in names if name.startswith(self.places.prefix)]

    # --- how it goes ---

    async def _remove(
        self,
        kind: str,
        names: Collection[str],
        remove: Callable[[str], Awaitable[None]],
        remaining: Callable[[], Awaitable[list[str]]] | None = None,
    ) -> None:
        """Remove things of one kind; with `remaining` they go some time after they were told to."""
        problems = dict.fromkeys(names, "")
        for name in names:
            try:
                await remove(name)
            except CommandError as error:
                problems[name] = error.said
        if remaining is not None and names:
            left = await self._until_gone(remaining)
            problems = {name: (problems[name] or "it does not go") if name in left else "" for name in names}
        self.found += [
            Leftover(kind=kind, id=name, vm=self.vm, removed=not problem, problem=problem)
            for name, problem in problems.items()
        ]

    async def _until_gone(self, remaining: Callable[[], Awaitable[list[str]]]) -> list[str]:
        end = asyncio.get_running_loop().time() + self.patience
        while left := await remaining():
            if asyncio.get_running_loop().time() > end:
                break
            await asyncio.sleep(_LOOK)
        return left

    async def _delete_export(self, name: str) -> None:
        await self.monitor.run("block-export-del", {"id": name, "mode": "hard"})

    async def _delete_node(self, name: str) -> None:
        await self.monitor.run("blockdev-del", {"node-name": name})

    async def _delete_bitmap(self, node: str, name: str) -> None:
        await self.monitor.run("block-dirty-bitmap-remove", {"node": node, "name": name})

    async def _end_job(self, name: str) -> None:
        """A job that runs is cancelled and goes by itself; one that creates a file has ended and wants to be seen."""
        jobs = await self.monitor.ask("query-jobs", tuple[_Job, ...])
        status = next((job.status for job in jobs if job.id == name), None)
        if status is not None:
            await self.monitor.run("job-dismiss" if status == "concluded" else "job-cancel", {"id": name})

    async def _stop_server(self) -> None:
        """Stop the NBD server if it is one that we started, and nobody else has exports there by now."""
        credentials = self.places.credentials
        objects: Sequence[_Object] = ()
        if self.settings.nbd.credentials is not None:
            objects = await self.monitor.ask("qom-list", tuple[_Object, ...], {"path": "/objects"})
        ours = any(entry.name == credentials for entry in objects) or self._answers()
        if ours and not any(export.type == "nbd" for export in await exports(self.monitor)):
            try:
                await self.monitor.run("nbd-server-stop")
            except CommandError as error:
                if "not running" not in error.said:
                    raise
            if objects:
                await self._remove("object", [credentials], self._delete_object)

    async def _delete_object(self, name: str) -> None:
        await self.monitor.run("object-del", {"id": name})

    def _answers(self) -> bool:
        """Whether a server listens on the socket that we give to ours."""
        if self.places.socket is None:
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            return probe.connect_ex(str(self.places.socket)) == 0


@dataclass(frozen=True, slots=True)
class Cleaner:
    """Sees that nothing of a job stays."""

    vm: str
    settings: QemuVm
    timeouts: QemuTimeouts
    places: Places

    async def sweep(self, monitor: Monitor) -> None:
        """Remove everything.

        Raises:
            PlatformError: Something stays, or the monitor is lost.
        """
        found = await Sweep(monitor, self.vm, self.settings, self.places, self.timeouts.clean).run()
        left = [f"{leftover.kind} {leftover.id} ({leftover.problem})" for leftover in found if not leftover.removed]
        if left:
            raise PlatformError(f"VM {self.vm!r}: what was made for a job is left in QEMU: {', '.join(left)}")

    @asynccontextmanager
    async def cleaning(self, monitor: Monitor) -> AsyncIterator[None]:
        """Remove everything on every way out of the block, cancelled or not.

        Raises:
            PlatformError: Something stays. Where the block failed, that goes first, and this is logged.
        """
        try:
            yield
        except BaseException:
            try:
                await self._finish(monitor)
            except PlatformError as error:
                _logger.warning("%s", error)
            raise
        await self._finish(monitor)

    async def _finish(self, monitor: Monitor) -> None:
        try:
            await finish(self._clean(monitor), self.timeouts.clean)
        except TimeoutError as error:
            raise PlatformError(
                f"VM {self.vm!r}: what was made for a job may be left in QEMU, it does not answer in time; the next "
                "backup removes it, or `sfasync cleanup`"
            ) from error

    async def _clean(self, monitor: Monitor) -> None:
        try:
            await self.sweep(monitor)
        except PlatformError:
            if monitor.alive:
                raise
            await self._clean_anew()

    async def _clean_anew(self) -> None:
        """Over a new connection: the old one is lost, and QEMU may be there still. Without it there are only files."""
        try:
            async with open_monitor(self.vm, self.settings, self.timeouts) as monitor:
                await self.sweep(monitor)
        except BusyError:  # whoever holds the monitor now has removed what was ours
            pass
        except PlatformError as error:
            _logger.info("QEMU is not cleaned up: %s", error)
            self.places.clear()
