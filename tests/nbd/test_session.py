from __future__ import annotations

import contextlib
import itertools
import random
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.errors import ConnectionLostError, DeadlineError, RemoteProtocolError, RequestError
from sfasync.nbd import const
from sfasync.nbd.session import Command, Session, State

from ..support import peer

CONTENT = random.Random(1).randbytes(1 << 18)
PATTERN = 0xA5


def new(*, structured: bool = True) -> Session:
    return Session("peer", structured=structured, contexts={"base:allocation": 7} if structured else {})


def read(session: Session, offset: int, length: int) -> tuple[Command, bytearray]:
    """A read that was sent, and its memory, filled with a pattern."""
    memory = bytearray([PATTERN]) * length
    command = Command(const.CMD_READ, offset, length, buffer=memoryview(memory))
    session.request(command)
    return command, memory


def sent(session: Session, kind: int, offset: int = 0, length: int = 4096, flags: int = 0) -> Command:
    command = Command(kind, offset, length, flags=flags)
    session.request(command)
    return command


def feed(
    session: Session, stream: bytes, cuts: Iterable[int] = (), finished: list[Command] | None = None
) -> list[Command]:
    """Feed a server's words in pieces of the given sizes, then all the rest; gives what was finished, in order.

    In a list of the caller's that is there as well when a violation ends it.
    """
    finished = [] if finished is None else finished
    sizes = iter(cuts)
    while stream:
        buffer = session.next_buffer()
        assert len(buffer) > 0
        count = min(next(sizes, len(stream)), len(stream), len(buffer))
        buffer[:count] = stream[:count]
        stream = stream[count:]
        finished += session.received(count)
    return finished


def test_a_request_looks_as_the_protocol_says() -> None:
    session = new()
    first = session.request(Command(const.CMD_WRITE, 1 << 40, 512, flags=const.CMD_FLAG_FUA))
    assert first == struct.pack(">IHHQQI", 0x25609513, 1, 1, 1, 1 << 40, 512)
    second = session.request(Command(const.CMD_FLUSH))
    assert second == struct.pack(">IHHQQI", 0x25609513, 0, 3, 2, 0, 0)
    assert list(session.in_flight) == [1, 2]


# --- any stream, any fragmentation -----------------------------------------------------------------------------------


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bool, list[tuple[int, int]], bytes, list[int], list[int]]:
    """Reads, an honest server's answers to them in any order and in any chunks, pieces, and whom to abandon when."""
    structured = draw(st.booleans())
    reads = draw(st.lists(st.tuples(st.integers(0, 4096), st.integers(1, 70_000)), min_size=1, max_size=5))
    chance = draw(st.randoms(use_true_random=False))
    answers = []
    for cookie, (offset, length) in enumerate(reads, 1):
        whole = CONTENT[offset : offset + length]
        if not structured:
            answers.append([peer.simple(cookie, 0, whole)])
            continue
        points = sorted({0, length, *(chance.randrange(length) for _ in range(chance.randrange(6)))})
        chunks = [peer.data(cookie, offset + start, whole[start:stop]) for start, stop in itertools.pairwise(points)]
        chance.shuffle(chunks)
        if chance.random() < 0.5:
            last = bytearray(chunks[-1])
            last[5] |= peer.DONE
            chunks[-1] = bytes(last)
        else:
            chunks.append(peer.chunk(cookie, peer.NONE, done=True))
        answers.append(chunks)
    stream = b""
    while answers:
        turn = chance.choice(answers)
        stream += turn.pop(0)
        if not turn:
            answers.remove(turn)
    cuts = draw(st.lists(st.integers(1, 30_000) | st.integers(1, 40), max_size=60))
    abandoned = draw(st.lists(st.integers(0, len(reads) - 1), max_size=3, unique=True))
    return structured, reads, stream, cuts, abandoned


@given(conversations())
def test_any_fragmentation_fills_the_same_memory(
    conversation: tuple[bool, list[tuple[int, int]], bytes, list[int], list[int]],
) -> None:
    structured, reads, stream, cuts, _ = conversation
    session = new(structured=structured)
    commands = [read(session, offset, length) for offset, length in reads]
    finished = feed(session, stream, cuts)
    assert set(finished) == {command for command, _ in commands}
    assert not session.in_flight
    for command, memory in commands:
        assert command.state is State.DONE
        assert memory == CONTENT[command.offset : command.offset + command.length]
        assert command.buffer is None


@given(conversations(), st.integers(0, 60))
def test_memory_of_an_abandoned_read_is_free_at_once(
    conversation: tuple[bool, list[tuple[int, int]], bytes, list[int], list[int]], after: int
) -> None:
    """Wherever in the stream it is abandoned, not one byte lands in its memory later, and the others get theirs."""
    structured, reads, stream, cuts, abandoned = conversation
    session = new(structured=structured)
    commands = [read(session, offset, length) for offset, length in reads]
    sizes = [*cuts, *[len(stream)] * 10]
    finished: list[Command] = []
    left: list[bytearray] = []
    fed = 0
    for turn, size in enumerate(sizes):
        if turn == after % len(sizes):
            for index in abandoned:
                command, memory = commands[index]
                if command.state is State.SENT:
                    session.abandon(command)
                    memory[:] = bytes(len(memory))
                    left.append(memory)
        piece = stream[fed : fed + min(size, len(session.next_buffer()))]
        fed += len(piece)
        if piece:
            finished += feed(session, piece)
    assert fed == len(stream)
    assert session.abandoned == 0
    assert not session.in_flight
    assert not any(map(any, left))
    for command, memory in commands:
        assert (command in finished) == (command.state is State.DONE)
        if command.state is State.DONE:
            assert memory == CONTENT[command.offset : command.offset + command.length]


def test_byte_by_byte() -> None:
    session = new()
    command, memory = read(session, 0, 1000)
    other = sent(session, const.CMD_FLUSH, length=0)
    stream = peer.data(1, 0, CONTENT[:600]) + peer.simple(2) + peer.data(1, 600, CONTENT[600:1000], done=True)
    assert feed(session, stream, [1] * len(stream)) == [other, command]
    assert memory == CONTENT[:1000]


@given(conversations(), st.data())
def test_damage_gives_only_the_protocol_error(
    conversation: tuple[bool, list[tuple[int, int]], bytes, list[int], list[int]], draw: st.DataObject
) -> None:
    structured, reads, stream, cuts, _ = conversation
    session = new(structured=structured)
    commands = [read(session, offset, length)[0] for offset, length in reads]
    at = draw.draw(st.integers(0, len(stream) - 1))
    damage = draw.draw(st.binary(min_size=1, max_size=24))
    finished: list[Command] = []
    with contextlib.suppress(RemoteProtocolError):
        feed(session, (stream[:at] + damage + stream[at + len(damage) :])[: len(stream)], cuts, finished)
    finished += session.fail(ConnectionLostError("over"))
    assert sorted(finished, key=id) == sorted(commands, key=id), "each command ends exactly once"
    assert all(command.state in (State.DONE, State.FAILED) for command in commands)


@given(st.binary(max_size=400), st.booleans())
def test_garbage_gives_only_the_protocol_error(garbage: bytes, structured: bool) -> None:
    session = new(structured=structured)
    read(session, 0, 4096)
    with contextlib.suppress(RemoteProtocolError):
        feed(session, garbage)


# --- structured replies ----------------------------------------------------------------------------------------------


def test_holes_are_zeros() -> None:
    session = new()
    command, memory = read(session, 4096, 3 << 20)
    feed(session, peer.hole(1, 4096, (3 << 20) - 10) + peer.data(1, 4096 + (3 << 20) - 10, b"0123456789", done=True))
    assert command.state is State.DONE
    assert memory == bytes((3 << 20) - 10) + b"0123456789"


def test_payload_goes_straight_to_the_request() -> None:
    session = new()
    _, memory = read(session, 0, 1 << 18)
    feed(session, peer.data(1, 0, CONTENT, done=True)[: 20 + 8 + 100])
    memory[100] = 1
    buffer = session.next_buffer()
    assert len(buffer) == (1 << 18) - 100
    assert buffer[0] == 1
    assert session.received(len(buffer))


def test_a_command_that_needs_no_payload_may_be_answered_either_way() -> None:
    session = new()
    commands = [sent(session, kind) for kind in (const.CMD_WRITE, const.CMD_TRIM, const.CMD_WRITE_ZEROES)]
    stream = peer.simple(1) + peer.chunk(3, peer.NONE, done=True) + peer.simple(2)
    assert feed(session, stream) == [commands[0], commands[2], commands[1]]


def test_block_status_is_kept_for_each_context() -> None:
    session = Session("peer", structured=True, contexts={"a": 1, "b": 2})
    command = sent(session, const.CMD_BLOCK_STATUS, 0, 1 << 20)
    stream = peer.status(1, [(4096, 3), (4096, 0)], number=2, done=False) + peer.status(1, [(8192, 1)], number=1)
    assert feed(session, stream, [30, 1, 1]) == [command]
    assert command.status is not None
    assert {name: bytes(payload) for name, payload in command.status.items()} == {
        "a": struct.pack(">III", 1, 8192, 1),
        "b": struct.pack(">IIIII", 2, 4096, 3, 4096, 0),
    }


def test_a_block_status_larger_than_staging() -> None:
    session = new()
    command = sent(session, const.CMD_BLOCK_STATUS, 0, 1 << 30)
    extents = [(512, n % 4) for n in range(100_000)]
    feed(session, peer.status(1, extents))
    assert command.status is not None
    assert len(command.status["base:allocation"]) == 4 + 8 * len(extents)


# --- errors of the server --------------------------------------------------------------------------------------------


def test_a_simple_error_fails_one_command() -> None:
    session = new(structured=False)
    command, _ = read(session, 4096, 512)
    other, memory = read(session, 0, 4)
    assert feed(session, peer.simple(1, 5) + peer.simple(2, 0, b"good")) == [command, other]
    assert command.state is State.FAILED
    assert isinstance(command.error, RequestError)
    assert command.error.errno == 5
    assert (command.error.offset, command.error.length) == (4096, 512)
    assert str(command.error) == "peer: read of 512 bytes at 4096: EIO"
    assert memory == b"good"


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (peer.error(1, 28, b"full\n"), "ENOSPC: full\\n"),
        (peer.error(1, 5, b"bad", offset=4100), "EIO: bad"),
        (peer.error(1, 5, b"x" * 1000), "EIO: " + "x" * 256 + "…"),
        (peer.error(1, 77), "error 77"),
        (peer.chunk(1, 0x8777, struct.pack(">IH", 22, 1) + b"?more", done=True), "EINVAL: ?"),
        (peer.error(1, 12, b"first", done=False) + peer.error(1, 5, b"second"), "ENOMEM: first"),
        (peer.error(1, 5, done=False) + peer.data(1, 4096, bytes(512), done=True), "EIO"),
        (peer.data(1, 4096, bytes(512)) + peer.error(1, 5), "EIO"),
    ],
)
def test_structured_errors_fail_one_command(stream: bytes, message: str) -> None:
    session = new()
    command, _ = read(session, 4096, 512)
    other = sent(session, const.CMD_FLUSH, length=0)
    assert feed(session, stream + peer.simple(2), [7] * 20) == [command, other]
    assert str(command.error) == f"peer: read of 512 bytes at 4096: {message}"
    assert other.state is State.DONE


# --- lies ------------------------------------------------------------------------------------------------------------

LIES = [
    ("wrong magic", b"\0" * 20, "wrong magic"),
    ("unknown cookie", peer.data(9, 4096, b"x"), "request 9, which is not in flight"),
    ("retired cookie", peer.chunk(2, peer.NONE, done=True) * 2, "request 2, which is not in flight"),
    ("simple reply to a read", peer.simple(1, 0, bytes(512)), "needs a structured one"),
    ("simple error to a read", peer.simple(1, 5), "needs a structured one"),
    ("simple reply after a chunk", peer.chunk(2, 0x8001, b"\0\0\0\x05\0\0") + peer.simple(2), "structured one"),
    ("offset before", peer.data(1, 4095, b"xx"), "outside of it"),
    ("offset behind", peer.data(1, 4608, b"x"), "outside of it"),
    ("end behind", peer.data(1, 4600, b"x" * 9), "outside of it"),
    ("offset far behind", peer.data(1, 2**64 - 1, b"x"), "outside of it"),
    ("overlap", peer.data(1, 4096, b"xx") + peer.data(1, 4097, b"x"), "came before"),
    ("hole over data", peer.data(1, 4096, b"xx") + peer.hole(1, 4097, 10), "came before"),
    ("data over hole", peer.hole(1, 4096, 10) + peer.data(1, 4096, b"x"), "came before"),
    ("hole behind", peer.hole(1, 4096, 513), "outside of it"),
    ("empty hole", peer.hole(1, 4096, 0), "outside of it"),
    ("missing bytes", peer.data(1, 4096, bytes(511), done=True), "before all bytes came"),
    ("a gap", peer.data(1, 4096, b"x") + peer.data(1, 4098, bytes(510), done=True), "before all bytes came"),
    ("nothing", peer.chunk(1, peer.NONE, done=True), "before all bytes came"),
    ("huge data", peer.chunk(1, peer.OFFSET_DATA, length=2**32 - 1), "type 1 with 4294967295 bytes"),
    ("data longer than asked", peer.chunk(1, peer.OFFSET_DATA, length=8 + 513), "type 1 with 521 bytes"),
    ("empty data", peer.chunk(1, peer.OFFSET_DATA, length=8), "type 1 with 8 bytes"),
    ("long hole chunk", peer.chunk(1, peer.OFFSET_HOLE, length=13), "type 2 with 13 bytes"),
    ("NONE with payload", peer.chunk(1, peer.NONE, b"x", done=True), "type 0 with 1 bytes"),
    ("NONE and more to come", peer.chunk(1, peer.NONE), "type 0 with 0 bytes"),
    ("unknown chunk", peer.chunk(1, 3, done=True), "a chunk of type 3"),
    ("data to a flush", peer.data(2, 0, b"x"), "a chunk of type 1 in the reply to a flush"),
    ("status to a read", peer.status(1, [(512, 0)]), "a chunk of type 5 in the reply to a read"),
    ("short error", peer.chunk(1, peer.ERROR, length=5), "type 32769 with 5 bytes"),
    ("long error", peer.chunk(1, peer.ERROR, length=5000), "type 32769 with 5000 bytes"),
    ("error without one", peer.error(1, 0), "carries no error"),
    ("error text too long", peer.chunk(1, peer.ERROR, b"\0\0\0\x05\0\x09abc", done=True), "longer than its chunk"),
    ("error outside", peer.error(1, 5, offset=4608), "outside of it"),
    ("endless chunks", peer.error(1, 5, done=False) * 40, "more chunks than 512 bytes can have"),
    ("status without extents", peer.chunk(3, peer.STATUS, length=4), "type 5 with 4 bytes"),
    ("status with a rest", peer.chunk(3, peer.STATUS, length=13), "type 5 with 13 bytes"),
    ("huge status", peer.chunk(3, peer.STATUS, length=4 + (8 << 20) + 8), "type 5 with 8388620 bytes"),
    ("unknown context", peer.status(3, [(512, 0)], number=8), "metadata context 8"),
    ("context twice", peer.status(3, [(512, 0)], done=False) * 2, "metadata context 7"),
    ("no status", peer.chunk(3, peer.NONE, done=True), "before all metadata contexts came"),
    ("simple reply to status", peer.simple(3), "needs a structured one"),
    ("two extents when one was asked", peer.status(4, [(512, 0), (512, 1)]), "type 5 with 20 bytes"),
]


@pytest.mark.parametrize(("stream", "message"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
@pytest.mark.parametrize("cut", [1, 100_000])
def test_lies_are_fatal(stream: bytes, message: str, cut: int) -> None:
    session = new()
    read(session, 4096, 512)
    sent(session, const.CMD_FLUSH, length=0)
    sent(session, const.CMD_BLOCK_STATUS, 0, 1 << 30)
    sent(session, const.CMD_BLOCK_STATUS, 0, 1 << 30, const.CMD_FLAG_REQ_ONE)
    with pytest.raises(RemoteProtocolError, match=message) as caught:
        feed(session, stream + bytes(32), [cut] * len(stream))
    assert str(caught.value).startswith("peer: ")


def test_chunks_must_make_progress() -> None:
    session = new()
    read(session, 0, 4096)
    with pytest.raises(RemoteProtocolError, match="more chunks than 4096 bytes can have"):
        feed(session, b"".join(peer.data(1, n, b"x") for n in range(30)))


def test_structured_replies_that_were_not_agreed_are_fatal() -> None:
    session = new(structured=False)
    read(session, 0, 4)
    with pytest.raises(RemoteProtocolError, match="wrong magic number 0x668e33ef"):
        feed(session, peer.data(1, 0, b"xxxx", done=True))


def test_payload_behind_a_simple_error_is_fatal() -> None:
    session = new(structured=False)
    read(session, 0, 16)
    with pytest.raises(RemoteProtocolError, match="wrong magic"):
        feed(session, peer.simple(1, 5) + bytes(16))


# --- the end ---------------------------------------------------------------------------------------------------------


def test_failing_gives_what_was_finished_and_fails_the_rest() -> None:
    session = new()
    done = sent(session, const.CMD_FLUSH, length=0)
    reading, _ = read(session, 512, 512)
    abandoned, _ = read(session, 0, 512)
    session.abandon(abandoned)
    with pytest.raises(RemoteProtocolError):
        feed(session, peer.simple(1) + b"\0" * 20)
    assert session.fail(DeadlineError("late")) == [done, reading]
    assert done.state is State.DONE
    assert reading.state is State.FAILED
    assert isinstance(reading.error, DeadlineError)
    assert (str(reading.error), reading.error.offset, reading.error.length) == ("late", 512, 512)
    assert reading.buffer is None
    assert abandoned.state is State.ABANDONED
    assert not session.in_flight
    assert session.abandoned == 0
    assert len(session.next_buffer()) > 0


def test_errors_are_not_shared() -> None:
    session = new()
    first, second = sent(session, const.CMD_FLUSH), sent(session, const.CMD_FLUSH)
    session.fail(ConnectionLostError("over"))
    assert first.error is not second.error
