"""Connections that are lost, servers that fail requests: what is repeated, what is not, and what it leads to."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from sfasync.errors import (
    BadBlockError,
    ConnectError,
    ConnectionLostError,
    DeadlineError,
    ExportError,
    RemoteProtocolError,
    RequestError,
    WritesLostError,
)
from sfasync.models import Extent, Retry, Timeouts
from sfasync.transport.export import Export, open_export
from sfasync.transport.stream import Stream
from sfasync.units import KiB, MiB

from ..contracts.sink import noise
from ..support import peer
from ..support.liar import Client, liar
from ..support.resetting import resetting
from ..support.servers import nbdkit, qemu_nbd

QUICK = Retry(outage=20.0, delay=0.005, max_delay=0.05)


async def read_all(export: Export, piece: int = MiB, lanes: int = 16) -> bytes:
    """The whole disk, in pieces, many at a time."""
    content = bytearray(export.size)
    turns = asyncio.Semaphore(lanes)

    async def read(offset: int) -> None:
        async with turns:
            with memoryview(content)[offset : offset + piece] as view:
                await export.read_into(offset, view)

    async with asyncio.TaskGroup() as group:
        for offset in range(0, export.size, piece):
            group.create_task(read(offset))
    return bytes(content)


async def write_all(export: Export, content: bytes, piece: int = MiB, lanes: int = 16) -> None:
    turns = asyncio.Semaphore(lanes)

    async def write(offset: int) -> None:
        async with turns:
            await export.write(offset, content[offset : offset + piece])

    async with asyncio.TaskGroup() as group:
        for offset in range(0, len(content), piece):
            group.create_task(write(offset))


def pattern(size: int) -> bytes:
    """What nbdkit's pattern plugin serves: each 8 bytes say where they are.

    Made as numbers of 64 KiB each, ten times faster than byte for byte.
    """
    step = 64 * KiB
    first = int.from_bytes(b"".join(offset.to_bytes(8, "big") for offset in range(0, step, 8)), "big")
    ones = int.from_bytes((1).to_bytes(8, "big") * (step // 8), "big")
    return b"".join((first + start * ones).to_bytes(step, "big") for start in range(0, size, step))[:size]


# --- reads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("connections", "tls", "resets"), [(1, False, 50), (4, False, 50), (1, True, 10), (4, True, 10)]
)
async def test_many_resets(
    connections: int, tls: bool, resets: int, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 5 * MiB * resets
    come = 0
    take = Stream.buffer_updated

    def counted(stream: Stream, count: int) -> None:
        nonlocal come
        come += count
        take(stream, count)

    # The proxy's own count would take in what a reset finds in the buffers of the kernel, which may be megabytes.
    monkeypatch.setattr(Stream, "buffer_updated", counted)
    with ExitStack() as stack:
        server = stack.enter_context(
            nbdkit("pattern", str(size), "--threads=1", tcp=True, tls=certificates if tls else None)
        )
        proxy = stack.enter_context(resetting(server, every=size // resets, most=resets))
        async with await open_export(proxy.uri, connections=connections, retry=QUICK) as export:
            assert await read_all(export, 256 * KiB) == pattern(size)
            assert export.retries > 0
    assert proxy.resets >= resets - 1
    assert size <= come <= 1.2 * size


async def test_polite_ends() -> None:
    with (
        nbdkit("pattern", "32M", "--threads=1", tcp=True) as server,
        resetting(server, every=3 * MiB, polite=True) as proxy,
    ):
        async with await open_export(proxy.uri, retry=QUICK) as export:
            assert await read_all(export) == pattern(32 * MiB)
    assert proxy.resets > 5


@pytest.mark.parametrize("cut", [0, 10, 20, 28, 100, 300, 539])
@pytest.mark.parametrize("structured", [True, False])
async def test_only_what_is_missing_is_asked_for(structured: bool, cut: int) -> None:
    content = noise(100 * KiB)
    asked: list[tuple[int, int]] = []

    def answer(cookie: int, offset: int, length: int) -> bytes:
        data = content[offset : offset + length]
        if not structured:
            return peer.simple(cookie, 0, data)
        half = length // 2
        return peer.data(cookie, offset + half, data[half:]) + peer.data(cookie, offset, data[:half], done=True)

    async def broken(client: Client) -> None:
        await client.open(100 * KiB, structured=structured)
        request = await client.request()
        asked.append((request.offset, request.length))
        await client.say(answer(request.cookie, request.offset, request.length)[: cut * 100])

    async def honest(client: Client) -> None:
        await client.open(100 * KiB, structured=structured)
        while (request := await client.request()).kind == peer.READ:
            asked.append((request.offset, request.length))
            await client.say(answer(request.cookie, request.offset, request.length))

    async with liar(broken, honest) as address, await open_export(address, retry=QUICK) as export:
        assert await export.read(0, 100 * KiB) == content
    come = sum(length for _, length in asked[1:])
    overhead = 2 * 28 if structured else 16
    assert 100 * KiB - cut * 100 <= come <= 100 * KiB - max(0, cut * 100 - overhead)


async def test_block_status_is_asked_again() -> None:
    async def broken(client: Client) -> None:
        await client.open(MiB)
        await client.request()

    async def honest(client: Client) -> None:
        await client.open(MiB)
        request = await client.request()
        await client.say(peer.status(request.cookie, [(MiB, 3)]))
        await client.silence()

    async with liar(broken, honest) as address, await open_export(address, retry=QUICK) as export:
        assert [extent async for extent in export.extents()] == [Extent(0, MiB, zero=True, hole=True)]


async def test_an_outage_that_ends_in_time_and_one_that_does_not() -> None:
    with nbdkit("pattern", "8M", "--threads=1", tcp=True) as server, resetting(server) as proxy:
        async with await open_export(proxy.uri, retry=QUICK) as export:
            proxy.down = True
            proxy.reset()
            task = asyncio.create_task(read_all(export))
            await asyncio.sleep(0.2)
            assert not task.done()
            proxy.down = False
            assert await task == pattern(8 * MiB)
        async with await open_export(proxy.uri, retry=Retry(outage=0.3, delay=0.01)) as export:
            proxy.down = True
            proxy.reset()
            for _ in range(2):  # the second time at once
                with pytest.raises(ConnectionLostError, match=r"could not be replaced within 0\.3 s"):
                    await export.read(0, 512)


async def test_cancelling_and_closing_in_an_outage() -> None:
    with nbdkit("pattern", "8M", "--threads=1", tcp=True) as server, resetting(server) as proxy:
        async with await open_export(proxy.uri, retry=QUICK) as export:
            proxy.down = True
            proxy.reset()
            buffer = memoryview(bytearray(MiB))
            task = asyncio.create_task(export.read_into(0, buffer))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
            waiting = asyncio.create_task(export.read(0, 512))
            await asyncio.sleep(0.05)
            async with asyncio.timeout(2):
                await export.aclose()
                with pytest.raises(ConnectionLostError):
                    await waiting


async def test_without_retries_a_loss_is_a_loss() -> None:
    with nbdkit("pattern", "8M", "--threads=1", tcp=True) as server, resetting(server) as proxy:
        async with await open_export(proxy.uri) as export:
            proxy.reset()
            with pytest.raises(ConnectionLostError):
                await export.read(0, 512)


async def test_the_first_connect_waits_only_when_asked(tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    uri = f"nbd+unix:///?socket={socket}"
    with pytest.raises(ConnectError):
        await open_export(uri, retry=QUICK)
    opening = asyncio.create_task(open_export(uri, retry=Retry(connect=20.0, delay=0.01, max_delay=0.05)))
    await asyncio.sleep(0.1)
    with nbdkit("memory", "1M") as server:
        assert server.socket is not None
        socket.symlink_to(server.socket)
        async with await opening as export:
            assert export.size == MiB


# --- another server, another disk ------------------------------------------------------------------------------------


def reading(size: int, flags: int = peer.ALL_FLAGS, *, requests: int) -> Callable[[Client], Awaitable[None]]:
    """Serves some reads of zeros and hangs up."""

    async def script(client: Client) -> None:
        await client.open(size, flags)
        for _ in range(requests):
            request = await client.request()
            await client.say(peer.data(request.cookie, request.offset, bytes(request.length), done=True))

    return script


@pytest.mark.parametrize(("size", "flags"), [(2 * MiB, peer.ALL_FLAGS), (MiB, peer.ALL_FLAGS | 2)])
async def test_another_disk_after_the_loss_is_fatal(size: int, flags: int) -> None:
    async with (
        liar(reading(MiB, requests=1), reading(size, flags, requests=9)) as address,
        await open_export(address, retry=QUICK) as export,
    ):
        assert await export.read(0, 512) == bytes(512)
        for _ in range(2):
            with pytest.raises(ExportError, match="not what they were"):
                await export.read(0, 512)


async def test_a_server_that_lies_is_not_asked_again() -> None:
    async def lies(client: Client) -> None:
        await client.open()
        request = await client.request()
        await client.say(peer.data(request.cookie + 7, 0, b"x" * 512, done=True))
        await client.silence()

    connected = 0

    async def counted(client: Client) -> None:
        nonlocal connected
        connected += 1
        await lies(client)

    async with liar(counted) as address, await open_export(address, retry=QUICK) as export:
        for _ in range(3):
            with pytest.raises(RemoteProtocolError):
                await export.read(0, 512)
    assert connected == 1


async def test_a_server_that_drops_every_connection_is_given_up() -> None:
    connected = 0

    async def drops(client: Client) -> None:
        nonlocal connected
        connected += 1
        await client.open()
        await client.request()

    async with liar(drops) as address, await open_export(address, retry=QUICK) as export:
        with pytest.raises(BadBlockError, match="cannot read 512 bytes at 0"):
            await export.read(0, 512)
        with pytest.raises(ConnectionLostError):
            await export.write(0, bytes(512))
    assert connected < 20


@pytest.mark.parametrize(("call", "events"), [("read", 3), ("write", 3), ("write", 4)])
async def test_what_is_lost_over_all_connections_in_one_event_is_lost_once(call: str, events: int) -> None:
    """Each event dooms all connections that are open: one is cut at the next request that comes over it."""
    standing: set[Client] = set()
    doomed: set[Client] = set()
    left = events
    cuts = 0

    async def cutting(client: Client) -> None:
        nonlocal left, cuts
        await client.open()
        standing.add(client)
        request = await client.request()
        if request.kind == peer.DISC:
            return
        if left and client not in doomed:
            left -= 1
            doomed.update(standing)
        if client in doomed:
            cuts += 1
        elif request.kind == peer.READ:
            await client.say(peer.data(request.cookie, 0, b"x" * 512, done=True))
        else:
            await client.say(peer.chunk(request.cookie, peer.NONE, done=True))

    retry = Retry(attempts=4, outage=20.0, delay=0.005, max_delay=0.05)
    async with liar(cutting) as address, await open_export(address, connections=4, retry=retry) as export:
        while export.connections < 4:
            await asyncio.sleep(0.01)
        if call == "read":
            assert await export.read(0, 512) == b"x" * 512
        elif events < retry.attempts:
            await export.write(0, bytes(512))
        else:
            with pytest.raises(ConnectionLostError):
                await export.write(0, bytes(512))
    assert cuts == events + 1  # two in the first one, after which the request waits for a new connection each time


async def test_a_suspect_does_not_wait_for_a_server_that_lets_nobody_in() -> None:
    """Of four connections two are cut, and there is no fifth."""
    cuts = 0

    async def cutting(client: Client) -> None:
        nonlocal cuts
        await client.open()
        request = await client.request()
        if cuts < 2:
            cuts += 1
            return
        await client.say(peer.chunk(request.cookie, peer.NONE, done=True))
        await client.silence()

    async def refusing(client: Client) -> None:
        client.hang_up()

    scripts = [cutting] * 4 + [refusing]
    async with liar(*scripts) as address, await open_export(address, connections=4, retry=QUICK) as export:
        while export.connections < 4:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(QUICK.outage / 2):
            await export.write(0, bytes(512))
        assert export.connections == 2
    assert cuts == 2


async def test_a_server_that_is_shutting_down_is_left() -> None:
    async def leaving(client: Client) -> None:
        await client.open()
        request = await client.request()
        await client.say(peer.error(request.cookie, 108, b"going down"))
        await client.silence()

    async with (
        liar(leaving, reading(1 << 20, requests=1)) as address,
        await open_export(address, retry=QUICK) as export,
    ):
        assert await export.read(0, 512) == bytes(512)


async def test_a_second_stall_is_the_end() -> None:
    async def silent(client: Client) -> None:
        await client.open()
        await client.silence()

    timeouts = Timeouts(stall=0.2, request=5.0)
    async with liar(silent) as address, await open_export(address, retry=QUICK, timeouts=timeouts) as export:
        began = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineError):
            await export.read(0, 512)
        assert asyncio.get_running_loop().time() - began < 3


# --- refusals and bad blocks -----------------------------------------------------------------------------------------

BAD = 3 * MiB + 1024

IN_BAD = f"[ $4 -le {BAD} ] && [ $(($4 + $3)) -gt {BAD} ]"


def bad_sector_by_eio(stack: ExitStack, directory: Path) -> str:
    script = f'if {IN_BAD}; then echo EIO bad sector >&2; exit 1; fi; head -c "$3" /dev/zero'
    return stack.enter_context(nbdkit("eval", "get_size=echo 8M", f"pread={script}")).uri


def bad_sector_by_dropping(stack: ExitStack, directory: Path) -> str:
    """qemu-nbd answers an error of its block layer below by ending the connection."""
    image = directory / "image"
    image.write_bytes(bytes(8 * MiB))
    fault = f"event=none,iotype=read,sector={BAD // 512},errno=5"
    options = ",".join(f"file.inject-error.0.{part}" for part in fault.split(","))
    return stack.enter_context(
        qemu_nbd(
            f"driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={image},{options}",
            "--image-opts",
            "--discard=ignore",
        )
    ).uri


BAD_DISKS = {"EIO": bad_sector_by_eio, "dropping": bad_sector_by_dropping}


@pytest.mark.parametrize("kind", BAD_DISKS)
async def test_a_bad_sector_is_named(kind: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        async with await open_export(BAD_DISKS[kind](stack, tmp_path), retry=QUICK) as export:
            reads = [export.read(offset, MiB) for offset in range(0, 8 * MiB, MiB)]
            results = await asyncio.gather(*reads, return_exceptions=True)
            (error,) = [result for result in results if isinstance(result, BaseException)]
            assert isinstance(error, BadBlockError)
            assert (error.offset, error.length) == (BAD, 512)
            assert f"cannot read 512 bytes at {BAD}" in str(error)
            assert export.retries < 100
            assert await export.read(BAD + 512, 512) == bytes(512)


@pytest.mark.parametrize("kind", BAD_DISKS)
async def test_a_bad_sector_among_parts_is_named(kind: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        async with await open_export(BAD_DISKS[kind](stack, tmp_path), retry=QUICK) as export:
            buffer = memoryview(bytearray(b"x" * 8 * 4096))
            parts = [(n * MiB + BAD % MiB, buffer[n * 4096 : (n + 1) * 4096]) for n in range(8)]
            with pytest.raises(BadBlockError) as caught:
                await export.read_scattered(parts)
            assert (caught.value.offset, caught.value.length) == (BAD, 512)
            good = [part for part in parts if not part[0] <= BAD < part[0] + 4096]
            await export.read_scattered(good)
            assert all(view == bytes(4096) for _, view in good)
            assert len(good) == 7


@pytest.mark.parametrize("kind", BAD_DISKS)
async def test_reading_around_a_bad_sector(kind: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        async with await open_export(BAD_DISKS[kind](stack, tmp_path), retry=QUICK) as export:
            buffer = bytearray(b"x" * 2 * MiB)
            bad = await export.read_around(2 * MiB, memoryview(buffer), most=512)
            assert bad == [Extent(BAD, 512)]
            assert buffer == bytes(2 * MiB)
            with pytest.raises(BadBlockError):
                await export.read_around(2 * MiB, memoryview(buffer), most=511)
            assert await export.read_around(0, memoryview(buffer), most=0) == []


async def test_neighbouring_bad_sectors_are_one_range() -> None:
    script = (
        'if [ $(($4 + $3)) -gt 4096 ] && [ $4 -lt 8192 ]; then echo EIO bad >&2; exit 1; fi; head -c "$3" /dev/zero'
    )
    with nbdkit("eval", "get_size=echo 64K", f"pread={script}") as server:
        async with await open_export(server.uri, retry=QUICK) as export:
            assert await export.read_around(0, memoryview(bytearray(64 * KiB)), most=4096) == [Extent(4096, 4096)]


@pytest.mark.parametrize("call", ["write", "zero", "trim"])
async def test_writes_are_refused_for_good_only_after_some_attempts(call: str) -> None:
    name = {"write": "pwrite"}.get(call, call)
    with nbdkit("memory", "1M", f"error-{name}-rate=1", "error=EIO", filters=("error",)) as server:
        async with await open_export(server.uri, retry=QUICK) as export:
            calls: dict[str, Callable[[], Awaitable[object]]] = {
                "write": lambda: export.write(0, bytes(512)),
                "zero": lambda: export.zero(0, 512),
                "trim": lambda: export.trim(0, 512),
            }
            with pytest.raises(RequestError, match="EIO"):
                await calls[call]()
            assert export.retries == QUICK.attempts - 1


async def test_what_the_server_means_is_not_asked_again() -> None:
    with nbdkit("memory", "1M", "error-pwrite-rate=1", "error=ENOSPC", filters=("error",)) as server:
        async with await open_export(server.uri, retry=QUICK) as export:
            with pytest.raises(RequestError, match="ENOSPC"):
                await export.write(0, bytes(512))
            assert export.retries == 0


async def test_errors_that_come_and_go() -> None:
    """2 % of everything fails."""
    rates = [f"error-{name}-rate=2%" for name in ("pread", "pwrite", "zero", "trim", "extents", "cache")]
    with nbdkit("memory", "32M", "error=EIO", *rates, filters=("error",)) as server:
        async with await open_export(server.uri, connections=2, retry=QUICK) as export:
            content = noise(32 * MiB)
            await write_all(export, content, 64 * KiB)
            await export.zero(MiB, 4096)
            await export.cache(0, MiB)
            assert [extent.zero for extent in [e async for e in export.extents(0, MiB)]] == [False]
            assert await read_all(export, 64 * KiB) == content[:MiB] + bytes(4096) + content[MiB + 4096 :]
            assert export.retries > 5


# --- writes and flushes ----------------------------------------------------------------------------------------------


async def test_a_flush_that_failed_stays_failed() -> None:
    async def script(client: Client) -> None:
        await client.open()
        answers = iter([5, 0])
        while True:
            request = await client.request()
            await client.say(peer.simple(request.cookie, next(answers) if request.kind == peer.FLUSH else 0))

    async with liar(script) as address, await open_export(address, retry=QUICK) as export:
        await export.write(0, bytes(512))
        with pytest.raises(RequestError, match="EIO"):
            await export.flush()
        with pytest.raises(RequestError, match="an earlier flush failed"):
            await export.flush()
        assert export.retries == 0


async def test_writes_that_nobody_vouches_for_have_to_be_written_again() -> None:
    content = noise(8 * MiB)
    with nbdkit("memory", "8M", "--threads=1", tcp=True) as server, resetting(server) as proxy:
        async with await open_export(proxy.uri, retry=QUICK) as export:
            await export.write(0, content[: 2 * MiB])
            await export.flush()
            await export.write(2 * MiB, content[2 * MiB : 4 * MiB])
            proxy.reset()
            await export.write(4 * MiB, content[4 * MiB :])
            for _ in range(2):
                with pytest.raises(WritesLostError, match="2097152 bytes") as caught:
                    await export.flush()
                assert caught.value.ranges == ((2 * MiB, 4 * MiB),)
            await export.write(2 * MiB, content[2 * MiB : 3 * MiB])
            with pytest.raises(WritesLostError) as caught:
                await export.flush()
            assert caught.value.ranges == ((3 * MiB, 4 * MiB),)
            await export.write(3 * MiB, content[3 * MiB : 4 * MiB], fua=True)
            assert await export.flush() is True
            proxy.reset()
            assert await export.flush() is True
            assert await read_all(export) == content


async def test_a_connection_that_stayed_vouches_for_those_that_went() -> None:
    with nbdkit("memory", "8M", "--threads=1", tcp=True) as server, resetting(server) as proxy:
        async with await open_export(server.uri, retry=QUICK, connections=4) as export:
            await write_all(export, noise(8 * MiB), 64 * KiB)
            assert export.connections == 4, "writes wait for all of them"
            for connection in export._connections.each()[1:]:
                connection.abort(ConnectionLostError("cut"))
            await asyncio.sleep(0)
            await export.write(0, bytes(4096))
            assert await export.flush() is True
        assert proxy.resets == 0


async def test_writes_in_flight_are_written_again() -> None:
    content = random.Random(7).randbytes(32 * MiB)
    with nbdkit("memory", "32M", "--threads=1", tcp=True) as server, resetting(server) as proxy:
        async with await open_export(proxy.uri, retry=QUICK) as export:
            task = asyncio.create_task(write_all(export, content, 256 * KiB))
            for _ in range(4):
                await asyncio.sleep(0.02)
                proxy.reset()
            await task
            assert await read_all(export) == content


async def test_a_server_started_again_with_an_empty_disk(tmp_path: Path) -> None:
    """What it had acknowledged is gone; the flush says so instead of succeeding."""
    socket = tmp_path / "socket"
    with ExitStack() as stack:

        def start() -> int:
            server = stack.enter_context(nbdkit("memory", "1M"))
            assert server.socket is not None
            socket.unlink(missing_ok=True)
            socket.symlink_to(server.socket)
            return server.pid

        first = start()
        async with await open_export(f"nbd+unix:///?socket={socket}", retry=QUICK) as export:
            await export.write(0, b"x" * 4096)
            os.kill(first, signal.SIGKILL)
            start()
            await export.write(8192, b"y" * 4096)
            with pytest.raises(WritesLostError) as caught:
                await export.flush()
            for begin, end in caught.value.ranges:
                await export.write(begin, b"x" * (end - begin))
            assert await export.flush() is True
            assert await export.read(0, 12288) == b"x" * 4096 + bytes(4096) + b"y" * 4096


async def test_nothing_is_kept_of_what_failed(tmp_path: Path) -> None:
    """A traceback that somebody keeps must not keep the caller's memory."""
    with ExitStack() as stack:
        async with await open_export(bad_sector_by_eio(stack, tmp_path), retry=QUICK) as export:
            buffer = bytearray(MiB)
            with pytest.raises(BadBlockError) as caught:
                await export.read_into(3 * MiB, memoryview(buffer))
            buffer.append(0)  # fails while a view of it is alive
            assert caught.tb is not None


def test_the_proxy_is_not_in_the_way() -> None:
    with nbdkit("pattern", "4M", "--threads=1", tcp=True) as server, resetting(server) as proxy:
        port = proxy.uri.rpartition(":")[2].strip("/")
        subprocess.run(["nbdinfo", "--size", f"nbd://127.0.0.1:{port}/"], check=True, capture_output=True)
        assert proxy.resets == 0
