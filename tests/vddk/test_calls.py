"""The eleven calls against real servers, and everything that can be done wrong with them."""

from __future__ import annotations

import array
import asyncio
import gc
import logging
import os
import random
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sfasync import vddk
from sfasync.errors import (
    ArgumentError,
    BadBlockError,
    ConnectError,
    ConnectionLostError,
    DeadlineError,
    ExportError,
    RequestError,
    SfasyncError,
    StateError,
    StorageError,
    TlsError,
    UsageError,
    WritesLostError,
)
from sfasync.models import NO_RETRY, ExportAddress, Limits, Retry, Timeouts, TlsPolicy
from sfasync.nbd.uri import parse_uri
from sfasync.units import KiB, MiB

from ..support import peer
from ..support.certificates import make_certificates
from ..support.liar import Client, liar
from ..support.resetting import resetting
from ..support.servers import nbdkit, qemu_nbd
from ..support.tls_front import tls_front
from .support import VM, Lender, access_to, cancelled_at_every_step, journal, opened

CONTENT = random.Random(7).randbytes(1 * MiB)
SECTORS = len(CONTENT) // 512
ONE_CONNECTION = peer.ALL_FLAGS & ~0x100
"""The flags of a server without multi-conn."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(CONTENT)
    return path


# --- the two workflows -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("initialised")
@pytest.mark.parametrize("mode", ["nbd", "nbdssl"])
async def test_reading_a_snapshot(image: Path, certificates: Path, mode: str) -> None:
    with nbdkit("--readonly", "file", image, tls=certificates if mode == "nbdssl" else None) as server:
        async with opened(server.uri, mode=mode, snapshot_id="s1") as disk:
            assert vddk.get_transport_mode(disk) == mode
            assert (disk.size, disk.sector_count, disk.read_only) == (MiB, SECTORS, True)
            assert await vddk.read(disk, 0, SECTORS) == CONTENT
            buffer = bytearray(3 * 512)
            assert await vddk.read(disk, 5, 3, buffer) is None  # type: ignore[func-returns-value]  # that is the point
            assert buffer == CONTENT[5 * 512 : 8 * 512]
            await vddk.read(disk, SECTORS - 1, 1, memoryview(buffer)[512:1024])
            assert buffer[512:1024] == CONTENT[-512:]


@pytest.mark.usefixtures("initialised")
async def test_writing_a_disk_over_tls(tmp_path: Path, certificates: Path) -> None:
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(len(CONTENT))], check=True)
    with qemu_nbd(image, fmt="qcow2", tls=certificates, tcp=True) as server:
        async with opened(server.uri, mode="nbd_ssl") as disk:
            assert not disk.read_only
            assert vddk.get_transport_mode(disk) == "nbdssl"
            for sector in range(0, SECTORS, 256):
                await vddk.write(disk, sector, CONTENT[sector * 512 : (sector + 256) * 512])
            await vddk.write(disk, 0, bytearray(CONTENT[:512]))
            await vddk.write(disk, 1, memoryview(CONTENT)[512:1024])
        async with opened(server.uri, mode="nbdssl", snapshot_id="s1") as disk:
            assert await vddk.read(disk, 0, SECTORS) == CONTENT


@pytest.mark.usefixtures("initialised")
async def test_tls_from_the_first_byte(image: Path, certificates: Path) -> None:
    with nbdkit("file", image) as server, tls_front(server, certificates) as address:
        async with opened(address, mode="nbdssl", snapshot_id="s1") as disk:
            assert await vddk.read(disk, 0, SECTORS) == CONTENT


@pytest.mark.usefixtures("initialised")
async def test_several_disks_on_one_connection(image: Path) -> None:
    with nbdkit("file", image) as first, nbdkit("memory", "2M") as second:
        access = access_to(ide0=first.uri, ide1=second.uri)
        connection = await vddk.connect(access, mode="nbd", vm_id=VM)
        source, target = [await vddk.open(connection, disk_id) for disk_id in ("ide0", "ide1")]
        assert (source.size, target.size) == (MiB, 2 * MiB)
        await vddk.write(target, SECTORS, await vddk.read(source, 0, SECTORS))
        assert await vddk.read(target, SECTORS, SECTORS) == CONTENT
        assert await vddk.read(target, 0, 1) == bytes(512)
        assert "2 disks" in repr(connection)
        assert len(journal()) == 3
        await vddk.close(source)
        await vddk.close(target)
        await vddk.disconnect(connection)


@pytest.mark.usefixtures("initialised")
async def test_what_is_written_is_flushed_before_the_disk_is_closed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with nbdkit("memory", "1M", f"logfile={log}", filters=("log",)) as server:
        async with opened(server.uri, snapshot_id="s1") as disk:
            await vddk.read(disk, 0, 1)
        assert " Flush " not in log.read_text()
        async with opened(server.uri) as disk:
            await vddk.write(disk, 0, bytes(512))
        assert " Flush " in log.read_text()


@pytest.mark.usefixtures("initialised")
async def test_a_server_without_flush_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    async def script(client: Client) -> None:
        await client.open(flags=1)
        request = await client.request()
        await client.say(peer.simple(request.cookie))
        await client.silence()

    with caplog.at_level(logging.WARNING):
        async with liar(script) as address, opened(address) as disk:
            await vddk.write(disk, 0, bytes(512))
    assert "disk 'ide0' of VM '2786761839857': the server has no flush" in caplog.text


# --- many at once, cancelled, lost -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("initialised")
async def test_many_reads_and_writes_at_once(image: Path) -> None:
    with nbdkit("file", image) as server:
        async with opened(server.uri, limits=Limits(connections=2)) as disk:
            order = list(range(0, SECTORS, 8))
            random.Random(1).shuffle(order)
            pieces = await asyncio.gather(*(vddk.read(disk, sector, 8) for sector in order))
            for sector, piece in zip(order, pieces, strict=True):
                assert piece == CONTENT[sector * 512 : sector * 512 + 4096]
            await asyncio.gather(
                *(vddk.write(disk, sector, piece[::-1]) for sector, piece in zip(order, pieces, strict=True))
            )
            for sector in order:
                assert await vddk.read(disk, sector, 8) == CONTENT[sector * 512 : sector * 512 + 4096][::-1]


@pytest.mark.usefixtures("initialised")
async def test_reads_do_not_wait_for_each_other() -> None:
    """The server answers none before it was asked for all."""

    async def script(client: Client) -> None:
        await client.open(flags=ONE_CONNECTION)
        for request in [await client.request() for _ in range(16)]:
            await client.say(peer.data(request.cookie, request.offset, bytes([request.offset // 512]) * 512, done=True))
        await client.silence()

    async with liar(script) as address, opened(address, snapshot_id="s1") as disk:
        read = await asyncio.gather(*(vddk.read(disk, sector, 1) for sector in range(16)))
    assert read == [bytes([sector]) * 512 for sector in range(16)]


@pytest.mark.usefixtures("initialised")
async def test_one_of_many_reads_is_cancelled() -> None:
    """Its buffer is free at once, the others come to their end, and the disk goes on."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def script(client: Client) -> None:
        await client.open(flags=ONE_CONNECTION)
        requests = [await client.request() for _ in range(3)]
        asked.set()
        await answer.wait()
        for request in requests:
            await client.say(peer.data(request.cookie, request.offset, b"\xff" * request.length, done=True))
        request = await client.request()
        await client.say(peer.data(request.cookie, request.offset, b"\xee" * request.length, done=True))
        await client.silence()

    buffers = [bytearray(4096) for _ in range(3)]
    async with liar(script) as address, opened(address, snapshot_id="s1") as disk:
        reads = [asyncio.create_task(vddk.read(disk, 8 * n, 8, buffer)) for n, buffer in enumerate(buffers)]
        await asked.wait()
        reads[1].cancel()
        await asyncio.wait([reads[1]])
        assert reads[1].cancelled()
        buffers[1].extend(b"x")  # nobody holds it
        answer.set()
        await asyncio.gather(reads[0], reads[2])
        assert buffers[0] == buffers[2] == b"\xff" * 4096
        assert buffers[1] == bytes(4096) + b"x"
        assert await vddk.read(disk, 0, 1) == b"\xee" * 512


@pytest.mark.usefixtures("initialised")
async def test_close_lets_calls_under_way_come_to_their_end(image: Path) -> None:
    with nbdkit("file", image, "rdelay=300ms", filters=("delay",)) as server:
        async with opened(server.uri, snapshot_id="s1") as disk:
            reads = [asyncio.create_task(vddk.read(disk, sector, 1)) for sector in range(4)]
            await asyncio.sleep(0)
            closing = asyncio.create_task(vddk.close(disk))
            await asyncio.sleep(0)
            assert disk.state == "closing"
            for attempt in (vddk.read(disk, 0, 1), vddk.close(disk), vddk.disconnect(disk.connection)):
                with pytest.raises(StateError, match="closing"):
                    await attempt
            await closing
            assert [await read for read in reads] == [CONTENT[n * 512 : n * 512 + 512] for n in range(4)]


@pytest.mark.usefixtures("initialised")
async def test_a_cancelled_close_closes() -> None:
    async def script(client: Client) -> None:
        await client.open(flags=ONE_CONNECTION)
        await client.request()
        await client.silence()

    async with liar(script) as address:
        connection = await vddk.connect(access_to(ide0=address), mode="nbd", vm_id=VM)
        disk = await vddk.open(connection, "ide0")
        read = asyncio.create_task(vddk.read(disk, 0, 1))
        await asyncio.sleep(0)
        closing = asyncio.create_task(vddk.close(disk))
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        with pytest.raises(ConnectionLostError) as caught:
            await read
        assert caught.value.disk == "ide0"
        with pytest.raises(StateError, match="is closed"):
            await vddk.close(disk)
        await vddk.disconnect(connection)


@pytest.mark.usefixtures("initialised")
async def test_a_flush_that_fails_is_told_and_the_disk_closed() -> None:
    async def script(client: Client) -> None:
        await client.open(flags=ONE_CONNECTION)
        request = await client.request()
        await client.say(peer.chunk(request.cookie, peer.NONE, done=True))
        request = await client.request()
        assert request.kind == peer.FLUSH
        await client.say(peer.error(request.cookie, 5, b"disk gone"))
        await client.silence()

    async with liar(script) as address, opened(address) as disk:
        await vddk.write(disk, 0, bytes(512))
        with pytest.raises(RequestError, match="disk gone"):
            await vddk.close(disk)
        assert disk.state == "closed"
        assert len(journal()) == 1  # the connection's


@pytest.mark.usefixtures("initialised")
@pytest.mark.parametrize("retry", [None, Retry()])
async def test_a_snapshot_is_read_on_after_a_loss(image: Path, retry: Retry | None) -> None:
    with nbdkit("file", image, "--threads=1", tcp=True) as server, resetting(server, every=300 * KiB) as proxy:
        async with opened(proxy.uri, snapshot_id="s1", retry=retry) as disk:
            assert await vddk.read(disk, 0, SECTORS) == CONTENT
    assert proxy.resets > 0


@pytest.mark.usefixtures("initialised")
async def test_a_disk_is_written_on_after_a_loss_if_that_is_wanted(tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(bytes(MiB))
    with nbdkit("file", target, "--threads=1", tcp=True) as server, resetting(server) as proxy:
        async with opened(proxy.uri, limits=Limits(connections=1)) as disk:
            await vddk.write(disk, 0, CONTENT[:512])
            proxy.reset()
            with pytest.raises(ConnectionLostError):
                await vddk.write(disk, 0, CONTENT[:512])
            with pytest.raises(ConnectionLostError):
                await vddk.close(disk)
        async with opened(proxy.uri, limits=Limits(connections=1), retry=Retry()) as disk:
            await vddk.write(disk, 0, CONTENT[:512])
            proxy.reset()
            await vddk.write(disk, 1, CONTENT[512:])
            with pytest.raises(WritesLostError) as caught:  # the server may have been started again
                await vddk.close(disk)
            assert caught.value.ranges == ((0, 512),)
        async with opened(proxy.uri, retry=Retry()) as disk:
            await vddk.write(disk, 0, CONTENT)
    assert target.read_bytes() == CONTENT


@pytest.mark.usefixtures("initialised")
async def test_a_sector_that_cannot_be_read_is_named() -> None:
    pread = 'if [ $4 -le 9216 ] && [ $(($4 + $3)) -gt 9216 ]; then echo EIO bad >&2; exit 1; fi; head -c "$3" /dev/zero'
    with nbdkit("eval", "get_size=echo 1M", f"pread={pread}") as server:
        async with opened(server.uri, snapshot_id="s1", retry=Retry(delay=0.005)) as disk:
            with pytest.raises(BadBlockError) as caught:
                await vddk.read(disk, 0, 64)
            assert (caught.value.disk, caught.value.offset, caught.value.length) == ("ide0", 18 * 512, 512)


@pytest.mark.usefixtures("initialised")
async def test_a_server_that_dies() -> None:
    timeouts = Timeouts(stall=2, connect=2)
    with nbdkit("memory", "1M") as server:
        reading = opened(server.uri, snapshot_id="s1", timeouts=timeouts, retry=NO_RETRY)
        writing = opened(server.uri, timeouts=timeouts)
        async with reading as unchanged, writing as changed:
            await vddk.write(changed, 0, bytes(512))
            os.kill(server.pid, signal.SIGKILL)
            server.stop()
            for attempt in (vddk.read(unchanged, 0, 1), vddk.write(changed, 0, bytes(512))):
                with pytest.raises((ConnectionLostError, ConnectError, DeadlineError)) as caught:
                    await attempt
                assert caught.value.disk == "ide0"
            await vddk.close(unchanged)
            with pytest.raises(SfasyncError):  # what was written may not be durable
                await vddk.close(changed)


@pytest.mark.usefixtures("initialised")
async def test_errors_of_the_server_leave_the_disk_open() -> None:
    with nbdkit("memory", "1M", "error-rate=100%", filters=("error",)) as server:
        async with opened(server.uri) as disk:
            for _ in range(3):
                with pytest.raises(RequestError) as caught:
                    await vddk.read(disk, 3, 1)
                assert (caught.value.disk, caught.value.offset) == ("ide0", 3 * 512)
            assert disk.state == "open"


@pytest.mark.usefixtures("initialised")
async def test_cancelling_at_every_step_leaves_nothing() -> None:
    with nbdkit("memory", "1M") as server:
        lender = Lender(parse_uri(server.uri))
        limits = Limits(connections=1)

        async def work() -> None:
            async with opened(lender, limits=limits) as disk:
                await vddk.write(disk, 0, bytes(512))
                await vddk.read(disk, 0, 1)

        steps = 0
        async for _ in cancelled_at_every_step(work):
            steps += 1
            assert journal() == []
            assert lender.lent == []
        assert steps > 10
        async with opened(lender) as disk:
            assert await vddk.read(disk, 0, 1) == bytes(512)


# --- the order of calls ----------------------------------------------------------------------------------------------


async def test_init_comes_first() -> None:
    access = access_to()
    for attempt in (vddk.exit, vddk.list_transport_modes):
        with pytest.raises(StateError, match="needs a process that is initialised; this one is not, init comes first"):
            attempt()
    with pytest.raises(StateError, match="connect needs a process that is initialised"):
        await vddk.connect(access, mode="nbd", vm_id=VM)
    with pytest.raises(StateError, match="cleanup needs a process that is initialised"):
        await vddk.cleanup(access)


@pytest.mark.usefixtures("initialised")
async def test_init_comes_once() -> None:
    assert vddk.list_transport_modes() == ("nbd", "nbdssl")
    with pytest.raises(StateError, match="init needs a process that is not initialised"):
        vddk.init()
    vddk.exit()
    with pytest.raises(StateError):
        vddk.exit()
    vddk.init()


@pytest.mark.usefixtures("initialised")
async def test_exit_comes_last() -> None:
    connection = await vddk.connect(access_to(), mode="nbd", vm_id=VM)
    with pytest.raises(StateError, match=f"exit needs all connections disconnected; that to VM '{VM}' is connected"):
        vddk.exit()
    await vddk.disconnect(connection)
    with pytest.raises(StateError, match=f"disconnect needs a connected connection; that to VM '{VM}' is disconnected"):
        await vddk.disconnect(connection)
    with pytest.raises(StateError, match="open needs a connected connection"):
        await vddk.open(connection, "ide0")


@pytest.mark.usefixtures("initialised")
async def test_disks_are_opened_and_closed_once() -> None:
    with nbdkit("memory", "1M") as server:
        connection = await vddk.connect(access_to(ide0=server.uri), mode="nbd", vm_id=VM, snapshot_id="s1")
        disk = await vddk.open(connection, "ide0")
        with pytest.raises(StateError, match=r"open needs a disk that is closed; disk 'ide0' of VM .* is open"):
            await vddk.open(connection, "ide0")
        with pytest.raises(StateError, match=r"disconnect needs all disks of VM .* closed; 'ide0' is open"):
            await vddk.disconnect(connection)
        await vddk.close(disk)
        name = f"disk 'ide0' of VM '{VM}' snapshot 's1' is closed"
        attempts: dict[str, Callable[[], Awaitable[object]]] = {
            "read": lambda: vddk.read(disk, 0, 1),
            "write": lambda: vddk.write(disk, 0, bytes(512)),
            "close": lambda: vddk.close(disk),
        }
        for call, attempt in attempts.items():
            with pytest.raises(StateError, match=f"{call} needs an open disk; {name}") as caught:
                await attempt()
            assert caught.value.disk == "ide0"
        with pytest.raises(StateError, match="get_transport_mode needs an open disk"):
            vddk.get_transport_mode(disk)
        again = await vddk.open(connection, "ide0")
        assert (repr(disk), again.state) == (
            f"<Disk 'ide0' of VM '{VM}' snapshot 's1', closed of 2048 sectors, 0 calls>",
            "open",
        )
        await vddk.close(again)
        await vddk.disconnect(connection)


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("initialised")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "san"}, "mode 'san' is not known; there are nbd, nbdssl"),
        ({"mode": ""}, "mode '' is not known"),
        ({"vm_id": ""}, "VM id '' is none"),
        ({"vm_id": "a\nb"}, "VM id"),
        ({"vm_id": "x" * 1025}, "1 to 1024 printable characters"),
        ({"vm_id": "\ud800"}, "VM id"),
        ({"snapshot_id": ""}, "snapshot id '' is none"),
        ({"server_id": ""}, "server id"),
        ({"resource_id": ""}, "resource id"),
    ],
)
async def test_connections_that_make_no_sense(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        await vddk.connect(access_to(), **{"mode": "nbd", "vm_id": VM, **arguments})  # type: ignore[arg-type]  # a dict
    assert isinstance(caught.value, ArgumentError)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("initialised")
async def test_a_connection_without_a_resolver() -> None:
    for attempt in (
        vddk.connect(vddk.Access(hci="hci.example"), mode="nbd", vm_id=VM),
        vddk.cleanup(vddk.Access()),
    ):
        with pytest.raises(UsageError, match="give a resolver"):
            await attempt


@pytest.mark.usefixtures("initialised")
async def test_ranges_and_buffers_that_do_not_fit() -> None:
    with nbdkit("memory", "1M") as server:
        async with opened(server.uri) as disk:
            attempts: list[tuple[Awaitable[object], str]] = [
                (
                    vddk.read(disk, SECTORS, 1),
                    "read of 1 sectors at sector 2048 is not inside the 2048 sectors of disk",
                ),
                (vddk.read(disk, 0, SECTORS + 1), "read of 2049 sectors at sector 0 is not inside"),
                (vddk.read(disk, 1 << 62, 1), "is not inside"),
                (vddk.read(disk, 0, 1 << 62), "is not inside"),
                (vddk.read(disk, -1, 1), "is not inside"),
                (vddk.read(disk, 0, -1), "is not inside"),
                (vddk.write(disk, SECTORS, bytes(512)), "write of 1 sectors at sector 2048 is not inside"),
                (vddk.write(disk, -1, bytes(512)), "is not inside"),
                (vddk.write(disk, 0, bytes(511)), "buffer of 511 bytes; it needs whole sectors of 512"),
                (vddk.read(disk, 0, 1, bytearray(513)), "of 1 sectors got a buffer of 513 bytes; it needs 512 bytes"),
                (vddk.read(disk, 0, 2, bytearray(512)), "it needs 1024 bytes"),
                (vddk.read(disk, 0, 1, memoryview(bytes(512))), "a buffer that is read-only"),
                (vddk.read(disk, 0, 1, memoryview(bytearray(1024))[::2]), "not one row of bytes"),
                (vddk.write(disk, 0, memoryview(bytes(1024))[::2]), "not one row of bytes"),
            ]
            for attempt, message in attempts:
                with pytest.raises(ValueError, match=message) as caught:
                    await attempt
                assert isinstance(caught.value, ArgumentError)
                assert caught.value.disk == "ide0"
            assert await vddk.read(disk, 0, SECTORS) == bytes(MiB)
            assert await vddk.read(disk, SECTORS, 0) == b""
            await vddk.write(disk, 0, b"")


@pytest.mark.usefixtures("initialised")
async def test_memory_of_other_shapes() -> None:
    with nbdkit("memory", "1M") as server:
        async with opened(server.uri) as disk:
            numbers = array.array("I", range(256))
            await vddk.write(disk, 4, memoryview(numbers))
            back = array.array("I", bytes(1024))
            await vddk.read(disk, 4, 2, memoryview(back))
            assert back == numbers


@pytest.mark.usefixtures("initialised")
async def test_snapshots_are_not_written(image: Path) -> None:
    with nbdkit("file", image) as server:
        async with opened(server.uri, snapshot_id="s1") as disk:
            with pytest.raises(
                StateError, match=r"write needs a connection without a snapshot id; disk .* snapshot 's1' is read-only"
            ):
                await vddk.write(disk, 0, bytes(512))
    assert image.read_bytes() == CONTENT
    with nbdkit("--readonly", "file", image) as server:
        async with opened(server.uri) as disk:
            assert disk.read_only
            assert await vddk.read(disk, 0, 1) == CONTENT[:512]
            with pytest.raises(StateError, match="is read-only where it is served"):
                await vddk.write(disk, 0, bytes(512))


@pytest.mark.usefixtures("initialised")
async def test_servers_with_larger_blocks() -> None:
    filters = ("blocksize-policy",)
    with nbdkit("memory", "1M", "blocksize-minimum=4K", "blocksize-error-policy=error", filters=filters) as server:
        async with opened(server.uri) as disk:
            await vddk.write(disk, 8, b"x" * 4096)
            assert await vddk.read(disk, 8, 8) == b"x" * 4096
            for attempt in (vddk.read(disk, 1, 8), vddk.read(disk, 0, 4), vddk.write(disk, 0, bytes(512))):
                with pytest.raises(ArgumentError, match="takes multiples of 8 sectors"):
                    await attempt


# --- disks that cannot be opened -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("initialised")
async def test_disks_that_cannot_be_opened(tmp_path: Path, certificates: Path) -> None:
    others = make_certificates(tmp_path / "others")
    nowhere = ExportAddress(socket=tmp_path / "none")
    with (
        nbdkit("memory", "1000") as odd,
        nbdkit("memory", "1M", tls=certificates) as secure,
        nbdkit("memory", "1M") as plain,
    ):
        untrusted = ExportAddress(socket=secure.socket, tls=TlsPolicy(ca_file=others / "ca-cert.pem"))
        bare = ExportAddress(socket=plain.socket, tls=TlsPolicy(ca_file=certificates / "ca-cert.pem"))
        cases: list[tuple[str, str | ExportAddress, type[SfasyncError], str]] = [
            ("nbd", nowhere, ConnectError, "cannot connect"),
            ("nbd", odd.uri, ExportError, "has 1000 bytes, which are not whole sectors"),
            ("nbdssl", untrusted, TlsError, "not accepted"),
            ("nbdssl", bare, TlsError, "does not start TLS"),
            ("nbdssl", nowhere, UsageError, f"served at {nowhere.peer} by nbd, and the connection is of mode nbdssl"),
            ("nbd", secure.uri, UsageError, "by nbdssl, and the connection is of mode nbd"),
        ]
        for mode, place, kind, message in cases:
            connection = await vddk.connect(access_to(ide0=place), mode=mode, vm_id=VM)
            with pytest.raises(kind, match=message):
                await vddk.open(connection, "ide0")
            with pytest.raises(UsageError, match="no address for disk 'ide1'"):
                await vddk.open(connection, "ide1")
            with pytest.raises(ArgumentError, match="disk id '' is none"):
                await vddk.open(connection, "")
            assert not connection.disks
            assert len(journal()) == 1
            await vddk.disconnect(connection)


# --- resolvers that want something back ------------------------------------------------------------------------------


@pytest.mark.usefixtures("initialised")
async def test_what_a_resolver_lends_is_given_back() -> None:
    with nbdkit("memory", "1M") as server:
        lender = Lender(parse_uri(server.uri))
        async with opened(lender, snapshot_id="s1") as disk:
            assert [request.disk_id for request in lender.lent] == ["ide0"]
            assert lender.released == []
            assert await vddk.read(disk, 0, 1) == bytes(512)
        assert (lender.lent, len(lender.released)) == ([], 1)
    with pytest.raises(ConnectError):
        async with opened(lender):
            pass
    assert (lender.lent, len(lender.released)) == ([], 2)


async def test_what_is_not_given_back_is_left_to_cleanup() -> None:
    vddk.init()
    with nbdkit("memory", "1M") as server:
        lender = Lender(parse_uri(server.uri))
        access = vddk.Access(scp="scp.example", resolver=lender)
        connection = await vddk.connect(access, mode="nbd", vm_id=VM)
        disk = await vddk.open(connection, "ide0")
        lender.failure = StorageError("the platform is busy")
        with pytest.raises(StorageError, match="the platform is busy"):
            await vddk.close(disk)
        assert disk.state == "closed"
        server.stop()
        with pytest.raises(ConnectError) as caught:
            await vddk.open(connection, "ide0")
        assert caught.value.__notes__ == ["also: StorageError: the platform is busy"]
        await vddk.disconnect(connection)
    assert len(journal()) == 2
    with pytest.raises(StorageError, match="the platform is busy") as failed:
        await vddk.cleanup(access)
    assert failed.value.__notes__ == ["also: StorageError: the platform is busy"]
    assert len(journal()) == 2
    lender.failure = None
    assert await vddk.cleanup(access) == 2
    assert lender.lent == []
    assert journal() == []
    vddk.exit()


@pytest.mark.usefixtures("initialised")
async def test_a_resolver_that_never_answers_does_not_hold_up_a_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfasync.vddk.handles._GIVE_BACK", 0.2)

    class Silent(Lender):
        async def release(self, request: object) -> None:
            await asyncio.get_running_loop().create_future()

    with nbdkit("memory", "1M") as server:
        access = vddk.Access(resolver=Silent(parse_uri(server.uri)))
        connection = await vddk.connect(access, mode="nbd", vm_id=VM)
        disk = await vddk.open(connection, "ide0")
        with pytest.raises(StorageError, match=r"is left, but it took more than 0\.2 s"):
            await vddk.close(disk)
        await vddk.disconnect(connection)
    for path in journal():
        path.unlink()


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("initialised")
async def test_secrets_go_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    canary = "canary-0123456789"
    nowhere = ExportAddress(socket=tmp_path / "none")
    said = []
    for credentials in (vddk.AccessKey("AK", canary), vddk.Password("user", canary)):
        resolver = access_to(ide0=nowhere).resolver
        access = vddk.Access(scp="scp.example", hci="hci.example", credentials=credentials, resolver=resolver)
        with caplog.at_level(logging.DEBUG):
            connection = await vddk.connect(access, mode="nbd", vm_id=VM)
            said += [path.read_text() for path in journal()] + [repr(connection)]
            with pytest.raises(ConnectError) as caught:
                await vddk.open(connection, "ide0")
            with pytest.raises(StateError) as misused:
                vddk.exit()
            said += [repr(caught.value), str(caught.value), str(misused.value)]
            await vddk.disconnect(connection)
    assert "scp.example" in said[0]
    assert canary not in "\n".join(said) + caplog.text


# --- threads, descriptors, memory ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("initialised")
async def test_opening_again_and_again_leaves_nothing() -> None:
    with nbdkit("memory", "1M") as server:
        async with opened(server.uri):
            pass
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            async with opened(server.uri) as disk:
                await vddk.write(disk, 0, bytes(64 * KiB))
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before
        assert journal() == []
