"""What is fuzzed: the handshake, and behind it the transmission phase, fed with whatever a server might say.

A conversation may come to its end, or fail with one of the typed errors. Anything else is a bug, and so is a byte that
is written outside of the memory of a read, and memory without a bound.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final

from sfasync.errors import ConnectionLostError, NbdError, TlsError
from sfasync.nbd import const, wire
from sfasync.nbd.handshake import ExportInfo, Handshake, listing, opening, querying
from sfasync.nbd.session import Command, Session, State
from tests.support import peer

from .mutate import damaged

SIZE: Final = 1 << 20

_CONTEXTS: Final = ["base:allocation", "qemu:allocation-depth"]
_READS: Final = [(0, 512), (4096, 3000), (SIZE - 100, 100)]
_GUARD: Final = b"\xa5" * 64

HANDSHAKES: Final[Mapping[str, Callable[[], Handshake[Any]]]] = {
    "open": lambda: opening("peer", tls=None, export="disk", contexts=_CONTEXTS),
    "open over TLS": lambda: opening("peer", tls="starttls", export="disk", contexts=_CONTEXTS),
    "query": lambda: querying("peer", tls=None, export="disk"),
    "list": lambda: listing("peer", tls=None),
}
"""The conversations that a client can begin."""


def feed(kind: str, bursts: Sequence[bytes], chance: random.Random) -> str:
    """Let a server talk; gives how that ended: ``done``, or the name of a typed error.

    Args:
        kind: One of `HANDSHAKES`.
        bursts: What it says; the client answers between two of them.
        chance: Cuts them in the pieces in which they arrive.

    Raises:
        Exception: Anything else. This is a finding.
    """
    handshake = HANDSHAKES[kind]()
    try:
        rest = _negotiate(handshake, iter(bursts), chance)
        if kind.startswith("open"):
            _transmit(handshake.result, rest, chance)
    except (NbdError, TlsError) as error:
        assert str(error).isprintable(), f"an unprintable message: {error!r}"
        return type(error).__name__
    return "done"


def mutated(chance: random.Random) -> tuple[str, list[bytes]]:
    """A kind of conversation, and a damaged one of that kind."""
    kind = chance.choice(_KINDS)
    bursts = list(chance.choice(_CORPUS[kind]))
    hurt = chance.randrange(len(bursts))
    other = chance.choice(_CORPUS[chance.choice(_KINDS)])
    bursts[hurt] = damaged(bursts[hurt], chance.choice(other), chance)
    return kind, bursts


def conversations(kind: str) -> list[list[bytes]]:
    """What honest servers say in conversations of a kind, in bursts."""
    greeting = peer.greeting()
    start = greeting + peer.reply(peer.STRUCTURED_REPLY, peer.ACK)
    contexts = peer.context(7, b"base:allocation") + peer.context(9, b"qemu:allocation-depth")
    chosen = contexts + peer.reply(peer.SET_META_CONTEXT, peer.ACK)
    go = (
        peer.info_export(SIZE)
        + peer.info_block_size(1, 4096, 1 << 25)
        + peer.info_text(1, b"the disk")
        + peer.info_text(2, b"of web-01")
        + peer.reply(peer.GO, peer.ACK)
    )
    refused = peer.reply(peer.STRUCTURED_REPLY, peer.ERR_UNSUP)
    match kind:
        case "list":
            return [[start + peer.listed(b"vda", b"of web-01") + peer.listed(b"vdb") + peer.reply(peer.LIST, peer.ACK)]]
        case "query":
            offered = peer.context(0, b"base:allocation", peer.LIST_META_CONTEXT)
            told = peer.info_export(SIZE, option=peer.OPT_INFO) + peer.reply(peer.OPT_INFO, peer.ACK)
            return [[start + offered + peer.reply(peer.LIST_META_CONTEXT, peer.ACK) + told]]
        case "open over TLS":
            agreed = peer.reply(peer.STARTTLS, peer.ACK)
            return [[greeting + agreed, start[len(greeting) :] + chosen + go, _chunks()]]
        case _:
            by_name = peer.reply(peer.GO, peer.ERR_UNSUP) + SIZE.to_bytes(8, "big") + b"\0\x6d"
            return [
                [start + chosen + go, _chunks()],
                [greeting + refused + go, _simple()],
                [greeting + refused + by_name, _simple()],
            ]


def _chunks() -> bytes:
    """Structured replies to the requests of `_requests`, some of them interleaved."""
    (first, _), (second, _), (third, _) = _READS
    return b"".join(
        [
            peer.data(1, first, bytes(200)) + peer.hole(1, first + 200, 312, done=True),
            peer.data(2, second + 1000, bytes(2000)),
            peer.status(4, [(4096, 0), (SIZE - 4096, 3)], done=False) + peer.status(4, [(SIZE, 1)], number=9),
            peer.data(2, second, bytes(1000), done=True),
            peer.error(3, 5, b"a bad sector", offset=third + 10),
            peer.simple(5) + peer.chunk(6, peer.NONE, done=True),
        ]
    )


def _simple() -> bytes:
    """Simple replies to the requests of `_requests`, out of order."""
    first, second, _ = (peer.simple(cookie, 0, bytes(length)) for cookie, (_, length) in enumerate(_READS, 1))
    return second + peer.simple(5) + first + peer.simple(3, 5) + peer.simple(4, 22) + peer.simple(6)


_KINDS: Final = list(HANDSHAKES)
_CORPUS: Final = {kind: conversations(kind) for kind in _KINDS}


# --- the client ------------------------------------------------------------------------------------------------------


def _pieces(burst: bytes, chance: random.Random) -> Iterator[int]:
    """In how large pieces a burst arrives: all at once, or in some, or byte by byte."""
    most = chance.choice([len(burst), 200, 20, 1])
    left = len(burst)
    while left > 0:
        count = min(left, chance.randint(1, max(most, 1)))
        left -= count
        yield count


def _negotiate(handshake: Handshake[Any], bursts: Iterator[bytes], chance: random.Random) -> Iterator[bytes]:
    """The handshake; gives what was said behind it."""
    handshake.outgoing()
    for burst in bursts:
        rest = burst
        for piece in _pieces(burst, chance):
            _receive(handshake, rest[:piece])
            rest = rest[piece:]
            handshake.outgoing()
            if handshake.done:
                return chain([rest], bursts)
            if handshake.wants_tls:
                if rest:
                    raise TlsError("what is no TLS comes where TLS should begin")
                handshake.tls_started()
    raise handshake.closed()


def _transmit(info: ExportInfo, bursts: Iterator[bytes], chance: random.Random) -> None:
    """Some requests on an export that was opened, one of them abandoned at some time."""
    session = Session("peer", structured=info.structured, contexts=info.contexts)
    memories = [bytearray(_GUARD + bytes(length) + _GUARD) for _, length in _READS]
    commands = _requests(session, memories)
    abandoned = chance.randrange(2 * len(commands))  # one of them, or none
    finished: list[Command] = []
    try:
        for burst in bursts:
            rest = burst
            for piece in _pieces(burst, chance):
                finished += _receive(session, rest[:piece])
                rest = rest[piece:]
                if abandoned < len(commands) and chance.random() < 0.2 and commands[abandoned].state is State.SENT:
                    session.abandon(commands[abandoned])
        raise ConnectionLostError("the end")
    except NbdError as error:
        finished += session.fail(error)
        raise
    finally:
        _check(finished, commands, memories)


def _requests(session: Session, memories: Sequence[bytearray]) -> list[Command]:
    commands = []
    for (offset, length), memory in zip(_READS, memories, strict=True):
        view = memoryview(memory)[len(_GUARD) : -len(_GUARD)]
        commands.append(Command(const.CMD_READ, offset, length, buffer=view))
    commands.append(Command(const.CMD_BLOCK_STATUS, 0, SIZE))
    commands.append(Command(const.CMD_WRITE, 0, 512, buffer=memoryview(bytes(512))))
    commands.append(Command(const.CMD_FLUSH))
    for command in commands:
        session.request(command)
    return commands


def _receive(receiver: Handshake[Any] | Session, data: bytes) -> list[Command]:
    """Hand over some bytes; gives what is finished with them."""
    finished: list[Command] = []
    while data:
        buffer = receiver.next_buffer()
        assert len(buffer) > 0, "no memory for the next byte"
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        data = data[count:]
        finished += receiver.received(count) or ()
    return finished


def _check(finished: Sequence[Command], commands: Sequence[Command], memories: Sequence[bytearray]) -> None:
    assert len(set(finished)) == len(finished), "a command was finished twice"
    for memory in memories:
        assert memory.startswith(_GUARD) and memory.endswith(_GUARD), "a byte outside of the memory of a read"
    for command in commands:
        assert command.state is not State.SENT, f"{command!r} was forgotten"
        if command.state is not State.ABANDONED:
            assert (command.state is State.FAILED) == (command.error is not None), f"{command!r} without a reason"
    for status in (commands[len(memories)].status or {}).values():
        assert len(status) <= const.MAX_BLOCK_STATUS
        if commands[len(memories)].state is State.DONE:
            _check_extents(status)


def _check_extents(status: bytearray) -> None:
    position = 0
    try:
        for offset, length, _ in wire.decode_descriptors(status, 0, SIZE):
            assert offset == position
            assert length > 0
            position += length
    except NbdError:
        return
    assert position <= SIZE
