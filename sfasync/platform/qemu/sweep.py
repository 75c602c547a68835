"""Removes what was made through a monitor for the time of a job: at its end, and after one that was killed.

Both are the same: what bears the monitor's name is looked for and removed, from what uses others to what is used::

    export -> backup job (with its filter) -> fleecing nodes -> bitmap -> NBD server -> files

Nothing of it is on the guest's path any more when the job is gone.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import msgspec

from ...errors import BusyError, PlatformError
from ...models import Leftover
from ...tasks import Looks, finish
from .fleecing import empty_files
from .inventory import Node, exports, nodes
from .monitor import CommandError, Monitor, open_monitor
from .names import Kind
from .places import Places
from .settings import QemuTimeouts, QemuVm

_logger = logging.getLogger(__name__)

_LOOK: Final = 0.02

_NODES: Final = (Kind.OVERLAY, Kind.QUORUM, Kind.DATA, Kind.MAP, Kind.SEAL_SOURCE, Kind.SEAL_TARGET)
"""From what uses others to what is used. The filters go with their jobs."""


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
        await self._remove_exports()
        await self._end_jobs()
        present = await nodes(self.monitor)
        for kind in _NODES:
            for name in self._nodes(present, kind):
                self._report("node", name, await self._refusal("blockdev-del", {"node-name": name}))
        if not self.places.local:  # the files have their names still; the next job uses them again
            for name in self._nodes(present, Kind.MAP):
                await empty_files(self.monitor, self.places, self.places.number(name))
        for node in present:
            for name in self._bitmaps(node):
                bitmap = {"node": node.node_name, "name": name}
                self._report("bitmap", name, await self._refusal("block-dirty-bitmap-remove", bitmap))
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
            ("job", [job.id for job in await self._jobs()]),
            ("node", self._nodes(present, *_NODES)),
            ("bitmap", [bitmap for node in present for bitmap in self._bitmaps(node)]),
        ):
            self.found += [Leftover(kind=kind, id=name, vm=self.vm, removed=False) for name in names]
        return self.found

    # --- what there is ---

    async def _exports(self) -> list[str]:
        return [export.id for export in await exports(self.monitor) if export.id.startswith(self.places.prefix)]

    async def _jobs(self) -> list[_Job]:
        jobs = await self.monitor.ask("query-jobs", tuple[_Job, ...])
        return [job for job in jobs if job.id.startswith(self.places.prefix)]

    def _nodes(self, present: Sequence[Node], *kinds: Kind) -> list[str]:
        """Our nodes of some kinds."""
        named = [(node.node_name, self.places.parse(node.node_name)) for node in present]
        return [name for name, parts in named if parts is not None and parts[1] in kinds]

    def _bitmaps(self, node: Node) -> list[str]:
        """Our bitmaps of a node, but for those that record changes."""
        names = [bitmap.name for bitmap in node.dirty_bitmaps]
        return [name for name in names if name.startswith(self.places.prefix)]

    # --- how it goes ---

    async def _remove_exports(self) -> None:
        """Close them, whoever reads; they go once the last request is answered."""
        names = await self._exports()
        problems = {name: await self._refusal("block-export-del", {"id": name, "mode": "hard"}) for name in names}
        left = await self._until_gone(self._exports)
        for name in names:
            self._report("export", name, (problems[name] or "it does not go") if name in left else "")

    async def _end_jobs(self) -> None:
        """Cancel those that run, which go by themselves then; those that make files end, and want that to be seen."""
        problems: dict[str, str] = {}

        async def remaining() -> list[str]:
            for job in await self._jobs():
                command = "job-dismiss" if job.status == "concluded" else "job-cancel"
                problems[job.id] = await self._refusal(command, {"id": job.id})
            return [job.id for job in await self._jobs()]

        left = await self._until_gone(remaining)
        for name, problem in problems.items():
            self._report("job", name, (problem or "it does not end") if name in left else "")

    async def _until_gone(self, remaining: Callable[[], Awaitable[list[str]]]) -> list[str]:
        """What remains when time is up."""
        async for _ in Looks(_LOOK, _LOOK, seconds=self.patience):
            left = await remaining()
            if not left:
                break
        return left

    async def _refusal(self, command: str, arguments: Mapping[str, object]) -> str:
        """Execute a command; what QEMU has against it."""
        try:
            await self.monitor.run(command, arguments)
        except CommandError as error:
            return error.said
        return ""

    def _report(self, kind: str, name: str, problem: str) -> None:
        self.found.append(Leftover(kind=kind, id=name, vm=self.vm, removed=not problem, problem=problem))

    async def _stop_server(self) -> None:
        """Stop the NBD server if it is one that we started, and nobody else has exports there by now."""
        credentials = self.places.credentials
        ours = self._answers()
        if self.settings.nbd.credentials is not None:
            objects = await self.monitor.ask("qom-list", tuple[_Object, ...], {"path": "/objects"})
            ours = any(entry.name == credentials for entry in objects)
        if not ours or any(export.type == "nbd" for export in await exports(self.monitor)):
            return
        problem = await self._refusal("nbd-server-stop", {})
        if problem and "not running" not in problem:
            self._report("server", "nbd", problem)
        if self.settings.nbd.credentials is not None:
            self._report("object", credentials, await self._refusal("object-del", {"id": credentials}))

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
