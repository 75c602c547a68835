"""TLS sessions in the hands of threads: both ends of a connection are driven by OpenSSL's own calls."""

from __future__ import annotations

import _ssl
import ctypes
import gc
import random
import select
import signal
import socket
import ssl
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path

import pytest

from sfasync import openssl
from sfasync.errors import TlsError
from sfasync.foreign import POINTER, call
from sfasync.openssl import SecureSocket, Session
from sfasync.tls import TlsLayer

from .test_tls import Server, layer_for, shake_hands

LIBRARY = openssl.library()

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="this Python hides its OpenSSL")

RECORD = 16 << 10  # RFC 8446, 5.1


@dataclass
class Pair:
    """Both ends of a connection in memory, their sockets, and the server's session."""

    layer: TlsLayer
    server: Server
    session: Session
    near: socket.socket
    far: socket.socket
    lent: list[SecureSocket] = field(default_factory=list)

    def lend(self, connected: socket.socket | None = None) -> SecureSocket:
        """Our end for a thread, over the same socket each time if no other is given; closed at the end of the test."""
        self.lent.append(self.layer.lend(connected or self.near.dup()))
        return self.lent[-1]

    def lend_both(self) -> tuple[SecureSocket, SecureSocket]:
        """And the server's."""
        self.lent.append(self.session.lend(self.far.dup(), "the client"))
        return self.lend(), self.lent[-2]


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["tls12", "tls13"])
def pair(request: pytest.FixtureRequest, certificates: Path) -> Iterator[Pair]:
    assert LIBRARY is not None
    servers: list[Server] = []

    def make() -> ssl.SSLObject:
        servers.append(Server(certificates, highest=request.param))
        return servers[0].tls

    _, session = LIBRARY.made(make)
    assert session is not None
    client = layer_for(certificates)
    shake_hands(client, servers[0])
    client.feed(memoryview(servers[0].outgoing.read()))  # tickets, which are part of the stream
    assert client.read_into(memoryview(bytearray(1))) == 0
    assert client.lendable
    near, far = socket.socketpair()
    with near, far:
        pair = Pair(client, servers[0], session, near, far)
        yield pair
        for end in pair.lent:
            end.close()


@pytest.fixture
def threads(pair: Pair) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads
        for end in pair.lent:
            end.close()  # or a failed test would wait for a thread for ever


def send(end: SecureSocket, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[end.sendmsg([rest, b"ignored"]) :]


def whole(end: SecureSocket, length: int) -> bytes:
    buffer = bytearray(length)
    rest = memoryview(buffer)
    while rest:
        count = end.fill(rest)
        assert count, "the connection ended"
        rest = rest[count:]
    return bytes(buffer)


@pytest.mark.parametrize("length", [1, 28, 4096, 4097, RECORD, RECORD + 1, 1 << 20, (3 << 20) + 7])
def test_all_bytes_come(pair: Pair, threads: ThreadPoolExecutor, length: int) -> None:
    data = random.Random(length).randbytes(length)
    near, far = pair.lend_both()
    for one, other in ((near, far), (far, near)):
        sending = threads.submit(send, one, data)
        assert whole(other, length) == data
        sending.result()


def test_some_is_what_one_record_has(pair: Pair) -> None:
    near, far = pair.lend_both()
    buffer = memoryview(bytearray(1 << 20))
    send(far, b"header")
    assert near.recv_into(buffer) == 6
    send(far, bytes(RECORD) + b"tail")
    assert (near.recv_into(buffer), near.recv_into(buffer)) == (RECORD, 4)


def test_nothing_is_taken_that_was_not_asked_for(pair: Pair, threads: ThreadPoolExecutor) -> None:
    """What comes after a part of a reply is there for whoever has the session next."""
    near, far = pair.lend_both()
    sending = threads.submit(send, far, bytes(100_000) + b"the next")
    assert whole(near, 100_000) == bytes(100_000)
    sending.result()
    near.close()
    far.close()
    assert received(pair, 8) == b"the next"


def in_memory(pair: Pair, data: bytes) -> bytes:
    """What the server sends, encrypted."""
    pair.server.tls.write(data)
    return pair.server.outgoing.read()


def received(pair: Pair, length: int) -> bytes:
    """What the client's side reads in memory, as on the loop."""
    pair.near.setblocking(False)
    buffer, count = bytearray(length), 0
    while count < length:
        count += pair.layer.read_into(memoryview(buffer)[count:])
        if count < length:
            pair.layer.feed(memoryview(pair.near.recv(1 << 16)))
    pair.near.setblocking(True)
    return bytes(buffer)


def test_what_is_on_its_way_in_memory_is_not_left_behind(pair: Pair) -> None:
    pair.layer.feed(memoryview(in_memory(pair, b"data")))
    assert not pair.layer.lendable
    assert received(pair, 4) == b"data"
    assert pair.layer.lendable
    pair.layer.write(b"data")
    assert not pair.layer.lendable


def test_it_comes_and_goes(pair: Pair, threads: ThreadPoolExecutor) -> None:
    chance = random.Random(5)
    for _ in range(20):
        data = chance.randbytes(chance.choice([1, 100, 5_000, 70_000]))
        if chance.random() < 0.5:
            near, far = pair.lend_both()
            for one, other in ((near, far), (far, near)):
                sending = threads.submit(send, one, data)
                assert whole(other, len(data)) == data
                sending.result()
            near.close()
            far.close()
        else:
            pair.layer.feed(memoryview(in_memory(pair, data)))
            assert received(pair, len(data)) == data
            pair.layer.write(data)
            pair.server.incoming.write(pair.layer.take())
            assert b"".join(iter(lambda: some(pair.server.tls), b"")) == data


def some(tls: ssl.SSLObject) -> bytes:
    try:
        return tls.read(1 << 20)
    except ssl.SSLWantReadError:
        return b""


def test_keys_that_change_meanwhile(pair: Pair, threads: ThreadPoolExecutor) -> None:
    """A server may ask for new keys at any time (RFC 8446, 4.6.3)."""
    if pair.server.tls.version() != "TLSv1.3":
        pytest.skip("TLS 1.2 would shake hands again, which is refused")
    change = call(ctypes.PyDLL(_ssl.__file__), "SSL_key_update", ctypes.c_int, POINTER, ctypes.c_int)
    near, far = pair.lend_both()
    for turn in range(3):
        assert change(pair.session.pointer, 1)  # SSL_KEY_UPDATE_REQUESTED
        data = bytes([turn]) * 50_000
        sending = threads.submit(send, far, data)
        assert whole(near, len(data)) == data
        sending.result()
        sending = threads.submit(send, near, data)
        assert whole(far, len(data)) == data
        sending.result()
    near.close()
    far.close()
    pair.layer.feed(memoryview(in_memory(pair, b"and on")))
    assert received(pair, 6) == b"and on"


# --- the end ---------------------------------------------------------------------------------------------------------


def says_goodbye(pair: Pair) -> None:
    with pytest.raises(ssl.SSLWantReadError):
        pair.server.tls.unwrap()
    pair.far.sendall(pair.server.outgoing.read())


def hangs_up(pair: Pair) -> None:
    pair.far.close()


def hangs_up_in_a_record(pair: Pair) -> None:
    pair.far.sendall(in_memory(pair, bytes(1000))[:500])
    pair.far.close()


@pytest.mark.parametrize("end", [says_goodbye, hangs_up, hangs_up_in_a_record])
@pytest.mark.parametrize("length", [10, 1 << 20])
def test_the_server_ends(pair: Pair, end: Callable[[Pair], None], length: int) -> None:
    near = pair.lend()
    end(pair)
    for _ in range(2):
        assert near.fill(memoryview(bytearray(length))) == 0


def test_the_server_ends_with_part_of_it(pair: Pair) -> None:
    near = pair.lend()
    pair.far.sendall(in_memory(pair, bytes(10_000)))
    pair.far.close()
    buffer = memoryview(bytearray(20_000))
    assert near.fill(buffer) == 10_000
    assert near.fill(buffer) == 0


@pytest.mark.parametrize(("before", "length"), [(0, 10), (0, 1 << 20), (RECORD, 1 << 20)])
def test_damage_is_told(pair: Pair, before: int, length: int) -> None:
    near = pair.lend()
    records = bytearray(in_memory(pair, bytes(before + 1000)))
    records[-1] ^= 1
    pair.far.sendall(records)
    with pytest.raises(TlsError, match="peer: TLS failed: decryption failed or bad record mac"):
        near.fill(memoryview(bytearray(length)))


@pytest.mark.parametrize("before", [0, RECORD])
def test_a_reset_is_an_error_of_the_system(pair: Pair, threads: ThreadPoolExecutor, before: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connected = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    near = pair.lend(connected)
    reading, _ = inside(threads, near, 1 << 20)
    if before:
        far.sendall(in_memory(pair, bytes(before)))
        while unread(connected):
            pass
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    with pytest.raises(ConnectionResetError):
        reading.result()
    with pytest.raises(OSError, match="Broken pipe"):
        near.sendmsg([b"data"])


def unread(connected: socket.socket) -> bool:
    """Whether something has come that nobody has taken."""
    return bool(select.select([connected], [], [], 0)[0])


def test_signals_do_not_end_a_call(pair: Pair, threads: ThreadPoolExecutor) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        near, far = pair.lend_both()
        reading, ident = inside(threads, near, 50_000)
        for size in (20_000, 30_000):
            signal.pthread_kill(ident, signal.SIGUSR1)
            send(far, bytes(size))
        assert reading.result() == bytes(50_000)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen


def inside(threads: ThreadPoolExecutor, near: SecureSocket, length: int) -> tuple[Future[bytes], int]:
    """A thread that waits for so many bytes, and which one it is."""
    idents: Future[int] = Future()

    def read() -> bytes:
        idents.set_result(threading.get_ident())
        return whole(near, length)

    reading = threads.submit(read)
    ident = idents.result()
    while not near._using.locked():
        pass
    return reading, ident


def test_closing_waits_for_a_thread(pair: Pair, threads: ThreadPoolExecutor) -> None:
    near, far = pair.lend_both()
    reading, _ = inside(threads, near, 50_000)
    near.close()
    near.close()
    with pytest.raises((AssertionError, OSError)):
        reading.result()
    with pytest.raises(OSError, match="Bad file descriptor"):
        near.fill(memoryview(bytearray(10)))
    far.close()


def test_without_memory_nothing_is_lent(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LIBRARY is not None
    connected = pair.near.dup()
    for bios in range(3):
        calls = chain([LIBRARY._new_bio] * bios, repeat(lambda _: None))
        with monkeypatch.context() as patch:
            patch.setattr(LIBRARY, "_new_bio", lambda kind, calls=calls: next(calls)(kind))
            with pytest.raises(OSError, match="Cannot allocate memory"):
                pair.lend(connected)
    near = pair.lend(connected)
    pair.far.sendall(in_memory(pair, b"data"))
    assert whole(near, 4) == b"data"


def test_threads_tell_their_sessions_apart(certificates: Path) -> None:
    together = threading.Barrier(2)

    def make() -> list[int]:
        pointers = []
        for _ in range(50):
            together.wait()
            made = layer_for(certificates)._session
            assert made is not None
            assert made.owner.server_hostname == "localhost"
            pointers.append(made.pointer)
            kept.append(made)
        return pointers

    kept: list[Session] = []
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.submit(make), threads.submit(make)
    assert len({*first.result(), *second.result()}) == 100


def test_who_makes_several_at_once_gets_none(certificates: Path) -> None:
    """Another one may be made in between, by whatever Python cleans away just then."""
    assert LIBRARY is not None
    another, session = LIBRARY.made(lambda: (Server(certificates).tls, Server(certificates).tls)[1])
    assert session is None
    assert another.version() is None


def test_openssl_goes_on_telling_a_library_that_was_dropped(certificates: Path) -> None:
    """Two threads that need the first one at the same time make two, of which one stays."""
    dropped = weakref.ref(openssl._Library(_ssl.__file__))
    gc.collect()
    assert dropped() is not None, "OpenSSL will call what is gone"
    assert LIBRARY is not None
    _, session = LIBRARY.made(lambda: Server(certificates).tls)
    assert session is not None


@pytest.mark.parametrize("version", [(1, 1, 1, 13, 15), (3, 0, 0, 0, 15), (2, 0, 0, 0, 0)])
def test_old_ones_are_left_alone(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int, int, int]) -> None:
    monkeypatch.setattr(ssl, "OPENSSL_VERSION_INFO", version)
    assert openssl.library.__wrapped__() is None
