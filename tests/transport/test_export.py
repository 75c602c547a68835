from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import mmap
import random
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from sfasync.errors import (
    ConnectError,
    ConnectionLostError,
    ExportError,
    RemoteProtocolError,
    RequestError,
    UriError,
    UsageError,
)
from sfasync.models import ExportAddress, Extent, Timeouts
from sfasync.nbd import const
from sfasync.nbd.handshake import ExportEntry
from sfasync.nbd.uri import parse_uri
from sfasync.transport.export import Export, open_export
from sfasync.transport.inquiry import list_exports, query_export
from sfasync.units import GiB, KiB, MiB, TiB

from ..contracts.sink import SinkCase, SinkContract, noise
from ..contracts.source import SourceCase, SourceContract
from ..support import peer
from ..support.liar import Client, liar
from ..support.servers import Server, nbd_server, nbdkit, qemu_nbd, storage_daemon

ODD = 4 * MiB + 512

Serve = Callable[[ExitStack, Path, Path], Server]


def in_memory(*args: str, tcp: bool = False, tls: bool = False, filters: tuple[str, ...] = ()) -> Serve:
    """An nbdkit with an empty disk of ODD bytes."""

    def serve(stack: ExitStack, directory: Path, certificates: Path) -> Server:
        known = certificates if tls else None
        return stack.enter_context(nbdkit("memory", str(ODD), *args, tcp=tcp, tls=known, filters=filters))

    return serve


def on_qcow2(*, tls: bool = False) -> Serve:
    def serve(stack: ExitStack, directory: Path, certificates: Path) -> Server:
        image = directory / "image.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(ODD)], check=True)
        return stack.enter_context(qemu_nbd(image, fmt="qcow2", tls=certificates if tls else None))

    return serve


def on_file(*, tls: bool = False) -> Serve:
    def serve(stack: ExitStack, directory: Path, certificates: Path) -> Server:
        (directory / "image").write_bytes(bytes(ODD))
        return stack.enter_context(nbd_server(directory / "image", tls=certificates if tls else None))

    return serve


SERVERS = {
    "nbdkit": in_memory(),
    "nbdkit-tls-tcp": in_memory(tls=True, tcp=True),
    "nbdkit-without-options": in_memory("--mask-handshake=0"),
    "nbdkit-512": in_memory("blocksize-minimum=512", "blocksize-maximum=64K", filters=("blocksize-policy",)),
    "qemu-tls": on_qcow2(tls=True),
    "nbd-server": on_file(),
}
MORE_SERVERS = {
    "nbdkit-tcp": in_memory(tcp=True),
    "nbdkit-tls": in_memory(tls=True),
    "nbdkit-simple-replies": in_memory("--no-sr"),
    "nbdkit-noextents": in_memory(filters=("noextents",)),
    "nbdkit-nozero": in_memory("zeromode=none", filters=("nozero",)),
    "qemu": on_qcow2(),
    "nbd-server-tls": on_file(tls=True),
}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path, certificates: Path) -> Iterator[Server]:
    with ExitStack() as stack:
        yield SERVERS[request.param](stack, tmp_path, certificates)


@pytest.fixture
async def export(server: Server) -> AsyncIterator[Export]:
    async with await open_export(server.uri) as export:
        yield export


@pytest.mark.parametrize("name", MORE_SERVERS)
async def test_bytes_survive(name: str, tmp_path: Path, certificates: Path) -> None:
    with ExitStack() as stack:
        server = MORE_SERVERS[name](stack, tmp_path, certificates)
        content = bytearray(noise(ODD))
        async with await open_export(server.uri) as export:
            await export.write(0, content)
            await export.zero(MiB, 2 * MiB)
            await export.flush()
        content[MiB : 3 * MiB] = bytes(2 * MiB)
        async with await open_export(server.uri) as export:
            assert await export.read(0, ODD) == content
            extents = [extent async for extent in export.extents()]
            assert sum(extent.length for extent in extents) == ODD
            assert not any(any(content[extent.offset : extent.end]) for extent in extents if extent.zero)


class TestSource(SourceContract):
    @pytest.fixture
    async def source_case(self, export: Export) -> AsyncIterator[SourceCase]:
        content = noise(MiB) + bytes(MiB) + noise(64 * KiB)
        content += bytes(ODD - len(content) - 512) + noise(512)
        await export.write(0, content)
        await export.zero(MiB, MiB)
        yield SourceCase(export, content)


class TestSink(SinkContract):
    @pytest.fixture
    async def sink_case(self, export: Export, server: Server) -> AsyncIterator[SinkCase]:
        async def content() -> bytes:
            async with await open_export(server.uri) as reader:
                return await reader.read(0, reader.size)

        yield SinkCase(export, content)


# --- what it is ------------------------------------------------------------------------------------------------------


async def test_what_a_server_says_of_itself() -> None:
    with nbdkit("memory", "64M", "--exportname=x") as server:
        async with await open_export(server.uri) as export:
            assert export.size == 64 * MiB
            assert (export.block_size, export.maximum_block_size) == (1, 32 * MiB)
            assert export.can_flush and export.can_fua and export.can_trim and export.can_zero
            assert export.can_fast_zero and export.can_cache and export.can_multi_conn
            assert not export.read_only
            assert export.contexts == ("base:allocation",)
            assert export.connections == 1
            assert str(server.socket) in repr(export)
    with pytest.raises(ConnectError):
        await open_export(server.uri)


async def test_block_sizes_are_kept() -> None:
    sizes = (
        "blocksize-minimum=4K",
        "blocksize-preferred=64K",
        "blocksize-maximum=128K",
        "blocksize-error-policy=error",
    )
    with nbdkit("memory", "1M", *sizes, filters=("blocksize-policy",)) as server:
        async with await open_export(server.uri) as export:
            assert (export.block_size, export.preferred_block_size, export.maximum_block_size) == (4096, 65536, 131072)
            content = noise(MiB)
            await export.write(0, content)
            assert await export.read(0, MiB) == content
            await export.zero(4096, 512 * KiB)
            assert await export.read(0, MiB) == content[:4096] + bytes(512 * KiB) + content[4096 + 512 * KiB :]
            assert [e async for e in export.extents(100, 200)] == [Extent(100, 200)]
            for attempt in (
                export.read(512, 4096),
                export.read(0, 512),
                export.write(0, b"x"),
                export.zero(0, 100),
                export.trim(1, 4096),
                export.cache(1, 4096),
            ):
                with pytest.raises(UsageError, match=r"minimum block size of .* is 4096 bytes"):
                    await attempt
        assert "Invalid argument" not in server.log.read_text()


async def test_ranges_outside_are_refused() -> None:
    with nbdkit("memory", "1M") as server:
        async with await open_export(server.uri) as export:
            for attempt in (
                export.read(MiB, 1),
                export.read(-1, 1),
                export.write(MiB - 1, b"ab"),
                export.zero(0, MiB + 1),
            ):
                with pytest.raises(UsageError, match="is not inside the 1048576 bytes"):
                    await attempt
            with pytest.raises(UsageError, match="is not inside the 1048576 bytes"):
                export.extents(MiB, 1)
            with pytest.raises(UsageError, match="is not inside the 1048576 bytes"):
                export.block_status("base:allocation", 0, 2 * MiB)
            with pytest.raises(UsageError, match="was not selected"):
                export.block_status("qemu:allocation-depth", 0, 1)
            assert await export.read(MiB, 0) == b""
            await export.write(MiB, b"")
            await export.zero(MiB, 0)
            assert [e async for e in export.extents(MiB, 0)] == []


async def test_read_only_exports_are_not_written() -> None:
    with nbdkit("--readonly", "memory", "1M") as server:
        async with await open_export(server.uri) as export:
            assert export.read_only
            for attempt in (export.write(0, b"x"), export.zero(0, 1), export.trim(0, 1)):
                with pytest.raises(ExportError, match="read-only"):
                    await attempt


async def test_long_calls_are_cut() -> None:
    with nbdkit("memory", "70M") as server:
        async with await open_export(server.uri) as export:
            content = random.Random(1).randbytes(70 * MiB)
            await export.write(0, content)
            buffer = memoryview(bytearray(70 * MiB))
            await export.read_into(0, buffer)
            assert buffer.obj == content


async def test_any_contiguous_buffer_will_do() -> None:
    with nbdkit("pattern", "1M") as server:
        async with await open_export(server.uri) as export:
            wide = memoryview(bytearray(4096)).cast("Q")
            await export.read_into(0, wide)
            with pytest.raises(UsageError, match="can be written to"):
                await export.read_into(0, memoryview(bytes(4096)))
            assert [n.to_bytes(8, "little") for n in wide] == [n.to_bytes(8, "big") for n in range(0, 4096, 8)]


async def test_fua_is_made_up_for_by_flush() -> None:
    with nbdkit("memory", "1M", "logfile=/dev/stderr", filters=("log", "fua")) as server:
        async with await open_export(server.uri) as export:
            assert not export.can_fua
            await export.write(0, b"x", fua=True)
            await export.zero(0, 1, fua=True)
            await export.trim(0, 1, fua=True)
        assert server.log.read_text().count("Flush") >= 3


async def test_what_is_not_offered_is_said_or_made_up_for() -> None:
    async def script(client: Client) -> None:
        await client.open(MiB, 1)
        requests = []
        while (request := await client.request()).kind == peer.WRITE:
            requests.append((request.offset, request.length, any(request.payload)))
            await client.say(peer.simple(request.cookie))
        assert requests == [(4096, 8192, False)]

    async with liar(script) as address, await open_export(address) as export:
        assert await export.flush() is False
        assert await export.trim(0, 1) is False
        assert await export.cache(0, 1) is False
        await export.zero(4096, 8192)
        with pytest.raises(ExportError, match="nothing can be made durable"):
            await export.write(0, b"x", fua=True)


# --- many connections ------------------------------------------------------------------------------------------------


async def test_several_connections_where_the_server_allows() -> None:
    with nbdkit("memory", "16M") as server:
        async with await open_export(server.uri, connections=4) as export:
            assert await export.connected() == 4
            async with await open_export(replace(parse_uri(server.uri), connections=2), connections=4) as fewer:
                assert await fewer.connected() == 2
            content = noise(16 * MiB)
            await asyncio.gather(*(export.write(o, content[o : o + MiB]) for o in range(0, 16 * MiB, MiB)))
            assert await export.flush() is True
            assert await export.read(0, 16 * MiB) == content


@pytest.mark.parametrize("forced", [False, True])
async def test_several_connections_against_the_servers_word(forced: bool) -> None:
    with nbdkit("memory", "1M", "multi-conn-mode=disable", filters=("multi-conn",)) as server:
        async with await open_export(server.uri, connections=3, multi_conn=forced or None) as export:
            assert not export.can_multi_conn
            assert await export.connected() == (3 if forced else 1)
            await asyncio.gather(*(export.write(n * 512, b"x" * 512) for n in range(8)))
            assert await export.flush() is True


async def test_a_server_at_its_limit_gives_fewer_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfasync.transport.connections._EXTRA_CONNECT", 0.2)

    async def honest(client: Client) -> None:
        await client.open()
        await client.silence()

    async def busy(client: Client) -> None:
        await client.silence()

    async with liar(honest, honest, busy) as address, await open_export(address, connections=4) as export:
        assert await export.connected() == 2


async def test_reads_do_not_wait_for_further_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfasync.transport.connections._EXTRA_CONNECT", 1000)
    busy_clients = 0

    async def honest(client: Client) -> None:
        await client.open()
        while True:
            request = await client.request()
            await client.say(peer.data(request.cookie, request.offset, bytes(request.length), done=True))

    async def busy(client: Client) -> None:
        nonlocal busy_clients
        busy_clients += 1
        await client.silence()

    async with liar(honest, busy) as address, await open_export(address, connections=2) as export:
        while not busy_clients:
            await asyncio.sleep(0)
        assert await export.read(0, 512) == bytes(512)
        assert export.connections == 1


async def test_closing_ends_the_opening_of_further_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfasync.transport.connections._EXTRA_CONNECT", 1000)

    async def honest(client: Client) -> None:
        await client.open()
        await client.request()

    async def busy(client: Client) -> None:
        await client.silence()

    async with liar(honest, busy) as address:
        export = await open_export(address, connections=3)
        await export.aclose()
        assert export.connections == 0


async def test_connections_to_different_disks_are_refused() -> None:
    async def one(client: Client) -> None:
        await client.open(MiB)
        await client.silence()

    async def other(client: Client) -> None:
        await client.open(2 * MiB)
        await client.silence()

    async with liar(one, other) as address, await open_export(address, connections=2) as export:
        assert await export.connected() == 0
        for _ in range(2):
            with pytest.raises(ExportError, match="differ between two connections"):
                await export.read(0, 512)


async def test_a_lost_connection_leaves_the_others() -> None:
    async def honest(client: Client) -> None:
        await client.open()
        while True:
            request = await client.request()
            await client.say(peer.data(request.cookie, request.offset, bytes(request.length), done=True))

    async def lost(client: Client) -> None:
        await client.open()
        await client.request()

    async with liar(honest, lost) as address, await open_export(address, connections=2) as export:
        assert await export.connected() == 2
        results = await asyncio.gather(*(export.read(0, 512) for _ in range(4)), return_exceptions=True)
        assert sum(isinstance(result, ConnectionLostError) for result in results) == 2
        assert export.connections == 1
        assert await export.read(0, 512) == bytes(512)


# --- zeroing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [("memory", "2T"), ("null", "2T")])
async def test_zeroing_terabytes(args: tuple[str, ...]) -> None:
    with nbdkit(*args) as server:
        async with await open_export(server.uri) as export:
            await export.zero(512, 2 * TiB - 1024)
            await export.trim(0, 2 * TiB)


async def test_zeroing_qcow2_frees_space_unless_told_not_to(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1T"], check=True)
    with qemu_nbd(image, "--discard=unmap", fmt="qcow2") as server:
        async with await open_export(server.uri) as export:
            await export.write(0, noise(MiB))
            await export.zero(0, 64 * GiB)
            assert [e async for e in export.extents(0, MiB)] == [Extent(0, MiB, zero=True, hole=True)]
            await export.zero(0, MiB, punch=False)
            assert [e.zero for e in [e async for e in export.extents(0, MiB)]] == [True]
            assert await export.read(0, MiB) == bytes(MiB)


async def test_zeroing_where_the_server_writes_zeros_itself() -> None:
    for mode in ("none", "emulate"):
        with nbdkit("memory", "3M", f"zeromode={mode}", filters=("nozero",)) as server:
            async with await open_export(server.uri) as export:
                assert export.can_zero == (mode == "emulate")
                await export.write(0, b"x" * 3 * MiB)
                await export.zero(1, 3 * MiB - 2)
                assert await export.read(0, 3 * MiB) == b"x" + bytes(3 * MiB - 2) + b"x"


# --- block status ----------------------------------------------------------------------------------------------------


async def test_only_the_zero_flag_says_zero() -> None:
    async def script(client: Client) -> None:
        await client.open(6 * 4096)
        request = await client.request()
        flags = [0, 1, 2, 3, 0xFFFFFFF0, 0xFFFFFFFD]
        await client.say(peer.status(request.cookie, [(4096, f) for f in flags]))
        await client.silence()

    async with liar(script) as address, await open_export(address) as export:
        found = [extent async for extent in export.extents()]
    assert [(extent.zero, extent.hole) for extent in found] == [
        (False, False),
        (False, True),
        (True, False),
        (True, True),
        (False, False),
        (False, True),
    ]


async def test_extents_of_a_large_sparse_disk() -> None:
    with nbdkit("memory", "2T") as server:
        async with await open_export(server.uri) as export:
            await export.write(TiB, b"x" * 4096)
            found = [extent async for extent in export.extents()]
    assert found[0].offset == 0
    assert found[-1].end == 2 * TiB
    assert all(a.end == b.offset for a, b in itertools.pairwise(found))
    assert sum(extent.length for extent in found if not extent.zero) <= 64 * KiB


async def test_extents_of_a_part_that_is_on_no_boundary() -> None:
    with nbdkit("memory", "1G") as server:
        async with await open_export(server.uri) as export:
            await export.write(64 * MiB, b"x" * MiB)
            found = [extent async for extent in export.extents(64 * MiB - 7, MiB + 14)]
    assert found[0] == Extent(64 * MiB - 7, 7, zero=True, hole=True)
    assert found[-1].end == 65 * MiB + 7


async def test_parts_that_are_read_together_are_asked_for_on_one_connection() -> None:
    asked: list[list[int]] = []

    async def script(client: Client) -> None:
        mine: list[int] = []
        asked.append(mine)
        await client.open()  # with CAN_MULTI_CONN
        requests = []
        while (request := await client.request()).kind == const.CMD_READ:
            mine.append(request.offset)
            requests.append(request)
            if len(requests) == 8:  # answered when all have come
                for one in requests:
                    await client.say(
                        peer.data(one.cookie, one.offset, bytes([one.offset >> 12]) * one.length, done=True)
                    )

    buffer = memoryview(bytearray(8 * 512))
    parts = [(n << 12, buffer[n * 512 : (n + 1) * 512]) for n in range(8)]
    async with liar(script) as address, await open_export(address, connections=2) as export:
        assert await export.connected() == 2
        await export.read_scattered(parts)
    assert all(view == bytes([offset >> 12]) * 512 for offset, view in parts)
    assert sorted(asked) == [[], [n << 12 for n in range(8)]]


async def test_no_more_than_qemu_asks_about_is_asked_about() -> None:
    """nbdkit 1.32 aborts on 0xffffffff bytes (CVE-2025-47711)."""
    asked = []

    async def script(client: Client) -> None:
        await client.open(4 * GiB)
        while (request := await client.request()).kind == peer.BLOCK_STATUS:
            asked.append((request.offset, request.length))
            await client.say(peer.status(request.cookie, [(0xFFFFFFFF, 3)]))

    async with liar(script) as address, await open_export(address) as export:
        found = [extent async for extent in export.extents()]
    most = 2 * GiB - 64 * KiB
    assert asked == [(0, most), (most, most), (2 * most, 128 * KiB)]
    assert sum(extent.length for extent in found) == 4 * GiB


async def test_short_answers_are_asked_on() -> None:
    async def script(client: Client) -> None:
        await client.open(64 * KiB)
        while (request := await client.request()).kind == peer.BLOCK_STATUS:
            await client.say(peer.status(request.cookie, [(1, 3), (2, 0)]))

    async with liar(script) as address, await open_export(address) as export:
        found = [extent async for extent in export.extents(100, 8)]
    assert [tuple(extent) for extent in found] == [
        (100, 1, True, True),
        (101, 2, False, False),
        (103, 1, True, True),
        (104, 2, False, False),
        (106, 1, True, True),
        (107, 1, False, False),
    ]


@pytest.mark.parametrize(
    "answer", [[(0, 0)], [(512, 0), (0, 3)]], ids=["an extent without length", "a second one without length"]
)
async def test_status_without_progress_is_fatal(answer: list[tuple[int, int]]) -> None:
    async def script(client: Client) -> None:
        await client.open()
        request = await client.request()
        await client.say(peer.status(request.cookie, answer))
        await client.silence()

    async with liar(script) as address, await open_export(address) as export:
        with pytest.raises(RemoteProtocolError, match="has no length"):
            [extent async for extent in export.extents()]
        for _ in range(3):
            with pytest.raises(RemoteProtocolError, match="has no length"):
                await export.read(0, 512)
            await asyncio.sleep(0)


async def test_without_block_status_everything_is_data(caplog: pytest.LogCaptureFixture) -> None:
    with nbdkit("memory", "1M", "error-extents-rate=1", filters=("error",)) as server:
        async with await open_export(server.uri) as export:
            with caplog.at_level(logging.WARNING):
                for _ in range(3):
                    assert [e async for e in export.extents()] == [Extent(0, MiB)]
            assert len([record for record in caplog.records if "block status" in record.message]) == 1


async def test_dirty_bitmaps_and_allocation_depth(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    subprocess.run(["qemu-img", "bitmap", "--add", "-g", "64K", image, "b0"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 64K 64K", image], check=True, capture_output=True)
    wanted = ("base:allocation", "qemu:dirty-bitmap:b0", "qemu:allocation-depth", "x-none:such")
    blockdev = f"driver=qcow2,node-name=q,file.driver=file,file.filename={image}"
    export_option = "type=nbd,id=e,node-name=q,name=disk,writable=on,bitmaps.0=b0,allocation-depth=on"
    with storage_daemon("--blockdev", blockdev, "--export", export_option) as server:
        async with await open_export(server.uri, contexts=wanted) as export:
            assert set(export.contexts) == set(wanted[:3])
            dirty = [found async for found in export.block_status("qemu:dirty-bitmap:b0", 0, MiB)]
            assert dirty == [(0, 64 * KiB, 0), (64 * KiB, 64 * KiB, 1), (128 * KiB, 896 * KiB, 0)]
            assert [e.zero for e in [e async for e in export.extents()]] == [True, False, True]
        info = await query_export(server.uri)
        assert set(wanted[:3]) <= set(info.contexts)


# --- errors ----------------------------------------------------------------------------------------------------------

BAD_SPOT = 'if [ "$4" -eq 65536 ]; then echo EIO bad spot >&2; exit 1; fi; head -c "$3" /dev/zero'


async def test_an_error_of_one_read_leaves_the_others() -> None:
    with nbdkit("eval", "get_size=echo 1M", f"pread={BAD_SPOT}") as server:
        async with await open_export(server.uri) as export:
            reads = [export.read(offset, 32 * KiB) for offset in range(0, MiB, 32 * KiB)]
            results = await asyncio.gather(*reads, return_exceptions=True)
            (error,) = [result for result in results if isinstance(result, BaseException)]
            assert isinstance(error, RequestError)
            assert (error.errno, error.offset, error.length) == (5, 64 * KiB, 32 * KiB)
            assert "read of 32768 bytes at 65536: EIO" in str(error)
            assert await export.read(0, 32 * KiB) == bytes(32 * KiB)


async def test_an_error_of_one_piece_fails_the_call() -> None:
    with nbdkit("memory", "64M", "error-pread=EIO", "error-pread-rate=1", filters=("error",)) as server:
        async with await open_export(server.uri) as export:
            with pytest.raises(RequestError, match="EIO"):
                await export.read(0, 64 * MiB)
            await export.write(0, b"x")


@pytest.mark.parametrize("call", ["write", "zero", "trim", "flush"])
async def test_errors_of_writes_are_not_lost(call: str) -> None:
    options = [f"error-{name}-rate=1" for name in ("pwrite", "zero", "trim")]
    with nbdkit("memory", "1M", "error=ENOSPC", *options, filters=("error",)) as server:
        async with await open_export(server.uri) as export:
            calls: dict[str, Callable[[], Awaitable[object]]] = {
                "write": lambda: export.write(0, bytes(512)),
                "zero": lambda: export.zero(0, 512),
                "trim": lambda: export.trim(0, 512),
                "flush": lambda: export.write(0, bytes(512), fua=True),
            }
            with pytest.raises(RequestError, match="ENOSPC"):
                await calls[call]()


async def test_a_server_that_dies() -> None:
    with nbdkit("memory", "1M", "rdelay=10", filters=("delay",)) as server:
        async with await open_export(server.uri) as export:
            task = asyncio.create_task(export.read(0, 512))
            await asyncio.sleep(0.1)
            subprocess.run(["kill", "-KILL", str(server.pid)], check=True)
            with pytest.raises(ConnectionLostError) as caught:
                await task
            assert (caught.value.offset, caught.value.length) == (0, 512)
            with pytest.raises(ConnectionLostError):
                await export.write(0, b"x")
            with pytest.raises(ConnectionLostError):
                await export.flush()


async def test_a_closed_export_says_so() -> None:
    with nbdkit("memory", "1M") as server:
        export = await open_export(server.uri)
        await export.aclose()
        await export.aclose()
        with pytest.raises(ConnectionLostError, match="closed"):
            await export.read(0, 1)
        assert export.connections == 0


@pytest.mark.parametrize("size", range(0, 560, 40))
async def test_death_at_every_byte_of_a_reply(size: int) -> None:
    async def script(client: Client) -> None:
        await client.open()
        request = await client.request()
        await client.say(peer.data(request.cookie, 0, b"x" * 512, done=True)[:size])

    async with liar(script) as address, await open_export(address) as export:
        if size >= 540:
            assert await export.read(0, 512) == b"x" * 512
        else:
            with pytest.raises(ConnectionLostError):
                await export.read(0, 512)


async def test_options_are_checked() -> None:
    with pytest.raises(UriError):
        await open_export("nbd://")
    for requests, connections in ((0, 1), (257, 1), (1, 17)):
        with pytest.raises(UsageError):
            await open_export("nbd://127.0.0.1:1/", requests=requests, connections=connections)
    with pytest.raises(ConnectError):
        await open_export("nbd://127.0.0.1:1/", timeouts=Timeouts(connect=1))


# --- cancelling ------------------------------------------------------------------------------------------------------


async def test_cancelling_one_of_many_reads() -> None:
    with nbdkit("pattern", "16M") as server:
        async with await open_export(server.uri) as export:
            expected = await export.read(0, 16 * MiB)
            for turns in range(0, 20, 2):
                buffers = [memoryview(bytearray(MiB)) for _ in range(16)]
                tasks = [asyncio.create_task(export.read_into(n * MiB, buffer)) for n, buffer in enumerate(buffers)]
                for _ in range(turns):
                    await asyncio.sleep(0)
                victims = {n for n in (3, 7, 8) if tasks[n].cancel()}
                for n in victims:
                    await asyncio.wait({tasks[n]})
                    buffers[n][:] = bytes(MiB)
                await asyncio.wait(tasks)
                for n, (task, buffer) in enumerate(zip(tasks, buffers, strict=True)):
                    if task.cancelled():
                        assert buffer.obj == bytes(MiB), "memory was written to after the call had ended"
                    else:
                        assert buffer.obj == expected[n * MiB : (n + 1) * MiB] or n in victims
            assert export.connections == 1
            assert await export.read(5, 10) == expected[5:15]


async def test_cancelling_a_long_call() -> None:
    with nbdkit("memory", "256M", "delay-read=20ms", filters=("delay",)) as server:
        async with await open_export(server.uri) as export:
            for call in (export.read(0, 256 * MiB), export.zero(0, 256 * MiB), export.write(0, bytes(256 * MiB))):
                task = asyncio.create_task(call)
                await asyncio.sleep(0.03)
                task.cancel()
                async with asyncio.timeout(2):
                    await asyncio.wait({task})
                assert task.cancelled()
            assert len(await export.read(0, 512)) == 512


async def test_cancelling_a_write_to_a_server_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfasync.transport.connection._LEAVE", 0.1)

    async def script(client: Client) -> None:
        await client.open(64 * MiB)
        await client.deafness()

    async with liar(script) as address, await open_export(address, timeouts=Timeouts(close=0.1)) as export:
        task = asyncio.create_task(export.write(0, bytes(32 * MiB)))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # a second one changes nothing: the memory is still in the transport
        await asyncio.sleep(0)
        assert not task.done()
        async with asyncio.timeout(1):
            await asyncio.wait({task})
        assert task.cancelled()
        assert export.connections == 0


@pytest.mark.parametrize("turns", range(8))
async def test_cancelling_at_every_turn_and_using_the_export_again(turns: int) -> None:
    with nbdkit("memory", "4M") as server:
        async with await open_export(server.uri, connections=2) as export:
            await export.write(0, noise(4 * MiB))

            async def extents() -> list[Extent]:
                return [extent async for extent in export.extents()]

            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: export.read(0, MiB),
                lambda: export.write(0, noise(MiB)),
                lambda: export.zero(0, MiB),
                lambda: export.trim(0, MiB),
                lambda: export.cache(0, MiB),
                export.flush,
                extents,
            ]
            for call in calls:
                task = asyncio.ensure_future(call())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait({task})
                assert await export.read(2 * MiB, MiB) == noise(4 * MiB)[2 * MiB : 3 * MiB]
            assert await export.connected() == 2


async def test_no_view_of_the_callers_memory_is_kept() -> None:
    """A buffer pool unmaps its memory; a view that somebody kept, if only in a traceback, would prevent that."""
    with nbdkit("eval", "get_size=echo 1M", f"pread={BAD_SPOT}") as server:
        async with await open_export(server.uri) as export:
            for offset in (0, 64 * KiB):
                memory = mmap.mmap(-1, 64 * KiB)
                view = memoryview(memory)
                kept: BaseException | None = None
                try:
                    await export.read_into(offset, view)
                except RequestError as error:
                    kept = error
                assert (kept is not None) == (offset > 0)
                view.release()
                memory.close()

                memory = mmap.mmap(-1, 64 * KiB)
                view = memoryview(memory)
                task = asyncio.create_task(export.read_into(0, view))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait({task})
                view.release()
                memory.close()


async def test_memory_does_not_grow_with_what_is_read() -> None:
    with nbdkit("pattern", "1G") as server:
        async with await open_export(server.uri) as export:
            buffer = memoryview(bytearray(MiB))
            await export.read_into(0, buffer)
            gc.collect()
            before = len(gc.get_objects())
            for offset in range(0, 200 * MiB, MiB):
                await export.read_into(offset, buffer)
            gc.collect()
            assert len(gc.get_objects()) - before < 50


# --- asking ----------------------------------------------------------------------------------------------------------


async def test_listing_and_querying(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MiB))
    with qemu_nbd(image, "--description=of web-01", export="vda") as server:
        assert await list_exports(server.uri) == [ExportEntry("vda", "of web-01")]
        info = await query_export(server.uri)
        assert (info.name, info.size, info.description) == ("vda", MiB, "of web-01")
        assert "base:allocation" in info.contexts
        address = replace(parse_uri(server.uri), export="")
        assert (await query_export(address, "vda")).size == MiB
        with pytest.raises(ExportError, match="unknown export"):
            await query_export(address, "vdb")


async def test_asking_over_tls(certificates: Path) -> None:
    with nbdkit("memory", "1M", tls=certificates, tcp=True) as server:
        assert await list_exports(server.uri) == [ExportEntry("")]
        assert (await query_export(server.uri)).size == MiB


async def test_asking_leaves_nothing() -> None:
    async def script(client: Client) -> None:
        await client.say(peer.greeting())
        await client.flags()
        await client.option()
        await client.say(peer.reply(peer.STRUCTURED_REPLY, peer.ACK))
        await client.option()
        await client.say(peer.listed(b"a") + peer.reply(peer.LIST, peer.ACK))
        assert await client.option() == (2, b"")
        assert await client.rest() == b""

    async with liar(script) as address:
        assert await list_exports(ExportAddress(socket=address.socket)) == [ExportEntry("a")]


async def test_a_close_waits_for_the_replies_to_cancelled_reads() -> None:
    with nbdkit("memory", "64M", "rdelay=100ms", filters=["delay"]) as server:
        export = await open_export(server.uri)
        buffers = [memoryview(bytearray(MiB)) for _ in range(8)]
        reads = [asyncio.create_task(export.read_into(n * MiB, buffer)) for n, buffer in enumerate(buffers)]
        await asyncio.sleep(0.01)
        for read in reads:
            read.cancel()
        await asyncio.wait(reads)
        await export.aclose()
        # a server whose client left while it was answering says that it could not write
        assert "error" not in server.log.read_text()
