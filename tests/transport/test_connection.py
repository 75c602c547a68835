from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from sfasync.errors import ConnectionLostError, DeadlineError, RemoteProtocolError, RequestError, SfasyncError
from sfasync.models import ExportAddress, Timeouts
from sfasync.nbd import const, wire
from sfasync.nbd.handshake import ExportInfo
from sfasync.nbd.session import Command, State
from sfasync.transport import connection as module
from sfasync.transport.connection import Connection
from sfasync.transport.stream import Receiver, Stream

from ..support import peer
from ..support.liar import Client, Script, liar

INFO = ExportInfo(name="", size=1 << 30, flags=peer.ALL_FLAGS, structured=True)
PAYLOAD = 64 << 10


async def open_(address: ExportAddress, *, requests: int = 16, timeouts: Timeouts | None = None) -> Connection:
    return await Connection.open(
        address, context=None, contexts=["base:allocation"], requests=requests, timeouts=timeouts or Timeouts()
    )


def reading(offset: int = 0, length: int = 512) -> Command:
    return Command(const.CMD_READ, offset, length, buffer=memoryview(bytearray(length)))


def writing(length: int = PAYLOAD) -> Command:
    return Command(const.CMD_WRITE, 0, length, buffer=memoryview(bytearray(length)))


class Told:
    """A callback that keeps what it is told."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self._changed = asyncio.Event()

    def __call__(self, command: Command) -> None:
        self.commands.append(command)
        self._changed.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.commands) < count:
                self._changed.clear()
                await self._changed.wait()


class FakeStream(Stream):
    """A stream to nowhere that keeps what is written, and pauses when it is told to."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.full = False
        self.aborted: SfasyncError | None = None
        super().__init__("peer", cast("Receiver", None))  # the connection makes itself the receiver

    def write(self, *parts: bytes | memoryview) -> None:
        self.written.append(b"".join(parts))
        self.paused = self.full

    def close(self) -> None:
        self.ended = True

    def abort(self, error: SfasyncError | None = None) -> None:
        self.ended = True
        self.aborted = self.aborted or error

    def emptied(self) -> None:
        self.full = self.paused = False
        self.receiver.resumed()

    def comes(self, data: bytes) -> None:
        while data:
            buffer = self.receiver.next_buffer()
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            data = data[count:]
            self.receiver.received(count)


@asynccontextmanager
async def fake(requests: int = 16) -> AsyncIterator[tuple[FakeStream, Connection, Told]]:
    """A connection on a stream to nowhere; every command must have been told at the end."""
    stream, told = FakeStream(), Told()
    connection = Connection(stream, INFO, name="peer", requests=requests, timeouts=Timeouts())
    yield stream, connection, told
    connection.lost(None)
    assert len(set(told.commands)) == len(told.commands), "each command is told once"


# --- sending ---------------------------------------------------------------------------------------------------------


async def test_no_more_in_flight_than_agreed() -> None:
    async with fake(requests=2) as (stream, connection, told):
        for _ in range(5):
            connection.submit(reading(), told)
        assert len(stream.written) == 2
        assert connection.load == 5
        stream.comes(peer.data(1, 0, bytes(512), done=True))
        assert len(stream.written) == 3
        assert [command.state for command in told.commands] == [State.DONE]


async def test_what_callbacks_submit_leaves_in_one_write() -> None:
    async with fake() as (stream, connection, told):

        def again(command: Command) -> None:
            told(command)
            connection.submit(reading(), told)

        for _ in range(3):
            connection.submit(reading(), again)
        stream.written.clear()
        stream.comes(b"".join(peer.data(cookie, 0, bytes(512), done=True) for cookie in (1, 2, 3)))
        assert [len(data) for data in stream.written] == [3 * 28]


async def test_what_is_submitted_together_leaves_in_one_write() -> None:
    async with fake(requests=4) as (stream, connection, told):
        for number in range(3):
            connection.submit(reading(number), told, more=True)
        assert (stream.written, connection.load) == ([], 3)
        connection.send()
        assert [len(written) for written in stream.written] == [3 * wire.REQUEST.size]
        connection.send()
        assert len(stream.written) == 1


async def test_small_payloads_are_joined_and_large_ones_follow_their_header() -> None:
    async with fake() as (stream, connection, told):
        connection.submit(writing(4096), told)
        connection.submit(writing(PAYLOAD), told)
        assert [len(data) for data in stream.written] == [28 + 4096, 28 + PAYLOAD]


async def test_nothing_is_sent_while_a_payload_waits() -> None:
    async with fake() as (stream, connection, told):
        stream.full = True
        connection.submit(writing(), told)
        connection.submit(reading(), told)
        assert len(stream.written) == 1
        stream.emptied()
        assert len(stream.written) == 2


# --- memory ----------------------------------------------------------------------------------------------------------


async def test_a_reply_that_comes_before_the_payload_has_left() -> None:
    """The server may refuse a write that it has not read; the memory is the transport's all the same."""
    async with fake() as (stream, connection, told):
        stream.full = True
        connection.submit(writing(), told)
        stream.comes(peer.error(1, 28))
        assert told.commands == []
        stream.emptied()
        assert isinstance(told.commands[0].error, RequestError)


async def test_a_cancelled_write_waits_for_its_payload_to_leave() -> None:
    async with fake() as (stream, connection, told):
        command = writing()
        stream.full = True
        connection.submit(command, told)
        connection.abandon(command)
        connection.abandon(command)
        assert told.commands == []
        stream.emptied()
        assert told.commands == [command]
        stream.comes(peer.simple(1))
        assert connection.load == 0
        assert connection.alive


@pytest.mark.parametrize("answered", [False, True])
async def test_a_cancelled_write_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, answered: bool) -> None:
    monkeypatch.setattr(module, "_LEAVE", 0.01)
    async with fake() as (stream, connection, told):
        command = writing()
        stream.full = True
        connection.submit(command, told)
        if answered:
            stream.comes(peer.simple(1))
        connection.abandon(command)
        await asyncio.sleep(0.05)
        assert isinstance(stream.aborted, DeadlineError)
        connection.lost(stream.aborted)
        assert told.commands == [command]


async def test_a_cancelled_write_that_has_left_is_free_at_once() -> None:
    async with fake() as (_, connection, told):
        command = writing()
        connection.submit(command, told)
        connection.abandon(command)
        assert told.commands == [command]
        assert command.state is State.ABANDONED


async def test_a_cancelled_read_is_free_at_once_and_the_connection_goes_on() -> None:
    async with fake() as (stream, connection, told):
        first, second = reading(), reading()
        connection.submit(first, told)
        connection.submit(second, told)
        connection.abandon(first)
        connection.abandon(first)
        assert told.commands == [first]
        assert first.buffer is None
        stream.comes(peer.data(1, 0, b"x" * 512, done=True) + peer.data(2, 0, b"y" * 512, done=True))
        assert told.commands == [first, second]
        assert second.state is State.DONE


async def test_a_cancelled_request_that_was_queued_is_never_sent() -> None:
    async with fake(requests=1) as (stream, connection, told):
        first, second = reading(), reading()
        connection.submit(first, told)
        connection.submit(second, told)
        connection.abandon(second)
        assert told.commands == [second]
        stream.comes(peer.data(1, 0, bytes(512), done=True))
        assert len(stream.written) == 1


async def test_the_reply_to_an_abandoned_request_makes_room() -> None:
    async with fake(requests=1) as (stream, connection, told):
        first, second = reading(), reading()
        connection.submit(first, told)
        connection.submit(second, told)
        connection.abandon(first)
        assert len(stream.written) == 1
        stream.comes(peer.data(1, 0, bytes(512), done=True))
        assert len(stream.written) == 2


async def test_abandoning_what_is_done_does_nothing() -> None:
    async with fake() as (stream, connection, told):
        command = reading()
        connection.submit(command, told)
        stream.comes(peer.data(1, 0, bytes(512), done=True))
        connection.abandon(command)
        assert command.state is State.DONE
        assert told.commands == [command]


async def test_too_many_abandoned_requests_cost_the_connection() -> None:
    async with fake(requests=100) as (stream, connection, told):
        commands = [reading() for _ in range(34)]
        for command in commands:
            connection.submit(command, told)
        for command in commands[:32]:
            connection.abandon(command)
        assert stream.aborted is None
        connection.abandon(commands[32])
        assert isinstance(stream.aborted, DeadlineError)


async def test_a_callback_that_fails_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async with fake() as (stream, connection, told):

        def fail(command: Command) -> None:
            told(command)
            raise ZeroDivisionError

        connection.submit(reading(), fail)
        connection.submit(reading(), told)
        stream.comes(peer.data(1, 0, bytes(512), done=True) + peer.data(2, 0, bytes(512), done=True))
        assert len(told.commands) == 2
        assert "a callback failed" in caplog.text


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_a_lost_connection_fails_all_once() -> None:
    async with fake(requests=2) as (_, connection, told):
        commands = [reading(n * 512) for n in range(4)]
        for command in commands:
            connection.submit(command, told)
        connection.lost(None)
        connection.lost(None)
        assert told.commands == commands
        for command in commands:
            assert isinstance(command.error, ConnectionLostError)
            assert str(command.error) == "peer: the connection was closed by the server"
            assert command.error.offset == command.offset
            assert command.buffer is None
        assert not connection.alive
        with pytest.raises(ConnectionLostError):
            connection.submit(reading(), told)
        assert "dead" in repr(connection)


async def test_lies_fail_all_but_what_was_answered_before() -> None:
    async def script(client: Client) -> None:
        await client.open()
        first, _ = await client.request(), await client.request()
        await client.say(peer.data(first.cookie, 0, b"x" * 512, done=True) + b"\0" * 20)
        await client.silence()

    told = Told()
    async with liar(script) as address:
        connection = await open_(address)
        first, second = reading(), reading()
        connection.submit(first, told)
        connection.submit(second, told)
        await told.until(2)
        assert first.state is State.DONE
        assert isinstance(second.error, RemoteProtocolError)
        assert isinstance(connection.failure, RemoteProtocolError)
        await connection.aclose()


async def test_closing_says_goodbye() -> None:
    heard: list[bytes] = []

    async def script(client: Client) -> None:
        await client.open()
        await client.silence()
        heard.append(client.heard)

    async with liar(script) as address:
        connection = await open_(address)
        await connection.aclose()
        await connection.aclose()
        assert not connection.alive
    assert heard[0].endswith(struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0))


async def test_closing_fails_what_is_under_way() -> None:
    async def script(client: Client) -> None:
        await client.open()
        await client.silence()

    told = Told()
    async with liar(script) as address:
        connection = await open_(address)
        connection.submit(reading(), told)
        await connection.aclose()
        assert isinstance(told.commands[0].error, ConnectionLostError)


async def test_closing_takes_no_longer_than_it_may() -> None:
    async def script(client: Client) -> None:
        await client.open()
        await client.deafness()

    told = Told()
    async with liar(script) as address:
        connection = await open_(address, timeouts=Timeouts(close=0.1))
        connection.submit(writing(32 << 20), told)
        start = asyncio.get_running_loop().time()
        await connection.aclose()
        assert asyncio.get_running_loop().time() - start < 1
        assert isinstance(told.commands[0].error, ConnectionLostError)


# --- deadlines -------------------------------------------------------------------------------------------------------


async def silent(client: Client) -> None:
    await client.open()
    await client.silence()


async def deaf(client: Client) -> None:
    await client.open()
    await client.deafness()


async def busy_with_others(client: Client) -> None:
    """Answers all but the first request."""
    await client.open()
    await client.request()
    while True:
        request = await client.request()
        await client.say(peer.data(request.cookie, request.offset, bytes(request.length), done=True))


@pytest.mark.parametrize(
    ("script", "make", "timeouts", "message"),
    [
        (silent, reading, Timeouts(stall=0.2), "no byte came or left for 0."),
        (deaf, lambda: writing(32 << 20), Timeouts(stall=0.2), "no byte came or left for 0."),
        (busy_with_others, reading, Timeouts(request=0.2), "a request was not answered within 0."),
    ],
)
async def test_deadlines(script: Script, make: Callable[[], Command], timeouts: Timeouts, message: str) -> None:
    told = Told()
    async with liar(script) as address:
        connection = await open_(address, timeouts=timeouts)
        first = make()

        def again(command: Command) -> None:
            if connection.alive:
                connection.submit(reading(), again)

        connection.submit(first, told)
        if script is busy_with_others:
            connection.submit(reading(), again)
        await told.until(1)
        assert isinstance(first.error, DeadlineError)
        assert message in str(first.error)
        await connection.aclose()


async def test_slow_but_steady_is_no_stall() -> None:
    async def script(client: Client) -> None:
        await client.open()
        request = await client.request()
        whole = peer.data(request.cookie, 0, b"x" * 512, done=True)
        for start in range(0, len(whole), 60):
            await client.say(whole[start : start + 60])
            await asyncio.sleep(0.06)
        await client.silence()

    told = Told()
    async with liar(script) as address:
        connection = await open_(address, timeouts=Timeouts(stall=0.3))
        connection.submit(reading(), told)
        await told.until(1)
        assert told.commands[0].state is State.DONE
        await asyncio.sleep(0.4)
        assert connection.alive, "nothing is late while nothing is in flight"
        await connection.aclose()


async def test_a_long_flush_is_no_stall() -> None:
    async def script(client: Client) -> None:
        await client.open()
        request = await client.request()
        await asyncio.sleep(0.5)
        await client.say(peer.simple(request.cookie))
        await client.silence()

    told = Told()
    async with liar(script) as address:
        connection = await open_(address, timeouts=Timeouts(stall=0.1))
        connection.submit(Command(const.CMD_FLUSH), told)
        await told.until(1)
        assert told.commands[0].state is State.DONE
        await connection.aclose()


async def test_an_abandoned_request_without_progress_costs_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ABANDONED_STALL", 0.1)
    told = Told()
    async with liar(silent) as address:
        connection = await open_(address, timeouts=Timeouts(stall=2.0, request=0.4))
        abandoned, other = reading(), reading()
        connection.submit(abandoned, told)
        connection.submit(other, told)
        connection.abandon(abandoned)
        await told.until(2)
        assert isinstance(other.error, DeadlineError)
        assert "after a request was cancelled" in str(other.error)
        await connection.aclose()
