"""A connection in the hands of a thread: servers are judged as on the loop, and it goes back there whatever happens."""

from __future__ import annotations

import asyncio
import random
import resource
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol, cast

import pytest

from sfasync.blocking import FileWriter
from sfasync.errors import ConnectionLostError, DeadlineError, RemoteProtocolError, RequestError, WritesLostError
from sfasync.interfaces import Buffer
from sfasync.models import Retry, Timeouts
from sfasync.transport.export import Export, open_export
from sfasync.transport.line import Line
from sfasync.units import MiB
from sfasync.workers import Workers, settled

from ..support import peer
from ..support.behaviours import BEHAVIOURS, READ, SIZE, Behaviour, reads, writes
from ..support.liar import Client, Request, Script, liar
from ..support.servers import nbdkit

HURRIED = Timeouts(stall=0.3, request=0.6, close=0.2)

MET = [
    behaviour
    for behaviour in BEHAVIOURS
    if behaviour.using in (reads, writes) and behaviour.name != "replies_in_chunks_that_were_refused"
]
"""What a read or write of one connection may meet, if it is described as the first one is."""


@pytest.fixture
def thread() -> Iterator[Workers]:
    workers = Workers(1)
    yield workers
    workers.close()


class Opened(Protocol):
    """An export with a connection for each script; `readers` and `writers` lend all but the first."""

    def __call__(
        self, *scripts: Script, timeouts: Timeouts | None = None, retry: Retry | None = None
    ) -> AbstractAsyncContextManager[Export]: ...


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def secure(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def opened(secure: bool, certificates: Path) -> Opened:
    @asynccontextmanager
    async def opened(
        *scripts: Script, timeouts: Timeouts | None = None, retry: Retry | None = None
    ) -> AsyncIterator[Export]:
        async with (
            liar(*scripts, certificates=certificates if secure else None) as address,
            await open_export(address, connections=len(scripts), timeouts=timeouts, retry=retry) as export,
        ):
            assert await export.connected() == len(scripts)
            yield export

    return opened


async def read(thread: Workers, export: Export, length: int) -> bytes:
    """The first bytes of an export, read by a thread."""
    buffer = bytearray(length)
    async with export.readers(1) as (reader,):
        await settled(thread.submit(reader.read_into, 0, memoryview(buffer)), stop=reader.stop)
    return bytes(buffer)


async def write(thread: Workers, export: Export, offset: int, data: Buffer) -> None:
    async with export.writers(1) as (writer,):
        await settled(thread.submit(writer.write, offset, data), stop=writer.stop)


async def honest(client: Client) -> None:
    """Serve an export of zeros."""
    await client.open(SIZE)
    while True:
        await answer(client, await client.request())


async def answer(client: Client, request: Request) -> None:
    if request.kind == peer.READ:
        await client.say(peer.data(request.cookie, request.offset, bytes(request.length), done=True))
    else:
        await client.say(peer.simple(request.cookie))


# --- what servers say ------------------------------------------------------------------------------------------------


@pytest.mark.one_loop
@pytest.mark.parametrize("behaviour", MET, ids=[f"{each.threat}-{each.name}" for each in MET])
async def test_hostile_servers_end_as_on_the_loop(
    thread: Workers, secure: bool, behaviour: Behaviour, opened: Opened
) -> None:
    if secure and behaviour.name == "closes_its_half_within_the_data":
        pytest.skip("asyncio does not close one half of TLS")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    async def hostile(client: Client) -> None:
        await behaviour.script(client, context)
        await client.silence()

    async with asyncio.timeout(10), opened(honest, hostile, timeouts=None if behaviour.patient else HURRIED) as export:
        with pytest.raises(behaviour.error, match=behaviour.says) as caught:
            if behaviour.using is reads:
                await read(thread, export, READ)
            else:
                await write(thread, export, 0, bytes(READ))
        assert type(caught.value) is behaviour.error
        assert export.connections == (2 if behaviour.lives else 1)


async def test_what_a_server_says_after_nonsense_is_not_heard(thread: Workers, opened: Opened) -> None:
    """Also not by another thread, which has the connection before the loop knows."""

    async def raving(client: Client) -> None:
        await client.open(SIZE)
        await client.request()
        await client.say(b"nonsense" * 4)
        await answer(client, await client.request())

    async with asyncio.timeout(10), opened(honest, raving) as export, export.readers(1) as (reader,):
        buffer = memoryview(bytearray(READ))
        for error in (RemoteProtocolError, ConnectionLostError, ConnectionLostError):
            with pytest.raises(error):
                await settled(thread.submit(reader.read_into, 0, buffer), stop=reader.stop)


def cut(content: bytes, *at: int) -> list[bytes]:
    return [content[start:end] for start, end in zip((0, *at), (*at, len(content)), strict=True)]


CONTENT = bytes(range(1, 201)) + bytes(56)

REPLIES: dict[str, Callable[[int], list[bytes]]] = {
    "in one": lambda cookie: [peer.data(cookie, 0, CONTENT, done=True)],
    "byte by byte": lambda cookie: [bytes([byte]) for byte in peer.data(cookie, 0, CONTENT, done=True)],
    "cut in the header": lambda cookie: cut(peer.data(cookie, 0, CONTENT, done=True), 3, 20),
    "cut in the data": lambda cookie: cut(peer.data(cookie, 0, CONTENT, done=True), 28, 29, 200),
    "done by itself": lambda cookie: [peer.data(cookie, 0, CONTENT), peer.chunk(cookie, peer.NONE, done=True)],
    "in pieces": lambda cookie: [
        peer.data(cookie, 100, CONTENT[100:]) + peer.data(cookie, 0, CONTENT[:50]),
        peer.data(cookie, 50, CONTENT[50:100], done=True),
    ],
    "with a hole": lambda cookie: [peer.data(cookie, 0, CONTENT[:200]) + peer.hole(cookie, 200, 56, done=True)],
    "a hole first": lambda cookie: cut(peer.hole(cookie, 200, 56) + peer.data(cookie, 0, CONTENT[:200], done=True), 31),
}


@pytest.mark.parametrize("said", REPLIES.values(), ids=REPLIES)
async def test_replies_of_all_shapes(thread: Workers, said: Callable[[int], list[bytes]], opened: Opened) -> None:
    """Afterwards thread and loop go on where the other one stopped."""

    async def script(client: Client) -> None:
        await client.open(SIZE)
        while True:
            request = await client.request()
            for part in said(request.cookie):
                await client.say(part)
                await asyncio.sleep(0)

    async def unused(client: Client) -> None:
        await client.open(SIZE)
        await client.silence()

    async with opened(unused, script) as export:
        for _ in range(3):
            assert await read(thread, export, len(CONTENT)) == CONTENT
        export._connections.each()[0].abort()
        assert await export.read(0, len(CONTENT)) == CONTENT
        assert export.connections == 1


@pytest.mark.parametrize("structured", [False, True], ids=["simple", "structured"])
async def test_refusals_leave_the_connection_as_it_was(thread: Workers, structured: bool, opened: Opened) -> None:
    async def first(client: Client) -> None:
        await client.open(SIZE, structured=structured)
        await client.silence()

    async def second(client: Client) -> None:
        await client.open(SIZE, structured=structured)
        request = await client.request()
        await client.say(peer.error(request.cookie, 5) if structured else peer.simple(request.cookie, 5))
        request = await client.request()
        assert request.payload == b"x" * 10
        await client.say(peer.simple(request.cookie, 28))
        request = await client.request()
        await client.say(
            peer.chunk(request.cookie, peer.NONE, done=True) if structured else peer.simple(request.cookie)
        )
        await client.silence()

    async with opened(first, second) as export:
        with pytest.raises(RequestError, match="EIO"):
            await read(thread, export, 100)
        with pytest.raises(RequestError, match="ENOSPC"):
            await write(thread, export, 7, b"x" * 10)
        await write(thread, export, 7, b"x" * 10)
        assert export.connections == 2


# --- who may have it -------------------------------------------------------------------------------------------------


async def test_what_is_closing_is_not_lent(opened: Opened) -> None:
    """The transport knows before its end is told."""
    async with opened(honest, honest, honest) as export:
        transport = export._connections.each()[1]._stream._transport
        assert transport is not None
        transport.close()
        async with export.readers(2) as readers:
            assert len(readers) == 1
        assert await export.read(0, 10) == bytes(10)


async def test_without_descriptors_nothing_is_lent(opened: Opened) -> None:
    async with opened(honest, honest, honest) as export:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            async with export.readers(2) as readers:
                assert readers == []
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await asyncio.gather(*(export.read(0, 10) for _ in range(6)))  # over all of them
        assert export.connections == 3


async def test_requests_wait_for_a_replacement_while_threads_have_the_others(thread: Workers, opened: Opened) -> None:
    async with opened(leaves, honest, retry=Retry(delay=0.01)) as export:
        async with export.readers(2) as (reader,):
            assert await export.read(0, 10) == bytes(10)
            buffer = memoryview(bytearray(b"x" * READ))
            await settled(thread.submit(reader.read_into, 0, buffer))
            assert buffer == bytes(READ)
        assert export.connections == 2


async def leaves(client: Client) -> None:
    await client.open(SIZE)
    await client.request()
    client.hang_up()


async def lets_nobody_in(client: Client) -> None:
    client.hang_up()


async def test_who_has_no_connection_left_takes_one_from_a_thread(thread: Workers) -> None:
    """The server may let nobody else in: at its limit, it counts a connection that is lost on our side only."""
    async with (
        asyncio.timeout(30),
        liar(leaves, honest, honest, lets_nobody_in) as address,
        await open_export(address, connections=3, retry=Retry(delay=0.01)) as export,
    ):
        assert await export.connected() == 3
        async with export.readers(2) as readers:
            assert await export.read(0, 10) == bytes(10)
            given_up = 0
            for reader in readers:
                with suppress(ConnectionLostError):
                    await settled(thread.submit(reader.read_into, 0, memoryview(bytearray(READ))))
                    continue
                given_up += 1
            assert given_up == 1
            async with export.readers(2) as others:
                assert others == [], "it stays"
            assert await export.read(0, 10) == bytes(10)
        assert export.connections == 2
        async with export.readers(2) as readers:
            assert len(readers) == 1


async def test_a_connection_is_taken_when_the_request_under_way_is_answered(thread: Workers) -> None:
    asked, wanted = asyncio.Event(), asyncio.Event()

    async def patient(client: Client) -> None:
        await client.open(SIZE)
        request = await client.request()
        asked.set()
        await wanted.wait()
        while True:
            await answer(client, request)
            request = await client.request()

    async with (
        asyncio.timeout(30),
        liar(leaves, patient, lets_nobody_in) as address,
        await open_export(address, connections=2, retry=Retry(delay=0.01)) as export,
    ):
        assert await export.connected() == 2
        async with export.writers(1) as (writer,):
            writing = thread.submit(writer.write, 0, b"x" * 100)
            more = thread.submit(writer.write, 100, b"x" * 100)
            await asked.wait()
            reading = asyncio.ensure_future(export.read(0, 10))
            while not export._connections.each()[-1].called_back:
                await asyncio.sleep(0.001)
            wanted.set()
            await settled(writing)
            with pytest.raises(ConnectionLostError, match="given up"):
                await settled(more)
            assert await reading == bytes(10)
            assert await export.flush(), "of what the thread has written"


async def test_without_retries_one_is_taken_at_once(thread: Workers, opened: Opened) -> None:
    async with opened(honest, honest) as export, export.readers(1) as (reader,):
        export._connections.each()[0].abort()
        assert await export.read(0, 10) == bytes(10)
        with pytest.raises(ConnectionLostError, match="given up"):
            await settled(thread.submit(reader.read_into, 0, memoryview(bytearray(READ))))


# --- durability ------------------------------------------------------------------------------------------------------


async def test_a_flush_goes_over_a_connection_that_no_thread_has(thread: Workers, opened: Opened) -> None:
    async with opened(honest, honest, retry=Retry(delay=0.01)) as export, export.writers(1) as (writer,):
        await settled(thread.submit(writer.write, 0, b"x" * 100))
        writer.settle()
        async with asyncio.timeout(5):
            assert await export.flush()


async def test_a_flush_waits_for_the_only_connection_that_can_vouch(thread: Workers, opened: Opened) -> None:
    heard: list[list[int]] = []

    async def vouches(client: Client) -> None:
        await client.open(SIZE)
        kinds: list[int] = []
        heard.append(kinds)
        while True:
            request = await client.request()
            kinds.append(request.kind)
            await answer(client, request)

    async with opened(honest, vouches, retry=Retry(delay=0.01)) as export:
        async with export.writers(1) as (writer,):
            await settled(thread.submit(writer.write, 0, b"x" * 100))
            writer.settle()
            export._connections.each()[0].abort()
            flush = asyncio.ensure_future(export.flush())
            await export.read(0, 10)  # over the replacement, which knows nothing of the write
            assert not flush.done()
        async with asyncio.timeout(5):
            assert await flush
        assert heard == [[peer.WRITE, peer.FLUSH], [peer.READ]]


async def test_writes_that_were_acknowledged_before_the_loss_are_missed(thread: Workers, opened: Opened) -> None:
    async def forgets(client: Client) -> None:
        await client.open(SIZE)
        await answer(client, await client.request())
        await client.request()
        client.hang_up()

    async with opened(honest, forgets, retry=Retry(delay=0.01)) as export:
        async with export.writers(1) as (writer,):
            await settled(thread.submit(writer.write, 4096, b"x" * 100))
            with pytest.raises(ConnectionLostError):
                await settled(thread.submit(writer.write, 8192, b"y" * 100))
            export._connections.each()[0].abort()
        with pytest.raises(WritesLostError) as lost:
            await export.flush()
        assert list(lost.value.ranges) == [(4096, 4196)]


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["read", "write"])
async def test_a_stop_ends_a_call_that_goes_on_and_on(
    thread: Workers, kind: str, monkeypatch: pytest.MonkeyPatch, opened: Opened
) -> None:
    monkeypatch.setattr("sfasync.transport.line._GRACE", 0.1)
    begun = asyncio.Event()

    async def first(client: Client) -> None:
        await client.open(64 * MiB)
        await client.silence()

    async def drips(client: Client) -> None:
        await client.open(64 * MiB)
        request = await client.request()
        await client.say(peer.chunk(request.cookie, peer.OFFSET_DATA, bytes(8), done=True, length=8 + request.length))
        while True:
            await client.say(b"x")
            begun.set()
            await asyncio.sleep(0.02)

    async def sips(client: Client) -> None:
        await client.open(64 * MiB)
        while True:
            await client.hear(1 << 16)
            begun.set()
            await asyncio.sleep(0.02)

    data = bytearray(32 * MiB)
    async with asyncio.timeout(10), opened(first, drips if kind == "read" else sips) as export:
        call = read(thread, export, len(data)) if kind == "read" else write(thread, export, 0, data)
        task = asyncio.ensure_future(call)
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert export.connections == 1


async def test_closing_an_export_takes_its_connections_from_threads(thread: Workers, opened: Opened) -> None:
    asked = asyncio.Event()

    async def deaf(client: Client) -> None:
        await client.open(SIZE)
        await client.request()
        asked.set()
        await client.deafness()

    async with asyncio.timeout(10), opened(honest, deaf, timeouts=Timeouts(close=0.1)) as export:
        reading = asyncio.ensure_future(read(thread, export, READ))
        await asked.wait()
        await export.aclose()
        with pytest.raises(ConnectionLostError):
            await reading
        assert export.connections == 0


async def test_a_stop_between_two_calls_costs_nothing(thread: Workers, opened: Opened) -> None:
    async with opened(honest, honest) as export:
        async with export.readers(1) as (reader,):
            reader.stop()
            with pytest.raises(ConnectionLostError, match="given up"):
                await settled(thread.submit(reader.read_into, 0, memoryview(bytearray(10))))
        assert export.connections == 2
        assert await read(thread, export, 10) == bytes(10)


async def test_a_server_that_is_busy_is_given_up(thread: Workers) -> None:
    with nbdkit("memory", "1M", "rdelay=5", filters=("delay",)) as server:
        async with await open_export(server.uri, connections=2, timeouts=HURRIED) as export:
            await export.connected()
            with pytest.raises(DeadlineError, match="no byte came or left"):
                await read(thread, export, READ)


async def test_a_server_that_is_slow_is_not_given_up(
    thread: Workers, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has come counts, and not only calls that are over: one of OpenSSL may last until all is there."""
    clock = SimpleNamespace(now=0.0)
    times = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=time.perf_counter)
    monkeypatch.setattr("sfasync.transport.line.time", times)
    asked, more = asyncio.Event(), asyncio.Event()

    async def slow(client: Client) -> None:
        await client.open(SIZE)
        request = await client.request()
        asked.set()
        for part in cut(peer.data(request.cookie, 0, bytes(request.length), done=True), 1000, request.length // 2):
            await more.wait()
            more.clear()
            await client.say(part)
        await client.silence()

    async with (
        asyncio.timeout(10),
        opened(honest, slow, timeouts=Timeouts(stall=30)) as export,
        export.readers(1) as readers,
    ):
        (reader,) = cast("list[Line]", readers)
        reading = thread.submit(reader.read_into, 0, memoryview(bytearray(SIZE)))
        await asked.wait()
        for clock.now in (20, 45):
            more.set()
            while reader._progress < clock.now:
                reader.watch()
                await asyncio.sleep(0.001)
        clock.now = 70
        reader.watch()
        more.set()
        await settled(reading, stop=reader.stop)


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
async def test_thread_and_loop_take_turns(thread: Workers, tcp: bool, secure: bool, certificates: Path) -> None:
    with nbdkit("memory", "8M", tcp=tcp, tls=certificates if secure else None) as server:
        async with await open_export(server.uri, connections=2) as export:
            await export.connected()
            for turn in range(3):
                data = bytes([turn + 1]) * (3 * MiB + turn)
                await write(thread, export, turn * MiB, data)
                length = turn * MiB + len(data)
                assert await read(thread, export, length) == await export.read(0, length)
                assert await export.read(turn * MiB, len(data)) == data
            export._connections.each()[0].abort()
            assert await export.read(2 * MiB, MiB) == b"\3" * MiB
            assert export.connections == 1


async def send(thread: Workers, export: Export, offset: int, length: int, path: Path) -> None:
    async with export.writers(1) as (writer,):
        assert isinstance(writer, FileWriter)
        with path.open("rb") as file:
            await settled(thread.submit(writer.send, offset, length, file.fileno()), stop=writer.stop)


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
async def test_a_file_is_sent_by_the_system(thread: Workers, tmp_path: Path, tcp: bool) -> None:
    path, content = tmp_path / "file", random.Random(1).randbytes(5 * MiB + 3)
    path.write_bytes(content)
    limits = ("blocksize-minimum=1", "blocksize-preferred=4K", "blocksize-maximum=64K", "blocksize-error-policy=error")
    with nbdkit("memory", "8M", *limits, filters=("blocksize-policy",), tcp=tcp) as server:
        async with await open_export(server.uri, connections=2) as export:
            await export.connected()
            await send(thread, export, 7, MiB, path)
            await send(thread, export, 3 * MiB, 2 * MiB + 3, path)
            expected = bytes(7) + content[7 : MiB + 7] + bytes(2 * MiB - 7) + content[3 * MiB :]
            assert await export.read(0, len(expected)) == expected


async def test_a_file_that_becomes_shorter_ends_the_connection(thread: Workers, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * MiB)
    with nbdkit("memory", "8M") as server:
        async with await open_export(server.uri, connections=2) as export:
            await export.connected()
            with pytest.raises(ConnectionLostError, match="became shorter"):
                await send(thread, export, 0, MiB + 1, path)
            assert await export.read(4 * MiB, 10) == bytes(10)
            assert export.connections == 1


async def test_a_file_that_cannot_be_read_ends_the_connection(thread: Workers, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * MiB)
    with nbdkit("memory", "8M") as server:
        async with await open_export(server.uri, connections=2) as export:
            await export.connected()
            async with export.writers(1) as (writer,):
                assert isinstance(writer, FileWriter)
                with pytest.raises(ConnectionLostError, match="Bad file descriptor"):
                    await settled(thread.submit(writer.send, 0, MiB, 1 << 20), stop=writer.stop)
            assert export.connections == 1


async def test_threads_get_no_tls_that_they_cannot_drive(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfasync.openssl.library", lambda: None)
    with nbdkit("memory", "1M", tls=certificates) as server:
        async with await open_export(server.uri, connections=2) as export:
            await export.connected()
            async with export.readers(1) as readers, export.writers(1) as writers:
                assert (readers, writers) == ([], [])
            await export.write(1000, b"data")
            assert await export.read(999, 6) == b"\0data\0"
