"""A job may be cancelled at any moment, also while it cleans up after having been cancelled, and leaves nothing.

Each job runs once without being disturbed, which counts its steps; then again and again, cancelled before step 0, 1, 2,
... of whatever task of it is running, and a second time a few steps later. `make test` takes a sample of these moments,
`make faults` all of them.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from sfasync import Engine, Repository
from sfasync.transport.export import Export, open_export
from sfasync.units import KiB, MiB

from .support.servers import Server, nbdkit
from .support.stepping import Stepper

SIZE = 2 * MiB + 512
SAMPLES = 10
SETTLE = 3.0
"""Seconds in which a thread may finish what it is in, and a server may notice that a connection is gone."""

Job = Callable[[], Coroutine[Any, Any, object]]

EVERY = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=[pytest.mark.faults, pytest.mark.timeout(3600)])]
)


@dataclass
class Stage:
    """Two servers, an engine and a repository, in which jobs run.

    Attributes:
        writer: A connection to the source that stays open.
        idle: Descriptors of the servers while there is no other connection, as of `connections`.
        random: Makes content that no backup has seen.
    """

    source: Server
    target: Server
    repository: Repository
    engine: Engine
    writer: Export
    random: random.Random
    directory: Path

    def __post_init__(self) -> None:
        self.idle = self.connections()

    async def renew(self) -> bytes:
        """Put something new on the source; gives its whole content."""
        content = self.random.randbytes(MiB) + bytes(MiB) + self.random.randbytes(512)
        await self.writer.write(0, content)
        return content

    def connections(self) -> list[int]:
        """How many descriptors the two servers have open, most of them connections."""
        return [len(_numbers(f"/proc/{server.pid}/fd")) for server in (self.source, self.target)]

    def traces(self) -> tuple[object, ...]:
        """What a job could leave behind: descriptors here and there, tasks, buffers."""
        descriptors = sorted(os.readlink(f"/proc/self/fd/{name}") for name in _numbers("/proc/self/fd"))
        return descriptors, self.connections(), len(asyncio.all_tasks()), repr(self.engine)

    async def nothing_left(self, before: tuple[object, ...], what: str) -> None:
        assert len(asyncio.all_tasks()) == 1, f"{what}: tasks left: {asyncio.all_tasks()}"
        assert " 0 of " in repr(self.engine), f"{what}: buffers left: {self.engine!r}"
        await settled(self.traces, before, what)


async def settled(state: Callable[[], object], wanted: object, what: str) -> None:
    """Wait until a state is what it should be."""
    deadline = asyncio.get_running_loop().time() + SETTLE
    while (now := state()) != wanted:
        assert asyncio.get_running_loop().time() < deadline, f"{what}: left {now}, not {wanted}"
        await asyncio.sleep(0.01)


def _numbers(directory: str) -> list[str]:
    """The descriptors of a process, without the one that lists them."""
    return [name for name in os.listdir(directory) if os.path.lexists(f"{directory}/{name}")]


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    with ExitStack() as stack:
        source, target = (stack.enter_context(nbdkit("memory", str(SIZE))) for _ in range(2))
        yield source, target


@pytest.fixture
async def stage(servers: tuple[Server, Server], tmp_path: Path) -> AsyncIterator[Stage]:
    source, target = servers
    async with (
        await Repository.open(tmp_path / "repository", create=True) as repository,
        Engine(repository) as engine,
        await open_export(source.uri) as writer,
    ):
        yield Stage(source, target, repository, engine, writer, random.Random(1), tmp_path)


async def cancel_everywhere(stage: Stage, job: Job, *, every: bool) -> str:
    """Cancel a job before each of its steps, or some of them, every other time twice; gives a report."""
    await stage.renew()
    whole = Stepper()
    (await whole.run(job)).result()
    await settled(stage.connections, stage.idle, "not cancelled")
    before = stage.traces()
    step = stride = 1 if every else max(1, whole.steps // SAMPLES)
    cancelled = second = 0
    for step in range(0, 100_000, stride):
        await stage.renew()
        stepper = Stepper(step, step + 1 + step % 7) if cancelled % 2 else Stepper(step)
        task = await stepper.run(job)
        await stage.nothing_left(before, f"cancelled before step {step} of about {whole.steps}")
        if not stepper.cancelled:
            task.result()
            break
        assert task.cancelled(), f"cancelled before step {step}, and yet {task!r}"
        cancelled += 1
        second += stepper.cancelled > 1
    (await Stepper().run(job)).result()
    return f"{whole.steps} steps, cancelled {cancelled} times, {second} of them twice, ended by itself at step {step}"


@EVERY
@pytest.mark.parametrize("name", ["backup", "backup of a snapshot", "restore to files", "restore to a disk", "copy"])
async def test_cancelled_at_every_step(name: str, every: bool, stage: Stage) -> None:
    engine, source, target = stage.engine, stage.source.uri, stage.target.uri
    content = await stage.renew()
    backup = await engine.backup_vm("web-01", disks={"vda": source})
    there = stage.directory / "restored"
    snapshots = count()

    async def restore_files() -> None:
        await engine.restore_vm(backup.id, to=there, force=True)

    jobs: dict[str, Job] = {
        "backup": lambda: engine.backup_vm("web-01", disks={"vda": source}),
        "backup of a snapshot": lambda: engine.backup_vm(
            "web-01", disks={"vda": source}, snapshot_id=f"snapshot {next(snapshots)}"
        ),
        "restore to files": restore_files,
        "restore to a disk": lambda: engine.restore_vm(backup.id, to_disks={"vda": target}),
        "copy": lambda: engine.copy(source, target),
    }
    report = await cancel_everywhere(stage, jobs[name], every=every)
    print(f"{name}: {report}")

    content = await stage.renew()
    again = await engine.backup_vm("web-01", disks={"vda": source})
    assert (await engine.verify(data=True)).ok
    await engine.restore_vm(again.id, to=there, force=True)
    assert (there / "vda.raw").read_bytes() == content
    assert [path.name for path in there.iterdir()] == ["vda.raw"]
    await engine.copy(source, target)
    async with await open_export(target) as export:
        assert await export.read(0, SIZE) == content


@EVERY
async def test_an_export_cancelled_at_every_step(every: bool, stage: Stage) -> None:
    """Opening, every call there is, and closing."""

    async def work() -> None:
        async with await open_export(stage.target.uri, connections=2) as export:
            await asyncio.gather(export.write(0, bytes(256 * KiB)), export.read(MiB, 256 * KiB))
            await export.zero(0, MiB)
            await export.trim(0, MiB)
            await export.cache(0, MiB)
            await export.flush()
            async with aclosing(export.extents()) as extents:
                async for _ in extents:
                    pass

    print(f"export: {await cancel_everywhere(stage, work, every=every)}")


@pytest.mark.parametrize("turns", range(1, 4))
async def test_closing_that_is_cancelled_closes_all_the_same(turns: int, stage: Stage) -> None:
    before = stage.traces()
    export = await open_export(stage.target.uri, connections=2)
    closing = asyncio.create_task(export.aclose())
    for _ in range(turns):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    try:
        await stage.nothing_left(before, f"cancelled after {turns} turns")
    finally:
        export.abort()


@pytest.mark.parametrize("cycles", [100, pytest.param(1000, marks=pytest.mark.faults)])
async def test_connecting_and_cancelling_again_and_again(cycles: int, certificates: Path) -> None:
    with nbdkit("memory", "1M") as plain, nbdkit("memory", "1M", tls=certificates) as secure:

        async def some(count: int) -> None:
            for number in range(count):
                task = asyncio.create_task(open_export((plain, secure)[number % 2].uri))
                for _ in range(number % 23):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    task.result().abort()
                    await task.result().aclose()

        await some(cycles // 2)
        gc.collect()
        resident, descriptors = _resident(), len(_numbers("/proc/self/fd"))
        await some(cycles)
        await asyncio.sleep(0)
        gc.collect()
        grown = _resident() - resident
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert len(_numbers("/proc/self/fd")) == descriptors
        assert grown < 5 * MiB
        print(f"{cycles} cycles: {grown / MiB:.1f} MiB")


def _resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
