from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from sfasync import openssl
from sfasync.errors import ConnectError, ConnectionLostError, RemoteProtocolError, SfasyncError, printable
from sfasync.models import ExportAddress
from sfasync.transport.stream import Stream, connect

from ..test_tls import Server, layer_for


class Recorder:
    """A receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.events: list[object] = []
        self.changed = asyncio.Event()
        self.on_received: Callable[[], None] = lambda: None
        self._buffer = memoryview(bytearray(7))

    def next_buffer(self) -> memoryview:
        return self._buffer

    def received(self, count: int) -> None:
        self.data += self._buffer[:count]
        self.changed.set()
        self.on_received()

    def secured(self) -> None:
        """It is the server who is last to know."""

    def resumed(self) -> None:
        self.events.append("resumed")
        self.changed.set()

    def lost(self, error: SfasyncError | None) -> None:
        self.events.append(error)
        self.changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Stream, Recorder, socket.socket]]:
    """A stream and the socket at its other end."""
    recorder = Recorder()
    stream = Stream("peer", recorder)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        await connect(stream, ExportAddress(socket=tmp_path / "s"))
        other, _ = listener.accept()
    with other:
        other.setblocking(False)
        yield stream, recorder, other
        stream.abort()
        await recorder.until(lambda: len(recorder.events) > 0 and recorder.events[-1] != "resumed")


async def test_bytes_come_in_order(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_, recorder, other):
        other.sendall(b"a long line of bytes")
        await recorder.until(lambda: len(recorder.data) == 20)
        assert recorder.data == b"a long line of bytes"


async def test_not_paused_means_that_everything_left(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with pair(tmp_path) as (stream, recorder, other):
        payload = bytearray(b"x" * (64 << 20))
        stream.write(b"header", memoryview(payload))
        assert stream.paused
        assert stream.unsent > 0
        got = 0
        while got < len(payload) + 6:
            got += len(await loop.sock_recv(other, 1 << 20))
        await recorder.until(lambda: "resumed" in recorder.events)
        assert not stream.paused
        assert stream.unsent == 0
        stream.write(b"x")
        assert not stream.paused


async def test_the_end_of_the_other_side(tmp_path: Path) -> None:
    async with pair(tmp_path) as (stream, recorder, other):
        other.close()
        await recorder.until(lambda: recorder.events == [None])
        assert stream.ended
        stream.write(b"nobody hears this")


async def test_closing_sends_what_is_left(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with pair(tmp_path) as (stream, recorder, other):
        stream.write(memoryview(bytes(8 << 20)))
        stream.close()
        stream.close()
        got = 0
        while piece := await loop.sock_recv(other, 1 << 20):
            got += len(piece)
        assert got == 8 << 20
        await recorder.until(lambda: recorder.events == [None])


@pytest.mark.skipif(openssl.library() is None, reason="this Python hides its OpenSSL")
@pytest.mark.parametrize("goodbye", [False, True])
async def test_what_tls_read_ahead_for_a_thread_is_for_the_receiver(
    tmp_path: Path, certificates: Path, goodbye: bool
) -> None:
    loop, server = asyncio.get_running_loop(), Server(certificates)
    async with pair(tmp_path) as (stream, recorder, other):
        stream.start_tls(layer_for(certificates))
        done = False
        while not done:
            server.incoming.write(await loop.sock_recv(other, 1 << 16))
            with suppress(ssl.SSLWantReadError):
                server.tls.do_handshake()
                done = True
            other.sendall(server.outgoing.read())
        lent = stream.lend()
        server.tls.write(b"for the thread")
        with suppress(ssl.SSLWantReadError):
            server.tls.unwrap() if goodbye else server.tls.write(b"and more")
        other.sendall(server.outgoing.read())
        try:
            assert lent.recv_into(memoryview(bytearray(20))) == 14
        finally:
            stream.take_back(lent)
        await recorder.until(lambda: recorder.events == [None] if goodbye else recorder.data == b"and more")


async def test_aborting_gives_the_first_reason_once(tmp_path: Path) -> None:
    async with pair(tmp_path) as (stream, recorder, _):
        first = RemoteProtocolError("first")
        stream.abort(first)
        stream.abort(RemoteProtocolError("second"))
        await recorder.until(lambda: len(recorder.events) > 0)
        assert recorder.events == [first]


async def test_an_error_of_the_receiver_ends_the_stream(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_, recorder, other):
        failure = RemoteProtocolError("lies")

        def fail() -> None:
            raise failure

        recorder.on_received = fail
        other.sendall(b"x")
        await recorder.until(lambda: recorder.events == [failure])


async def test_a_bug_of_the_receiver_ends_the_stream_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with pair(tmp_path) as (_, recorder, other):

        def fail() -> None:
            raise ZeroDivisionError("oops")

        recorder.on_received = fail
        other.sendall(b"x")
        await recorder.until(lambda: len(recorder.events) > 0)
        (error,) = recorder.events
        assert isinstance(error, ConnectionLostError)
        assert isinstance(error.__cause__, ZeroDivisionError)
        assert "internal error" in str(error)
        assert "oops" in caplog.text


# --- connecting ------------------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (lambda: ExportAddress(socket=Path("/nowhere/socket")), "cannot connect to /nowhere/socket: No such file"),
        (lambda: ExportAddress(socket=Path("/" + "x" * 200)), "path too long"),
        (lambda: ExportAddress(host="127.0.0.1", port=closed_port()), ": Connection refused"),
        (lambda: ExportAddress(host="no-such-host.invalid"), "cannot connect to no-such-host.invalid:10809: "),
        (lambda: ExportAddress(host="x" * 300 + ".invalid"), "cannot connect to xxx"),
        (lambda: ExportAddress(host="bad\nhost"), r"cannot connect to bad\\nhost:10809"),
        (lambda: ExportAddress(host=".."), r"cannot connect to \.\.:10809"),
        (lambda: ExportAddress(host="zero\0byte"), r"cannot connect to zero\\x00byte:10809"),
        (lambda: ExportAddress(socket=Path("zero\0byte")), r"cannot connect to zero\\x00byte: "),
    ],
)
async def test_nobody_there(address: Callable[[], ExportAddress], message: str) -> None:
    recorder = Recorder()
    where = address()
    with pytest.raises(ConnectError, match=message) as caught:
        await connect(Stream(printable(where.peer), recorder), where)
    assert "\n" not in str(caught.value)
    assert recorder.events == []


async def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    """connect(2) of a Unix socket says EAGAIN then, and the loop's own connect takes that for success."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        waiting = []
        while True:
            client = socket.socket(socket.AF_UNIX)
            waiting.append(client)
            client.setblocking(False)
            try:
                client.connect(str(tmp_path / "s"))
            except BlockingIOError:
                break
        recorder = Recorder()
        stream = Stream("peer", recorder)
        task = asyncio.create_task(connect(stream, ExportAddress(socket=tmp_path / "s")))
        done, _ = await asyncio.wait({task}, timeout=0.1)
        assert not done
        for _ in waiting[1:]:
            listener.accept()[0].close()
        await task
        for client in waiting:
            client.close()
        stream.abort()
        await recorder.until(lambda: len(recorder.events) > 0)


async def test_cancelling_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(100)
        for turns in range(6):
            recorder = Recorder()
            stream = Stream("peer", recorder)
            task = asyncio.create_task(connect(stream, ExportAddress(socket=tmp_path / "s")))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():  # it was faster
                stream.abort()
        for _ in range(3):
            await asyncio.sleep(0)
