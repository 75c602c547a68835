"""Faults of connections and servers, F1 to F13 of the project's list, as a table: what is done, how it ends.

Each row is a job of the engine against a real server that has the fault. A job either ends well, and then the bytes at
the other end are exactly those of the source, or it fails with the error of the row, and then there is no backup.
"""

from __future__ import annotations

import array
import asyncio
import os
import random
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sfasync import (
    BadBlockError,
    ConnectionLostError,
    Engine,
    ExportAddress,
    ExportError,
    Job,
    Limits,
    Manifest,
    NbdError,
    Repository,
    Retry,
    SfasyncError,
    TargetRefusedError,
    Timeouts,
    TlsError,
    TlsPolicy,
)
from sfasync.transport.line import Line
from sfasync.transport.stream import Stream
from sfasync.units import GiB, MiB

from ..support import peer
from ..support.certificates import make_certificates, old_context, server_context
from ..support.honest import honest
from ..support.liar import Client, liar
from ..support.resetting import Proxy, resetting
from ..support.servers import Server, nbdkit

SIZE = 24 * MiB
# What goes on in the end may take its time; only what never does is given up soon.
RETRY = Retry(outage=30.0, delay=0.005, max_delay=0.1)
TIMEOUTS = Timeouts(connect=20.0, stall=20.0)
GIVES_UP = Retry(outage=3.0, delay=0.005, max_delay=0.1)
HURRIED = replace(TIMEOUTS, stall=2.0)


@dataclass
class Scene:
    """A disk, and an engine with a repository.

    Attributes:
        directory: For whatever is needed.
        image: The disk.
        target: As large, and empty.
        repository: Has nothing in it.
        engine: Backs up and restores.
        stack: Ends servers with the test.
        certificates: For those with TLS.
    """

    directory: Path
    image: Path
    target: Path
    repository: Repository
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

    async def latest(self) -> Manifest:
        return await self.repository.find("vm@latest")

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.directory / 'socket'}"

    async def back_up(self, uri: str | ExportAddress) -> None:
        """Back up the disk, restore it, and compare."""
        result = await self.engine.backup_vm("vm", {"vda": uri})
        await self.engine.restore_vm(result.id, to=self.directory / "restored", force=True)
        assert (self.directory / "restored" / "vda.raw").read_bytes() == self.image.read_bytes()

    async def restore(self, uri: str, meanwhile: Callable[[], Awaitable[None]] | None = None) -> None:
        """Restore the disk to a server, while something happens to it from the first write on, and compare."""
        result = await self.engine.backup_vm("vm", {"vda": self.serve().uri})
        async with self.engine.start_restore(result.id, to_disks={"vda": uri}) as job:
            if meanwhile is not None:
                await moving(job)
                await meanwhile()
            await job.result()
        assert self.target.read_bytes() == self.image.read_bytes()


async def moving(job: Job[Any]) -> None:
    """Wait until something is done, or the job has ended."""
    while not (job.done or job.progress().done):
        await asyncio.sleep(0.01)


async def f1_reset_in_reads(scene: Scene) -> None:
    proxy = scene.proxy(scene.serve(tcp=True), every=3 * MiB)
    await scene.back_up(proxy.uri)
    assert proxy.resets > 3


async def f1_outage_that_is_too_long(scene: Scene) -> None:
    proxy = scene.proxy(scene.serve("rate=40M", filters=("rate",), tcp=True))
    async with scene.engine.start_backup("vm", {"vda": proxy.uri}) as job:
        await moving(job)
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
        await moving(job)
        os.kill(server.pid, signal.SIGSTOP)
        async with asyncio.timeout(10):
            await job.result()


async def f7_slow_server(scene: Scene) -> None:
    await scene.back_up(scene.serve("rdelay=1000ms", filters=("delay",)).uri)


async def f7_narrow_link(scene: Scene) -> None:
    await scene.back_up(scene.serve("rate=100M", filters=("rate",)).uri)  # bits in a second


async def f8_polite_ends(scene: Scene) -> None:
    proxy = scene.proxy(scene.serve(tcp=True), every=3 * MiB, polite=True)
    await scene.back_up(proxy.uri)
    assert proxy.resets > 3


OUTAGE = 2.0
"""Seconds without a server, fewer than `RETRY` bears."""


async def _outage(scene: Scene, job: Job[Any], first: Server, start: Callable[[], Server], seconds: float) -> None:
    """Kill the server behind `uri` in the middle of a job, and start another one after some time."""
    await moving(job)
    os.kill(first.pid, signal.SIGKILL)
    await asyncio.sleep(seconds)
    assert 0 < job.progress().done < SIZE
    scene.socket(start())


async def outage_in_reads(scene: Scene, seconds: float, start: Callable[[], Server] | None = None) -> None:
    first = scene.serve("rate=40M", filters=("rate",))
    scene.socket(first)
    async with scene.engine.start_backup("vm", {"vda": scene.uri}) as job:
        await _outage(scene, job, first, start or scene.serve, seconds)
        result = await job.result()
    await scene.engine.restore_vm(result.id, to=scene.directory / "restored")
    assert (scene.directory / "restored" / "vda.raw").read_bytes() == scene.image.read_bytes()


async def outage_in_writes(scene: Scene, seconds: float) -> None:
    def serve(*options: str, filters: tuple[str, ...] = ()) -> Server:
        return scene.stack.enter_context(nbdkit("file", scene.target, *options, filters=filters))

    first = serve("rate=40M", filters=("rate",))
    scene.socket(first)
    backup = await scene.engine.backup_vm("vm", {"vda": scene.serve().uri})
    async with scene.engine.start_restore(backup.id, to_disks={"vda": scene.uri}) as job:
        await _outage(scene, job, first, serve, seconds)
        await job.result()
    assert scene.target.read_bytes() == scene.image.read_bytes()


async def f8_server_started_again(scene: Scene) -> None:
    await outage_in_reads(scene, 0.0)


async def f8_another_size_after_that(scene: Scene) -> None:
    await outage_in_reads(scene, 0.0, lambda: scene.serve("truncate=1G", filters=("truncate",)))


async def f8_outage_in_reads(scene: Scene) -> None:
    await outage_in_reads(scene, OUTAGE)


async def f8_outage_in_writes(scene: Scene) -> None:
    await outage_in_writes(scene, OUTAGE)


async def f9_target_too_small(scene: Scene) -> None:
    server = scene.stack.enter_context(nbdkit("memory", str(SIZE - 512)))
    await scene.restore(server.uri)


async def f10_resized_between_runs(scene: Scene) -> None:
    """The tail that grew is read, the one that shrank is gone, the manifest has the new size."""
    for size in (SIZE, SIZE + 5 * MiB + 512, SIZE - 3 * MiB):
        with scene.image.open("r+b") as disk:
            disk.truncate(size)
            disk.seek(size - 512)
            disk.write(b"tail" * 128)
        await scene.back_up(scene.serve().uri)
        (found,) = (await scene.latest()).disks
        assert found.size == size


async def f10_grown_during_a_run(scene: Scene) -> None:
    """A connection does not see it; the one that takes its place does, and belongs to another disk."""
    size = scene.directory / "size"
    size.write_text(str(SIZE))
    read = f'dd if={scene.image} iflag=skip_bytes,count_bytes skip="$4" count="$3" bs=1M status=none'
    server = nbdkit(
        "eval", f"get_size=cat {size}", f"pread={read}", "rate=40M", "--threads=1", filters=("rate",), tcp=True
    )
    proxy = scene.proxy(scene.stack.enter_context(server))
    async with scene.engine.start_backup("vm", {"vda": proxy.uri}) as job:
        await moving(job)
        size.write_text(str(SIZE + MiB))
        proxy.reset()
        await job.result()


async def f10_shrunk_during_a_run(scene: Scene) -> None:
    blocks = [f"blocksize-{name}=65536" for name in ("minimum", "preferred")]  # what cannot be read is found sooner
    server = scene.serve("rdelay=50ms", "--threads=1", *blocks, filters=("blocksize-policy", "delay"))
    async with scene.engine.start_backup("vm", {"vda": server.uri}) as job:
        await moving(job)
        os.truncate(scene.image, SIZE - 2 * MiB)
        await job.result()


async def _certificate(scene: Scene, *options: str, **wrong: Any) -> None:
    """Back up from a server with a certificate of which something is wrong."""
    theirs = make_certificates(scene.directory / "certificates", **wrong)
    server = scene.stack.enter_context(nbdkit("file", scene.image, *options, tls=theirs, tcp=True))
    await scene.back_up(server.uri)


async def f11_expired(scene: Scene) -> None:
    await _certificate(scene, expired=True)


async def f11_not_yet_valid(scene: Scene) -> None:
    await _certificate(scene, not_yet=True)


async def f11_of_another_host(scene: Scene) -> None:
    await _certificate(scene, hosts=("elsewhere.example",))


async def f11_of_an_unknown_authority(scene: Scene) -> None:
    server = scene.serve(tcp=True, tls=True)
    others = make_certificates(scene.directory / "others")
    await scene.back_up(server.uri.replace(str(scene.certificates), str(others)))


async def f11_no_certificate_of_ours(scene: Scene) -> None:
    theirs = make_certificates(scene.directory / "theirs")
    server = scene.stack.enter_context(nbdkit("file", scene.image, "--tls-verify-peer", tls=theirs, tcp=True))
    ours = scene.directory / "ours"
    ours.mkdir()
    shutil.copy(theirs / "ca-cert.pem", ours)
    await scene.back_up(server.uri.replace(str(theirs), str(ours)))


async def f11_tls_1_1(scene: Scene) -> None:
    context = old_context(server_context(scene.certificates))
    async with honest(context=context) as server:
        policy = TlsPolicy(ca_file=scene.certificates / "ca-cert.pem")
        await scene.back_up(server.address(policy))


async def f12_tls_stripped(scene: Scene) -> None:
    """By a man in the middle who has a server without TLS behind him."""
    server = scene.serve(tcp=True)
    await scene.back_up(f"nbds://127.0.0.1:{server.port}/?tls-certificates={scene.certificates}")


async def f12_plain_text_injected(scene: Scene) -> None:
    async def script(client: Client) -> None:
        await client.say(peer.greeting())
        await client.option_after_flags()
        await client.say(peer.reply(peer.STARTTLS, peer.ACK) + peer.reply(peer.STRUCTURED_REPLY, peer.ACK))
        assert b"vda" not in await client.rest()

    async with liar(script) as address:
        policy = TlsPolicy(ca_file=scene.certificates / "ca-cert.pem")
        await scene.back_up(replace(address, tls=policy, export="vda"))


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
    (f8_outage_in_reads, None, 0),
    (f8_outage_in_writes, None, 0),
    (f9_target_too_small, TargetRefusedError, 2),
    (f10_resized_between_runs, None, 0),
    (f10_grown_during_a_run, ExportError, 20),
    (f10_shrunk_during_a_run, BadBlockError, 20),
    (f11_expired, TlsError, 13),
    (f11_not_yet_valid, TlsError, 13),
    (f11_of_another_host, TlsError, 13),
    (f11_of_an_unknown_authority, TlsError, 13),
    (f11_no_certificate_of_ours, TlsError, 13),
    (f11_tls_1_1, TlsError, 13),
    (f12_tls_stripped, TlsError, 13),
    (f12_plain_text_injected, TlsError, 13),
    (f13_tls_cut_in_reads, None, 0),
    (f13_tls_reset_in_reads, None, 0),
]


@asynccontextmanager
async def staged(
    directory: Path, certificates: Path, retry: Retry = RETRY, timeouts: Timeouts = TIMEOUTS
) -> AsyncIterator[Scene]:
    """A scene for the time of the block."""
    image, target = directory / "disk.raw", directory / "target.raw"
    image.write_bytes(random.Random(11).randbytes(SIZE - 4 * MiB) + bytes(4 * MiB))
    with target.open("wb") as file:
        file.truncate(SIZE)
    repository = await Repository.open(directory / "repository", create=True)
    engine = Engine(repository, limits=Limits(connections=2), retry=retry, timeouts=timeouts)
    with ExitStack() as stack:
        async with repository, engine:
            yield Scene(directory, image, target, repository, engine, stack, certificates)


@pytest.mark.parametrize(("fault", "error", "code"), TABLE, ids=[row[0].__name__ for row in TABLE])
async def test_faults(
    fault: Callable[[Scene], Awaitable[None]],
    error: type[SfasyncError] | None,
    code: int,
    tmp_path: Path,
    certificates: Path,
) -> None:
    retry = GIVES_UP if fault in (f1_outage_that_is_too_long, f6_stall) else RETRY
    timeouts = HURRIED if fault in (f6_stall, f7_slow_server) else TIMEOUTS
    async with staged(tmp_path, certificates, retry, timeouts) as scene:
        if error is None:
            await fault(scene)
            return
        with pytest.raises(error) as caught:
            await fault(scene)
        assert caught.value.exit_code == code
        assert "\n" not in str(caught.value)
        made = await scene.repository.backups()
        assert len(made) == (1 if issubclass(error, TargetRefusedError) else 0)
        assert (await scene.engine.verify(data=True)).ok


def test_every_fault_of_connections_is_in_the_table() -> None:
    assert {row[0].__name__.split("_")[0] for row in TABLE} == {f"f{number}" for number in range(1, 14)}


@pytest.mark.faults
@pytest.mark.parametrize("outage", [outage_in_reads, outage_in_writes])
async def test_an_outage_of_half_a_minute(
    outage: Callable[[Scene, float], Awaitable[None]], tmp_path: Path, certificates: Path
) -> None:
    async with staged(tmp_path, certificates, Retry()) as scene:
        await outage(scene, 30.0)


@pytest.mark.faults
@pytest.mark.parametrize("connections", [1, 4])
async def test_fifty_resets_in_two_gibibytes(
    connections: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is exact, and at most a fifth of it comes twice."""
    size, resets = 2 * GiB, 50
    come: list[int] = []
    take, receive = Stream.buffer_updated, Line._receive

    def taken(stream: Stream, count: int) -> None:
        come.append(count)
        take(stream, count)

    def received(line: Line, buffer: memoryview) -> int:
        count = receive(line, buffer)
        come.append(count)  # from several threads
        return count

    monkeypatch.setattr(Stream, "buffer_updated", taken)
    monkeypatch.setattr(Line, "_receive", received)
    target = tmp_path / "copy.raw"
    with (
        nbdkit("pattern", str(size), "--threads=1", tcp=True) as server,
        resetting(server, every=size // (resets + 1), most=resets) as proxy,
    ):
        async with Engine(limits=Limits(connections=connections), retry=RETRY) as engine:
            result = await engine.copy(proxy.uri, target)
        assert result.bytes_read == size
        assert proxy.resets == resets
    with target.open("rb") as copied:
        for offset in range(0, size, MiB):
            expected = array.array("Q", range(offset, offset + MiB, 8))
            expected.byteswap()
            assert copied.read(MiB) == expected.tobytes()
    twice, sent = (sum(come) - size) / size, (proxy.received - size) / size
    with capsys.disabled():
        print(
            f" {connections} connections, {resets} resets in 2 GiB: exact, {twice:.2%} came twice, "
            f"{sent:.1%} left the server twice ",
            end="",
        )
    assert 0 <= twice <= sent <= 0.2
