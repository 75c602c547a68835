"""Faults of connections and servers, F1 to F9 and F13 of the project's list, as a table: what is done, how it ends.

Each row is a job of the engine against a real server that has the fault. A job either ends well, and then the bytes at
the other end are exactly those of the source, or it fails with the error of the row, and then there is no backup.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from sfasync import (
    BadBlockError,
    ConnectionLostError,
    Engine,
    ExportError,
    Limits,
    NbdError,
    Repository,
    Retry,
    SfasyncError,
    TargetRefusedError,
    Timeouts,
)
from sfasync.units import MiB

from ..support.resetting import Proxy, resetting
from ..support.servers import Server, nbdkit

SIZE = 24 * MiB
RETRY = Retry(outage=3.0, delay=0.005, max_delay=0.1)
TIMEOUTS = Timeouts(connect=1.0, stall=0.5)


@dataclass
class Scene:
    """A disk, and an engine with a repository.

    Attributes:
        directory: For whatever is needed.
        image: The disk.
        target: As large, and empty.
        engine: Backs up and restores.
        stack: Ends servers with the test.
        certificates: For those with TLS.
    """

    directory: Path
    image: Path
    target: Path
    engine: Engine
    stack: ExitStack
    certificates: Path

    def serve(self, *options: str, filters: tuple[str, ...] = (), tcp: bool = False, tls: bool = False) -> Server:
        known = self.certificates if tls else None
        options += ("--threads=1",) if tcp else ()  # behind a proxy (support/resetting.py)
        return self.stack.enter_context(nbdkit("file", self.image, *options, filters=filters, tcp=tcp, tls=known))

    def proxy(self, server: Server, *, every: int | None = None, polite: bool = False) -> Proxy:
        return self.stack.enter_context(resetting(server, every=every, polite=polite))

    def socket(self, server: Server) -> None:
        """Let the server be the one behind `uri`."""
        assert server.socket is not None
        path = self.directory / "socket"
        path.unlink(missing_ok=True)
        path.symlink_to(server.socket)

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.directory / 'socket'}"

    async def back_up(self, uri: str) -> None:
        """Back up the disk, restore it, and compare."""
        result = await self.engine.backup_vm("vm", {"vda": uri})
        await self.engine.restore_vm(result.id, to=self.directory / "restored")
        assert (self.directory / "restored" / "vda.raw").read_bytes() == self.image.read_bytes()

    async def restore(self, uri: str, meanwhile: Callable[[], Awaitable[None]] | None = None) -> None:
        """Restore the disk to a server, while something happens to it, and compare."""
        result = await self.engine.backup_vm("vm", {"vda": self.serve().uri})
        async with self.engine.start_restore(result.id, to_disks={"vda": uri}) as job:
            if meanwhile is not None:
                await meanwhile()
            await job.result()
        assert self.target.read_bytes() == self.image.read_bytes()


async def f1_reset_in_reads(scene: Scene) -> None:
    proxy = scene.proxy(scene.serve(tcp=True), every=3 * MiB)
    await scene.back_up(proxy.uri)
    assert proxy.resets > 3


async def f1_outage_that_is_too_long(scene: Scene) -> None:
    proxy = scene.proxy(scene.serve("rate=40M", filters=("rate",), tcp=True))
    async with scene.engine.start_backup("vm", {"vda": proxy.uri}) as job:
        while not job.progress().done:
            await asyncio.sleep(0.01)
        proxy.down = True
        proxy.reset()
        await job.result()


async def f2_reset_in_writes(scene: Scene) -> None:
    server = scene.stack.enter_context(
        nbdkit("file", scene.target, "wdelay=50ms", "--threads=1", tcp=True, filters=("delay",))
    )
    proxy = scene.proxy(server)

    async def resets() -> None:
        for _ in range(3):
            await asyncio.sleep(0.15)
            proxy.reset()

    await scene.restore(proxy.uri, resets)
    assert proxy.resets > 0


async def f2_transient_errors_of_writes(scene: Scene) -> None:
    rates = [f"error-{name}-rate=2%" for name in ("pwrite", "zero", "trim")]
    server = nbdkit("file", scene.target, "error=EIO", *rates, filters=("error",))
    await scene.restore(scene.stack.enter_context(server).uri)


async def f3_permanent_error(scene: Scene) -> None:
    read = 'if [ $4 -le 9216 ] && [ $(($4 + $3)) -gt 9216 ]; then echo EIO bad >&2; exit 1; fi; head -c "$3" /dev/zero'
    uri = scene.stack.enter_context(nbdkit("eval", "get_size=echo 2M", f"pread={read}")).uri
    try:
        await scene.back_up(uri)
    except BadBlockError as error:
        assert (error.disk, error.offset, error.length) == ("vda", 9216, 512)
        raise


async def f4_transient_errors_of_reads(scene: Scene) -> None:
    rates = [f"error-{name}-rate=2%" for name in ("pread", "extents")]
    await scene.back_up(scene.serve("error=EIO", *rates, filters=("error",)).uri)


async def f5_block_status_that_fails(scene: Scene) -> None:
    await scene.back_up(scene.serve("error=EIO", "error-extents-rate=1", filters=("error",)).uri)


async def f5_no_block_status(scene: Scene) -> None:
    await scene.back_up(scene.serve(filters=("noextents",)).uri)


async def f6_stall(scene: Scene) -> None:
    server = scene.serve("rate=40M", filters=("rate",))
    async with scene.engine.start_backup("vm", {"vda": server.uri}) as job:
        while not job.progress().done:
            await asyncio.sleep(0.01)
        os.kill(server.pid, signal.SIGSTOP)
        async with asyncio.timeout(10):
            await job.result()


async def f7_slow_server(scene: Scene) -> None:
    await scene.back_up(scene.serve("rdelay=300ms", filters=("delay",)).uri)


async def f7_narrow_link(scene: Scene) -> None:
    await scene.back_up(scene.serve("rate=100M", filters=("rate",)).uri)  # bits in a second


async def f8_polite_ends(scene: Scene) -> None:
    proxy = scene.proxy(scene.serve(tcp=True), every=3 * MiB, polite=True)
    await scene.back_up(proxy.uri)
    assert proxy.resets > 3


async def _restarted(scene: Scene, start: Callable[[], Server]) -> None:
    first = scene.serve("rate=40M", filters=("rate",))
    scene.socket(first)
    async with scene.engine.start_backup("vm", {"vda": scene.uri}) as job:
        while not job.progress().done:
            await asyncio.sleep(0.01)
        os.kill(first.pid, signal.SIGKILL)
        scene.socket(start())
        result = await job.result()
    await scene.engine.restore_vm(result.id, to=scene.directory / "restored")
    assert (scene.directory / "restored" / "vda.raw").read_bytes() == scene.image.read_bytes()


async def f8_server_started_again(scene: Scene) -> None:
    await _restarted(scene, scene.serve)


async def f8_another_size_after_that(scene: Scene) -> None:
    await _restarted(scene, lambda: scene.serve("truncate=1G", filters=("truncate",)))


async def f9_target_too_small(scene: Scene) -> None:
    server = scene.stack.enter_context(nbdkit("memory", str(SIZE - 512)))
    await scene.restore(server.uri)


async def f13_tls_cut_in_reads(scene: Scene) -> None:
    proxy = scene.proxy(scene.serve(tcp=True, tls=True), every=3 * MiB, polite=True)
    await scene.back_up(proxy.uri)
    assert proxy.resets > 3


async def f13_tls_reset_in_reads(scene: Scene) -> None:
    proxy = scene.proxy(scene.serve(tcp=True, tls=True), every=3 * MiB)
    await scene.back_up(proxy.uri)


Row = tuple[Callable[[Scene], Awaitable[None]], type[SfasyncError] | None, int]

TABLE: list[Row] = [
    (f1_reset_in_reads, None, 0),
    (f1_outage_that_is_too_long, ConnectionLostError, 20),
    (f2_reset_in_writes, None, 0),
    (f2_transient_errors_of_writes, None, 0),
    (f3_permanent_error, BadBlockError, 20),
    (f4_transient_errors_of_reads, None, 0),
    (f5_block_status_that_fails, None, 0),
    (f5_no_block_status, None, 0),
    (f6_stall, NbdError, 20),
    (f7_slow_server, None, 0),
    (f7_narrow_link, None, 0),
    (f8_polite_ends, None, 0),
    (f8_server_started_again, None, 0),
    (f8_another_size_after_that, ExportError, 20),
    (f9_target_too_small, TargetRefusedError, 2),
    (f13_tls_cut_in_reads, None, 0),
    (f13_tls_reset_in_reads, None, 0),
]


@pytest.mark.parametrize(("fault", "error", "code"), TABLE, ids=[row[0].__name__ for row in TABLE])
async def test_faults(
    fault: Callable[[Scene], Awaitable[None]],
    error: type[SfasyncError] | None,
    code: int,
    tmp_path: Path,
    certificates: Path,
) -> None:
    image, target = tmp_path / "disk.raw", tmp_path / "target.raw"
    image.write_bytes(random.Random(11).randbytes(SIZE - 4 * MiB) + bytes(4 * MiB))
    with target.open("wb") as file:
        file.truncate(SIZE)
    repository = await Repository.open(tmp_path / "repository", create=True)
    engine = Engine(repository, limits=Limits(connections=2), retry=RETRY, timeouts=TIMEOUTS)
    with ExitStack() as stack:
        async with repository, engine:
            scene = Scene(tmp_path, image, target, engine, stack, certificates)
            if error is None:
                await fault(scene)
                return
            with pytest.raises(error) as caught:
                await fault(scene)
            assert caught.value.exit_code == code
            assert "\n" not in str(caught.value)
            made = await repository.backups()
            assert len(made) == (1 if issubclass(error, TargetRefusedError) else 0)
            assert (await engine.verify(data=True)).ok
