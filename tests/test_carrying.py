"""Copies that threads carry: every byte, what is left to the pipeline, and how they end."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Set
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfasync import DeadlineError, Engine, Limits, Repository, Retry, SourceError, TargetError, Timeouts
from sfasync.blocking import Reader, Writer
from sfasync.buffers import BufferPool
from sfasync.carrying import STRETCH, _Distance, carriers, stretches
from sfasync.crew import Claim, Crew
from sfasync.extents import pieces
from sfasync.interfaces import Buffer
from sfasync.models import CopyResult
from sfasync.progress import Meter
from sfasync.transport.export import open_export
from sfasync.transport.line import PlainLine
from sfasync.units import GiB, KiB, MiB

from .support import peer
from .support.images import same_content
from .support.liar import Client, Request, liar
from .support.memory import MemoryDisk
from .support.resetting import resetting
from .support.servers import nbdkit, qemu_nbd

SIZE = 40 * MiB + 12 * KiB


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a hole, zeros that are written, and data that begins with zeros."""
    path = tmp_path_factory.mktemp("images") / "source.raw"
    source = random.Random(5)
    with path.open("wb") as file:
        file.write(source.randbytes(17 * MiB))
        file.seek(20 * MiB)
        file.write(bytes(2 * MiB) + bytes(100) + source.randbytes(9 * MiB))
        file.truncate(SIZE)
        file.seek(SIZE - 5)
        file.write(b"ended")
    return path


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No end is far away, and all connections are awaited, however busy the machine is."""
    monkeypatch.setattr("sfasync.transport.export._SOON", 5.0)
    monkeypatch.setattr("sfasync.carrying._PATIENCE", float("inf"))


def empty(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.usefixtures("patient")
async def test_from_an_export(image: Path, tmp_path: Path, certificates: Path, secure: bool) -> None:
    with nbdkit("file", image, tls=certificates if secure else None) as server:
        async with Engine() as engine:
            result = await engine.copy(server.uri, tmp_path / "copy.raw")
    assert same_content(image, tmp_path / "copy.raw")
    assert (result.size, result.bytes_read + result.bytes_zero) == (SIZE, SIZE)
    assert result.bytes_read < SIZE - MiB  # the hole was not
    assert result.requests in (2, 3)  # threads, each with one


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.usefixtures("patient")
async def test_to_an_export(image: Path, tmp_path: Path, certificates: Path, secure: bool) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(b"\xff" * SIZE)
    with nbdkit("file", target, tls=certificates if secure else None) as server:
        async with Engine() as engine:
            result = await engine.copy(image, server.uri, extents=False)
    assert same_content(image, target)
    assert (result.bytes_read, result.durable) == (SIZE, True)
    assert result.requests in (2, 3)


@pytest.mark.usefixtures("patient")
async def test_who_only_moves_bytes_leaves_the_processor_to_the_server(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies: set[int] = set()
    read_into = PlainLine.read_into

    def scheduled(self: PlainLine, offset: int, buffer: memoryview) -> None:
        policies.add(os.sched_getscheduler(0))
        read_into(self, offset, buffer)

    monkeypatch.setattr(PlainLine, "read_into", scheduled)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with nbdkit("file", image) as server:
        store = await Repository.open(tmp_path / "repository", create=True)
        async with store, Engine(store) as engine:
            await engine.copy(server.uri, "null:")
            assert policies == {os.SCHED_BATCH}
            policies.clear()
            await engine.backup_vm("vm", disks={"vda": server.uri})  # with the same threads
    assert policies == {os.SCHED_OTHER}, "who seals what it has read needs the processor itself"


@pytest.mark.parametrize("at", [0, 15 * MiB, 29 * MiB])
@pytest.mark.usefixtures("patient")
async def test_a_source_that_becomes_shorter_while_the_system_sends_it(
    image: Path, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, send = tmp_path / "source.raw", PlainLine.send

    def cut_and_send(self: PlainLine, offset: int, length: int, fileno: int) -> None:
        if offset <= at < offset + length:
            os.truncate(source, at + 1)
        send(self, offset, length, fileno)

    monkeypatch.setattr(PlainLine, "send", cut_and_send)
    shutil.copy(image, source)
    with nbdkit("memory", str(SIZE)) as server:
        async with Engine() as engine:
            with pytest.raises(SourceError, match=r"source\.raw became shorter"):
                await engine.copy(source, server.uri)


@pytest.mark.usefixtures("patient")
async def test_from_one_export_to_another(image: Path, tmp_path: Path) -> None:
    target = empty(tmp_path / "target.raw")
    with nbdkit("file", image) as source, qemu_nbd(target) as server:
        async with Engine() as engine:
            result = await engine.copy(source.uri, server.uri, destination_is_zero=True)
    assert same_content(image, target)
    assert result.requests in (2, 3)


@pytest.mark.usefixtures("patient")
async def test_requests_are_no_larger_than_the_server_takes(image: Path, tmp_path: Path) -> None:
    """The policy filter refuses what is larger, and on other boundaries."""
    limits = ("blocksize-minimum=4K", "blocksize-preferred=4K", "blocksize-maximum=64K", "blocksize-error-policy=error")
    with nbdkit("file", image, *limits, filters=("blocksize-policy",)) as server:
        async with Engine() as engine:
            result = await engine.copy(server.uri, tmp_path / "copy.raw")
    assert same_content(image, tmp_path / "copy.raw")
    assert result.requests in (2, 3)


async def test_a_server_that_is_far_away_is_left_to_the_pipeline(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfasync.carrying._WAITING", 0.0)  # part of the time of a piece, on a machine that is busy
    with nbdkit("file", image, "rdelay=40ms", filters=("delay",)) as server:
        async with Engine() as engine:
            result = await engine.copy(server.uri, tmp_path / "copy.raw")
    assert same_content(image, tmp_path / "copy.raw")
    assert result.requests > 3


async def test_a_server_that_comes_near_gets_its_threads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfasync.transport.export._SOON", 5.0)
    monkeypatch.setattr("sfasync.carrying._WAITING", 0.0)  # part of the time of a piece, on a machine that is busy
    monkeypatch.setattr("sfasync.recess._FIRST", 0.0)
    lengths: list[int] = []

    async def slow_at_first(client: Client) -> None:
        await client.open(96 * MiB)
        with suppress(asyncio.IncompleteReadError):
            while (request := await client.request()).kind == peer.READ:
                lengths.append(request.length)
                if len(lengths) <= 12:
                    await asyncio.sleep(0.04)
                else:
                    monkeypatch.setattr("sfasync.carrying._PATIENCE", float("inf"))
                await client.say(peer.data(request.cookie, request.offset, bytes(request.length), done=True))

    async with liar(slow_at_first) as address, Engine() as engine:
        result = await engine.copy(address, "null:", extents=False)
    assert result.bytes_read == 96 * MiB
    assert MiB in lengths, "the pipeline had it"
    assert result.requests in (2, 3), "and threads have ended it"


async def test_a_thread_that_hangs_does_not_hold_up_others_when_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfasync.transport.export._SOON", 5.0)
    monkeypatch.setattr("sfasync.carrying._RETREAT", 0.05)
    numbers = itertools.count()
    hanging = asyncio.Event()

    async def serve(client: Client) -> None:
        number = next(numbers)
        await client.open(64 * MiB)
        with suppress(asyncio.IncompleteReadError):
            while (request := await client.request()).kind == peer.READ:
                if number == 1:
                    await hanging.wait()
                    number = 9
                    await client.say(peer.error(request.cookie, 5, b"once"))
                elif number == 2:
                    hanging.set()
                    await client.request()  # never: it is cut
                else:
                    await client.say(peer.data(request.cookie, request.offset, bytes(request.length), done=True))

    async with asyncio.timeout(60), liar(serve) as address, Engine(timeouts=Timeouts(stall=300, request=300)) as engine:
        result = await engine.copy(address, "null:", extents=False)
    assert result.bytes_read == 64 * MiB


@pytest.mark.usefixtures("patient")
async def test_the_loop_gets_a_connection_when_its_own_is_lost_and_nobody_is_let_in() -> None:
    """It needs one for zeros, while threads have all others."""
    content = b"".join(bytes([number % 200 + 1]) * 4 * MiB + bytes(MiB) for number in range(8))
    written = bytearray(b"\xff" * len(content))

    async def serve(client: Client) -> None:
        await client.open(len(content))
        with suppress(asyncio.IncompleteReadError):
            while (request := await client.request()).kind != peer.DISC:
                if request.kind in (peer.WRITE, peer.WRITE_ZEROES):
                    end = request.offset + request.length
                    written[request.offset : end] = request.payload or bytes(request.length)
                await client.say(peer.simple(request.cookie))

    async def leave(client: Client) -> None:
        await client.open(len(content))
        while (await client.request()).kind != peer.WRITE_ZEROES:
            pass
        client.hang_up()

    async def refuse(client: Client) -> None:
        client.hang_up()

    source = ThreadedDisk(content, block_size=1, faults=frozenset(), far=1 << 30)
    scripts = (leave, serve, serve, serve, refuse)
    async with asyncio.timeout(60), liar(*scripts) as address, Engine(retry=Retry(delay=0.01, outage=300)) as engine:
        result = await engine.copy(source, address)
    assert written == content
    assert result.bytes_zero == 8 * MiB


@pytest.mark.parametrize("options", [{"requests": 2}, {"synchronous": True}, {"connections": 2}])
async def test_who_says_how_many_requests_gets_them(image: Path, options: dict[str, int]) -> None:
    with nbdkit("file", image) as server:
        async with Engine() as engine:
            result = await engine.copy(server.uri, "null:", **options)  # type: ignore[arg-type]  # one for all cases
    assert result.requests == {"requests": 8, "synchronous": 1}.get(next(iter(options)), result.requests)
    assert result.bytes_read + result.bytes_zero == SIZE


async def test_what_a_server_refuses_now_and_then_is_asked_for_again(image: Path, tmp_path: Path) -> None:
    with nbdkit("file", image, "error-pread=EIO", "error-pread-rate=20%", filters=("error",)) as server:
        async with Engine(retry=Retry(attempts=12)) as engine:
            await engine.copy(server.uri, tmp_path / "copy.raw", extents=False)
    assert same_content(image, tmp_path / "copy.raw")


async def test_a_bad_block_is_named(image: Path, tmp_path: Path) -> None:
    script = (
        'case "$1" in get_size) stat -Lc %s "$image";; '
        "can_multi_conn) exit 0;; "
        'pread) if [ $4 -le 30000128 ] && [ $(($4 + $3)) -gt 30000128 ]; then echo "EIO bad" >&2; exit 1; fi; '
        'dd if="$image" iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none;; *) exit 2;; esac'
    )
    plugin = tmp_path / "plugin"
    plugin.write_text(f"#!/bin/sh\nimage={image}\n{script}\n")
    plugin.chmod(0o755)
    with nbdkit("sh", plugin) as server:
        async with Engine(retry=Retry(attempts=2)) as engine:
            with pytest.raises(SourceError) as failure:
                await engine.copy(server.uri, "null:")
    assert failure.value.offset is not None
    assert failure.value.length is not None
    assert failure.value.offset <= 30000128 < failure.value.offset + failure.value.length <= failure.value.offset + 512


async def test_lost_connections_are_replaced(image: Path, tmp_path: Path) -> None:
    with nbdkit("file", image, "--threads=1", tcp=True) as server, resetting(server, every=7 * MiB, most=4) as proxy:
        async with Engine(retry=Retry(delay=0.01)) as engine:
            await engine.copy(proxy.uri, tmp_path / "copy.raw", extents=False)
    assert same_content(image, tmp_path / "copy.raw")
    assert proxy.resets == 4


async def test_lost_writes_are_written_again(image: Path, tmp_path: Path) -> None:
    """A connection that is lost takes what it wrote along, as far as anybody knows."""
    target = empty(tmp_path / "target.raw")
    with nbdkit("file", target, "--threads=1", tcp=True) as server, resetting(server) as proxy:

        async def interfere() -> None:
            while target.stat().st_blocks < 4 * MiB // 512:
                await asyncio.sleep(0.001)
            proxy.reset()

        async with Engine(retry=Retry(delay=0.01)) as engine:
            interference = asyncio.ensure_future(interfere())
            await engine.copy(image, proxy.uri, extents=False, request_size=64 * KiB)
            await interference
    assert same_content(image, target)
    assert proxy.resets > 0


async def test_a_full_disk_ends_it(image: Path, tmp_path: Path) -> None:
    with nbdkit("memory", str(SIZE), "error-pwrite=ENOSPC", "error-pwrite-rate=100%", filters=("error",)) as server:
        async with Engine() as engine:
            with pytest.raises(TargetError, match="ENOSPC"):
                await engine.copy(image, server.uri)


async def test_cancelling_is_prompt_and_polite(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Requests under way are answered before the connections are closed: no server sees one break off."""
    caplog.set_level(logging.INFO)
    with nbdkit("pattern", "100G") as server:
        async with Engine() as engine:
            handle = engine.start_copy(server.uri, "null:", extents=False)
            while not (handle.done or handle.progress().read):
                await asyncio.sleep(0.005)
            began = time.monotonic()
            handle.cancel()
            await handle.ended()
            assert time.monotonic() - began < 2
        assert "ECONNRESET" not in server.log.read_text()
        assert "reset by peer" not in server.log.read_text()
        async with await open_export(server.uri) as export:
            assert export.size == 100 << 30


@pytest.mark.parametrize("direction", ["read", "write"])
async def test_a_server_that_hangs_does_not_hold_up_a_cancellation(image: Path, direction: str) -> None:
    with nbdkit("memory", "64M") as server:
        async with Engine() as engine:
            async with asyncio.timeout(30):
                ends = (server.uri, "null:") if direction == "read" else (image, server.uri)
                handle = engine.start_copy(*ends, extents=False, request_size=32 * MiB)
                await asyncio.sleep(0)
                os.kill(server.pid, signal.SIGSTOP)
                try:
                    await asyncio.sleep(0.3)
                    handle.cancel()
                    await handle.ended()
                finally:
                    os.kill(server.pid, signal.SIGCONT)


async def test_a_server_that_hangs_is_given_up() -> None:
    with nbdkit("pattern", "100G") as server:
        timeouts = Timeouts(stall=0.6, request=5, close=0.2)
        async with Engine(timeouts=timeouts, retry=Retry(outage=0.0)) as engine:
            handle = engine.start_copy(server.uri, "null:", extents=False)
            while not (handle.done or handle.progress().read):
                await asyncio.sleep(0.005)
            os.kill(server.pid, signal.SIGSTOP)
            try:
                with pytest.raises(DeadlineError, match="no byte"):
                    await handle.result()
            finally:
                os.kill(server.pid, signal.SIGCONT)


async def test_with_little_memory(image: Path, tmp_path: Path) -> None:
    with nbdkit("file", image) as server:
        async with Engine(limits=Limits(memory=16 * MiB)) as engine:
            await engine.copy(server.uri, tmp_path / "copy.raw", request_size=16 * MiB)
    assert same_content(image, tmp_path / "copy.raw")


@pytest.mark.usefixtures("patient")
async def test_the_pipeline_has_all_connections_when_threads_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of a thread's carries one request at a time; those of the pipeline carry several."""
    monkeypatch.setattr("sfasync.carrying._PATIENCE", 0.0)  # long waits are told from a busy machine by their share
    monkeypatch.setattr("sfasync.carrying._WAITING", 0.0)
    most: list[int] = []

    async def far(client: Client) -> None:
        await client.open(64 * MiB)
        number, asked = len(most), 0
        most.append(0)

        async def answer(request: Request) -> None:
            nonlocal asked
            await asyncio.sleep(0.02)
            asked -= 1
            await client.say(peer.data(request.cookie, request.offset, bytes(request.length), done=True))

        async with asyncio.TaskGroup() as answers:
            with suppress(asyncio.IncompleteReadError):
                while (request := await client.request()).kind == peer.READ:
                    asked += 1
                    most[number] = max(most[number], asked)
                    answers.create_task(answer(request))

    async with liar(far) as address, Engine() as engine:
        result = await engine.copy(address, "null:", extents=False)
    assert result.bytes_read == 64 * MiB
    assert len(most) == 4
    assert min(most) > 1


@pytest.mark.parametrize(
    ("waits", "far"),
    [
        ([0.029], False),
        ([0.031], True),  # at the very first
        ([0.02, 0.02], True),  # of two threads, or of one
        ([0.02, 0.001, 0.02], False),
        ([0.001, 1.0, 1.0], False),  # hiccups of a near one
        ([0.001, 1.0, 1.0, 1.0], True),
        ([0.001, 0.02, 0.02, 0.02, 0.02], False),
        ([0.001, 0.02, 0.02, 0.02, 0.02, 0.02], True),
        ([0.001, 1.0, 1.0, 0.001, 1.0, 1.0], False),
    ],
)
def test_what_is_far(waits: list[float], far: bool) -> None:
    distance = _Distance(3)
    for waited in waits:
        assert not distance.far
        distance.judge(waited, waited)
    assert distance.far == far


def test_a_busy_machine_is_not_far() -> None:
    distance = _Distance(3)
    for _ in range(100):
        distance.judge(0.05, 0.1)  # everything takes longer
    assert not distance.far


def crew_of(count: int) -> Crew:
    crew = Crew()
    crew.count = count
    return crew


@given(end=st.integers(1, 1 << 50), offset=st.integers(0, 1 << 50), connections=st.integers(0, 64))
async def test_stretches_become_shorter_in_the_end(end: int, offset: int, connections: int) -> None:
    length_at = stretches(end, crew=crew_of(5), connections=connections, least=STRETCH)
    length = length_at(offset)
    assert length in {16 * MiB, 32 * MiB, 64 * MiB, 128 * MiB}
    hands = min(5, connections - 1)
    assert length == STRETCH or 2 * hands * length <= end - offset, "what each thread still has is a few of them"
    assert length >= length_at(offset + 1)


async def test_a_large_disk_is_moved_with_few_words() -> None:
    length_at = stretches(4 * GiB, crew=crew_of(3), connections=4, least=STRETCH)
    offset = words = 0
    while offset < 4 * GiB:
        offset += length_at(offset)
        words += 1
    assert words < 60


# --- any disk, any fault ---------------------------------------------------------------------------------------------


class ThreadedDisk(MemoryDisk):
    """A disk in memory for threads; a call in a thread that fails leaves the worst behind.

    Args:
        content: The bytes.
        block_size: Alignment of all calls.
        faults: Numbers of calls in threads that fail.
        far: Number of the call after which all take their time.
    """

    def __init__(self, content: bytes, *, block_size: int, faults: Set[int], far: int) -> None:
        super().__init__(content, grain=512, block_size=block_size)
        self.faults = faults
        self.far = far
        self.calls = itertools.count()
        self.busy = 0  # threads that are in a call
        self.used: set[_End] = set()

    @asynccontextmanager
    async def readers(self, count: int) -> AsyncIterator[list[Reader]]:
        yield [_End(self) for _ in range(count)]
        assert not self.busy

    @asynccontextmanager
    async def writers(self, count: int) -> AsyncIterator[list[Writer]]:
        yield [_End(self) for _ in range(count)]
        assert not self.busy


class _End:
    def __init__(self, disk: ThreadedDisk) -> None:
        self.waited = 0.0
        self._disk = disk
        self._stopped = threading.Event()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._call(offset, len(buffer)) as fails:
            buffer[:] = b"?" * len(buffer) if fails else self._disk.content[offset : offset + len(buffer)]

    def write(self, offset: int, data: Buffer) -> None:
        with self._call(offset, len(data)) as fails:
            self._disk.content[offset : offset + len(data)] = b"!" * len(data) if fails else data

    @contextmanager
    def _call(self, offset: int, length: int) -> Iterator[bool]:
        disk = self._disk
        assert offset % disk.block_size == 0
        assert length % disk.block_size == 0 or offset + length == disk.size
        number = next(disk.calls)
        disk.used.add(self)
        disk.busy += 1
        try:
            yield number in disk.faults
        finally:
            disk.busy -= 1
        if number >= disk.far:
            self.waited += 1.0
        if number in disk.faults:
            raise SourceError(f"call {number}")

    def settle(self) -> None:
        pass

    def stop(self) -> None:
        self._stopped.set()


async def test_where_others_have_their_turns_it_is_always_the_same_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a server has as many threads and buffers in its caches as are of use."""
    monkeypatch.setattr("sfasync.crew._LATE", 60.0)
    source, target = (ThreadedDisk(fill * 64 * KiB, block_size=512, faults=set(), far=1 << 40) for fill in (b"x", b"-"))
    crew, meter, pool = Crew(), Meter("vda", source.size), BufferPool(MiB)
    async with AsyncExitStack() as others:
        for _ in range(crew.count - 1):
            await others.enter_async_context(crew.hired(Claim()))
        async with carriers(source, target, crew=crew, connections=crew.count + 1, block=0, meter=meter) as threads:
            assert threads.count == crew.count
            plan = pieces(source.extents(), size=source.size, piece=KiB, alignment=512)
            async with aclosing(plan):
                assert await threads.carry(plan, target, piece=512, pool=pool) == []
    assert target.content == source.content
    assert (len(source.used), len(target.used)) == (1, 1)
    crew.close()


async def test_long_stretches_do_not_hold_up_other_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four disks of one stretch each, and three threads."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    monkeypatch.setattr("sfasync.crew._LATE", 60.0)
    monkeypatch.setattr("sfasync.carrying._NEWS", 1e-9)  # after each piece
    crew, pool = Crew(), BufferPool(MiB)
    read: list[str] = []

    class Noted(ThreadedDisk):
        """A disk that tells when it is read."""

        @asynccontextmanager
        async def readers(self, count: int) -> AsyncIterator[list[Reader]]:
            async with super().readers(count) as readers:
                for reader in readers:
                    monkeypatch.setattr(reader, "read_into", partial(self._note, reader.read_into))
                yield readers

        def _note(self, read_into: Callable[[int, memoryview], None], offset: int, buffer: memoryview) -> None:
            read.append(chr(self.content[0]))
            read_into(offset, buffer)

    async def move(name: str) -> None:
        content = name.encode() * 64 * KiB
        source = Noted(content, block_size=512, faults=set(), far=1 << 40)
        target = ThreadedDisk(bytes(len(content)), block_size=512, faults=set(), far=1 << 40)
        meter = Meter(name, source.size)
        async with (
            carriers(source, target, crew=crew, connections=3, block=0, meter=meter) as threads,
            aclosing(pieces(source.extents(), size=source.size, piece=64 * KiB, alignment=512)) as plan,
        ):
            assert await threads.carry(plan, target, piece=KiB, pool=pool) == []
        assert target.content == source.content

    await asyncio.gather(*(move(name) for name in "abcd"))
    assert max(read.index(name) for name in "abcd") < 12
    assert min(len(read) - read[::-1].index(name) for name in "abcd") > 4 * 64 - 12
    crew.close()


@dataclass(frozen=True)
class Case:
    """A copy: what is there, how it is made, what goes wrong."""

    content: bytes
    blocks: tuple[int, int]
    request_size: int | None
    sparse: int
    extents: bool
    zeroed: bool
    faults: tuple[frozenset[int], frozenset[int]]
    far: int
    news: float
    recess: float

    def disks(self) -> tuple[ThreadedDisk, ThreadedDisk]:
        source = ThreadedDisk(self.content, block_size=self.blocks[0], faults=self.faults[0], far=self.far)
        before = (b"\0" if self.zeroed else b"\xff") * len(self.content)
        return source, ThreadedDisk(before, block_size=self.blocks[1], faults=self.faults[1], far=self.far)

    async def copied(self, engine: Engine, source: ThreadedDisk, target: ThreadedDisk) -> CopyResult:
        return await engine.copy(
            source,
            target,
            request_size=self.request_size,
            sparse=self.sparse,
            extents=self.extents,
            destination_is_zero=self.zeroed,
        )


def _content(parts: list[tuple[int, int]]) -> bytes:
    return b"".join(bytes([byte]) * length for byte, length in parts)


cases = st.builds(
    Case,
    content=st.lists(
        st.tuples(st.sampled_from([0, 0, 1, 2]), st.sampled_from([1, 511, 512, 513, 4096, 8192, 12 * KiB, 30_000])),
        min_size=1,
        max_size=12,
    ).map(_content),
    blocks=st.tuples(*[st.sampled_from([1, 512, 4096])] * 2),
    request_size=st.sampled_from([None, 4 * KiB, 16 * KiB, 64 * KiB]),
    sparse=st.sampled_from([0, 512, 4 * KiB, 64 * KiB]),
    extents=st.booleans(),
    zeroed=st.booleans(),
    faults=st.tuples(*[st.frozensets(st.integers(0, 12), max_size=2)] * 2),
    far=st.sampled_from([0, 4, 1 << 30]),
    news=st.sampled_from([1e-9, 1.0]),
    recess=st.sampled_from([0.0, 600.0]),
)


@contextmanager
def small(case: Case) -> Iterator[None]:
    """Stretches and pieces of a few KiB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sfasync.copying.STRETCH", 16 * KiB)
        patch.setattr("sfasync.copying.PIECE", 8 * KiB)
        patch.setattr("sfasync.carrying._NEWS", case.news)
        patch.setattr("sfasync.recess._FIRST", case.recess)
        yield


@settings(max_examples=100)
@given(case=cases)
def test_every_byte_of_any_disk(case: Case) -> None:
    async def run() -> None:
        source, target = case.disks()
        async with Engine() as engine:
            result = await case.copied(engine, source, target)
            assert engine._resources.pool.in_use == 0
        assert target.content == source.content
        assert result.bytes_read + result.bytes_zero == result.size == len(case.content)
        assert next(source.calls) or not any(case.content)  # threads were there

    with small(case):
        asyncio.run(run())


@settings(max_examples=50)
@given(case=cases, turns=st.integers(0, 30))
def test_cancelling_at_any_moment(case: Case, turns: int) -> None:
    """Twice; nothing moves after it, and another copy puts everything right."""

    async def run() -> None:
        source, target = case.disks()
        async with Engine() as engine:
            copy = asyncio.ensure_future(case.copied(engine, source, target))
            for _ in range(turns):
                await asyncio.sleep(0)
            copy.cancel()
            await asyncio.sleep(0)
            copy.cancel()
            await asyncio.wait([copy])
            assert (source.busy, target.busy, engine._resources.pool.in_use) == (0, 0, 0)
            if case.zeroed:
                target.content[:] = bytes(target.size)
            await case.copied(engine, source, target)
        assert target.content == source.content

    with small(case):
        asyncio.run(run())


class Serving:
    """A server that keeps to the protocol and is of no help otherwise: short chunks, holes, errors, lost connections.

    Args:
        content: The disk.
        seed: Of everything it does.
    """

    def __init__(self, content: bytearray, seed: int) -> None:
        self.content = content
        self._random = random.Random(seed)

    async def __call__(self, client: Client) -> None:
        await client.open(len(self.content))
        while True:
            request = await client.request()
            chance = self._random.random()
            if chance < 0.02 and request.kind != peer.FLUSH:  # which nobody may repeat
                await client.say(peer.error(request.cookie, 5, b"not now"))
            elif chance < 0.04:
                await client.say(self._reply(request)[: self._random.randrange(1, 40)])
                client.hang_up()
                return
            else:
                await client.say(self._reply(request))

    def _reply(self, request: Request) -> bytes:
        start, end = request.offset, request.offset + request.length
        if request.kind == peer.READ:
            return self._chunks(request, start, end)
        if request.kind == peer.BLOCK_STATUS:
            return peer.status(request.cookie, [(request.length, 0)])
        if request.kind == peer.WRITE:
            self.content[start:end] = request.payload
        elif request.kind == peer.WRITE_ZEROES:
            self.content[start:end] = bytes(request.length)
        return peer.simple(request.cookie)

    def _chunks(self, request: Request, start: int, end: int) -> bytes:
        """The reply to a read: in one chunk, or in three, in any order."""
        cuts = sorted(self._random.sample(range(start, end + 1), 2)) if self._random.random() < 0.5 else []
        ranges = [(a, b) for a, b in itertools.pairwise([start, *cuts, end]) if a < b]
        self._random.shuffle(ranges)
        chunks = []
        for number, (first, last) in enumerate(ranges):
            content, done = bytes(self.content[first:last]), number == len(ranges) - 1
            hole = not any(content)
            chunks.append(
                peer.hole(request.cookie, first, last - first, done=done)
                if hole
                else peer.data(request.cookie, first, content, done=done)
            )
        return b"".join(chunks)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("patient")
async def test_servers_of_no_help(seed: int) -> None:
    """Both ends fail and are lost all the time."""
    chance = random.Random(seed)
    content = bytearray(b"".join(chance.choice([bytes(20_000), chance.randbytes(30_000)]) for _ in range(60)))
    source, target = Serving(content, seed), Serving(bytearray(b"\xff" * len(content)), seed + 100)
    with small(Case(b"", (1, 1), None, 0, True, False, (frozenset(), frozenset()), 0, 1.0, 0.0)):
        async with liar(source) as left, liar(target) as right, Engine(retry=Retry(attempts=50, delay=0.001)) as engine:
            result = await engine.copy(left, right)
    assert target.content == content
    assert result.bytes_read == len(content)
