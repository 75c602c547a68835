"""TLS in the hands of a thread: OpenSSL's own calls, over a socket that blocks.

Python's `ssl` gives one record at a time, 16 KiB at most, and gives up the interpreter's lock for each: threads would
wait for it longer than they gain. The library under it fills mebibytes in one call, by a *buffering BIO* over an *SSL
BIO* (BIO_f_buffer(3), BIO_f_ssl(3)), and its names can be seen in the module that Python loads.

Sessions are Python's own: made, verified and ended by `ssl`, which alone decides what is believed. OpenSSL tells which
one it has made by a call back (CRYPTO_get_ex_new_index(3)). A thread that is lent one reads and writes a socket instead
of Python's memory (SSL_set_bio(3)); nothing else about the session changes, and it can go back after any call.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import importlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Final, NamedTuple

from .errors import TlsError, printable
from .foreign import POINTER, SIZE, Memory, call
from .interfaces import Buffer

_INT, _LONG = ctypes.c_int, ctypes.c_long
_ON_NEW = ctypes.CFUNCTYPE(None, POINTER, POINTER, POINTER, _INT, _LONG, POINTER)  # crypto.h, CRYPTO_EX_new

_EX_INDEX_SSL: Final = 0  # crypto.h
_SSL_CTRL_CLEAR_MODE: Final = 78  # ssl.h
_SSL_MODE_ENABLE_PARTIAL_WRITE: Final = 1
_BIO_C_SET_FD: Final = 104  # bio.h
_BIO_C_SET_SSL: Final = 109
_BIO_NOCLOSE: Final = 0
_UNEXPECTED_EOF: Final = 294  # sslerr.h, SSL_R_UNEXPECTED_EOF_WHILE_READING; since 3.0
_REASON_MASK: Final = 0x7FFFFF  # err.h, since 3.0

_LEAST: Final = (3, 0, 0, 1)
"""The first version of which sessions are lent (`ssl.OPENSSL_VERSION_INFO`). Before 3.0.1, and in many a 1.1.1, to free
an SSL BIO is to say goodbye to the server, against orders (openssl#16688). LibreSSL and AWS-LC call themselves older.
"""

_KEPT: Final = 4 << 10
"""Up to this many bytes a buffering BIO would read more than it is asked for, and keep the rest (bf_buff.c)."""


class Session(NamedTuple):
    """A session that Python has made.

    Attributes:
        library: Made it.
        pointer: Its `SSL`.
        owner: Python's object, with which it goes.
    """

    library: _Library
    pointer: int
    owner: ssl.SSLObject

    def lend(self, connected: socket.socket, peer: str) -> SecureSocket:
        """Let a thread drive it until the result is closed; nothing may be under way.

        Args:
            connected: Where the ciphertext goes from here on; it blocks, and is closed with the result.
            peer: Names the server in messages.

        Raises:
            OSError: OpenSSL has no memory; the session is as it was.
        """
        return SecureSocket(self, connected, peer)


class SecureSocket:
    """A session over a socket, with the calls of a socket that blocks.

    Reading and writing are for one thread, the rest is for the loop.
    """

    def __init__(self, session: Session, connected: socket.socket, peer: str) -> None:
        self._session = session
        self._socket = connected
        self._peer = peer
        self._using = threading.Lock()  # held during a call, so that nothing is freed under it
        self._closed = False
        self._count = ctypes.c_size_t()
        library, pointer = session.library, session.pointer
        self._filler = library.new_filler(pointer)
        try:
            self._end = library.new_end(connected.fileno())
        except OSError:
            library.free_all(self._filler)
            raise
        self._before = library.incoming(pointer), library.outgoing(pointer)
        for end in self._before:
            library.keep(end)
        library.set_ends(pointer, self._end, self._end)

    @property
    def moved(self) -> int:
        """Bytes of the connection that have come and left so far, also of a call that is under way."""
        assert not self._closed, "the counters went with the end"
        library = self._session.library
        return library.count_read(self._end) + library.count_written(self._end)  # type: ignore[no-any-return]  # a C function's

    def recv_into(self, buffer: memoryview) -> int:
        """Some bytes, of one record; 0 if the server has ended the connection.

        Raises:
            OSError: The connection is lost.
            TlsError: What came is damaged.
        """
        return self._carry_out(self._session.library.read, self._session.pointer, buffer, writable=True)

    def fill(self, buffer: memoryview) -> int:
        """As `recv_into`, but all that go in, of as many records as it takes, unless the connection ends.

        What came just before the connection was lost, or before damage, is not told.
        """
        if len(buffer) <= _KEPT:
            return self.recv_into(buffer)
        return self._carry_out(self._session.library.fill, self._filler, buffer, enough=len(buffer), writable=True)

    def sendmsg(self, parts: Sequence[Buffer]) -> int:
        """Send some of these bytes, which are not empty; returns how many.

        Raises:
            OSError, TlsError: The connection is lost.
        """
        count = self._carry_out(self._session.library.write, self._session.pointer, parts[0], writable=False)
        if not count:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
        return count

    def shutdown(self, how: int) -> None:
        """As of a socket: ends a call that is under way."""
        self._socket.shutdown(how)

    def setblocking(self, flag: bool) -> None:
        """As of a socket."""
        self._socket.setblocking(flag)

    def close(self) -> None:
        """Give the session back to Python, and close the socket. Idempotent."""
        if not self._using.acquire(blocking=False):
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # a thread is still in here: the connection is not worth more
            self._using.acquire()
        try:
            if not self._closed:
                self._closed = True
                library = self._session.library
                library.free_all(self._filler)
                library.set_ends(self._session.pointer, *self._before)
                self._socket.close()
        finally:
            self._using.release()

    def _carry_out(
        self, function: Callable[..., int], end: int, data: Buffer, *, enough: int = 1, writable: bool
    ) -> int:
        """Make a call of OpenSSL; returns how many bytes it moved.

        With fewer of them than are enough something has ended it, which OpenSSL and the system tell only once.
        """
        library = self._session.library
        with self._using, Memory(data, writable=writable) as memory:
            if self._closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            while True:
                library.forget_errors()
                done = function(end, memory.address, memory.length, ctypes.byref(self._count))
                count = self._count.value if done else 0
                if count >= enough:
                    return count
                interrupted = self._interrupted()
                if count or not interrupted:
                    return count

    def _interrupted(self) -> bool:
        """Whether a signal ended the last call, which is to be made again; otherwise the server ended the connection.

        Raises:
            OSError, TlsError: It was lost.
        """
        library = self._session.library
        number = ctypes.get_errno()
        kind = library.outcome(self._session.pointer, 0)
        if kind in (ssl.SSL_ERROR_WANT_READ, ssl.SSL_ERROR_WANT_WRITE):
            return True
        error = library.last_error()
        if kind == ssl.SSL_ERROR_SYSCALL and number:
            raise OSError(number, os.strerror(number))
        if kind == ssl.SSL_ERROR_SSL and error & _REASON_MASK != _UNEXPECTED_EOF:
            reason = (library.reason(error) or b"unknown reason").decode(errors="replace")
            raise TlsError(f"{self._peer}: TLS failed: {printable(reason)}")
        return False


class _Library:
    """The calls of OpenSSL that are needed, and the sessions it makes. Those that take long are made without Python's
    lock, the others with it.

    Args:
        path: The library, or what is linked with it.

    Raises:
        AttributeError: One of them cannot be seen.
        OSError: There is no library, or no memory.
    """

    def __init__(self, path: str) -> None:
        long, short = ctypes.CDLL(path, use_errno=True), ctypes.PyDLL(path)
        moving = (_INT, POINTER, POINTER, SIZE, ctypes.POINTER(SIZE))
        self.read = call(long, "SSL_read_ex", *moving)
        self.write = call(long, "SSL_write_ex", *moving)
        self.fill = call(long, "BIO_read_ex", *moving)
        self.outcome = call(short, "SSL_get_error", _INT, POINTER, _INT)
        self.last_error = call(short, "ERR_peek_last_error", ctypes.c_ulong)
        self.forget_errors = call(short, "ERR_clear_error", None)
        self.reason = call(short, "ERR_reason_error_string", ctypes.c_char_p, ctypes.c_ulong)
        self.incoming = call(short, "SSL_get_rbio", POINTER, POINTER)
        self.outgoing = call(short, "SSL_get_wbio", POINTER, POINTER)
        self.set_ends = call(short, "SSL_set_bio", None, POINTER, POINTER, POINTER)
        self.count_read = call(short, "BIO_number_read", ctypes.c_uint64, POINTER)
        self.count_written = call(short, "BIO_number_written", ctypes.c_uint64, POINTER)
        self.keep = call(short, "BIO_up_ref", _INT, POINTER)
        self.free_all = call(short, "BIO_free_all", None, POINTER)
        self._control = call(short, "SSL_ctrl", _LONG, POINTER, _INT, _LONG, POINTER)
        self._read_ahead = call(short, "SSL_set_read_ahead", None, POINTER, _INT)
        self._new_bio = call(short, "BIO_new", POINTER, POINTER)
        self._control_bio = call(short, "BIO_ctrl", _LONG, POINTER, _INT, _LONG, POINTER)
        self._push = call(short, "BIO_push", POINTER, POINTER, POINTER)
        self._ssl_bio = call(short, "BIO_f_ssl", POINTER)()
        self._buffering_bio = call(short, "BIO_f_buffer", POINTER)()
        self._socket_bio = call(short, "BIO_s_socket", POINTER)()
        self._making = threading.local()
        self._on_new = _ON_NEW(self._note)
        self._call_back(short)

    def _call_back(self, library: ctypes.PyDLL) -> None:
        """Have OpenSSL tell of each session it makes, until Python ends."""
        new_index = call(library, "CRYPTO_get_ex_new_index", _INT, _INT, _LONG, POINTER, _ON_NEW, POINTER, POINTER)
        self._free_index = call(library, "CRYPTO_free_ex_index", _INT, _INT, _INT)
        self._index = new_index(_EX_INDEX_SSL, 0, None, self._on_new, None, None)
        if self._index < 0:
            raise _no_memory()
        atexit.register(self._hear_no_more)

    def _hear_no_more(self) -> None:
        """The end of Python; that this is to be called then keeps alive what OpenSSL calls, whoever has dropped it."""
        self._free_index(_EX_INDEX_SSL, self._index)

    def _note(self, pointer: int, *_: Any) -> None:
        """Called for all sessions of the process, in the threads that make them."""
        told = getattr(self._making, "told", None)
        if told is not None:
            told.append(pointer)

    def made(self, make: Callable[[], ssl.SSLObject]) -> tuple[ssl.SSLObject, Session | None]:
        """What a function has made, and its session if OpenSSL told of one, and of no other: nothing else says whose is
        whose, and the collector of garbage may run anything meanwhile.

        The session reads ahead, which is one call of the system for a record instead of two, and a write ends with all
        its records instead of one.
        """
        told: list[int] = []
        self._making.told = told
        try:
            owner = make()
        finally:
            del self._making.told
        if len(told) != 1:
            return owner, None
        (pointer,) = told
        self._read_ahead(pointer, 1)
        self._control(pointer, _SSL_CTRL_CLEAR_MODE, _SSL_MODE_ENABLE_PARTIAL_WRITE, None)
        return owner, Session(self, pointer, owner)

    def new_filler(self, session: int) -> int:
        """A BIO that reads all it is asked for from a session.

        Raises:
            OSError: There is no memory for it.
        """
        under, filler = self._new_bio(self._ssl_bio), self._new_bio(self._buffering_bio)
        if under is None or filler is None:
            self.free_all(under)
            self.free_all(filler)
            raise _no_memory()
        self._control_bio(under, _BIO_C_SET_SSL, _BIO_NOCLOSE, session)
        self._push(filler, under)
        return filler  # type: ignore[no-any-return]  # a C function's

    def new_end(self, descriptor: int) -> int:
        """A BIO over a socket, which stays the caller's.

        SSL_set_fd(3) makes the same, and where it was built to, has the kernel attach its own TLS to the socket.

        Raises:
            OSError: There is no memory for it.
        """
        end = self._new_bio(self._socket_bio)
        if end is None:
            raise _no_memory()
        self._control_bio(end, _BIO_C_SET_FD, _BIO_NOCLOSE, ctypes.byref(_INT(descriptor)))
        return end  # type: ignore[no-any-return]  # a C function's


def _no_memory() -> OSError:
    return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@cache
def library() -> _Library | None:
    """The library that Python's own `ssl` uses; None where it is too old, or its calls cannot be reached."""
    if ssl.OPENSSL_VERSION_INFO < _LEAST:
        return None
    try:
        path = importlib.import_module("_ssl").__file__  # None where it is part of the interpreter
        return _Library(path) if path is not None else None
    except (ImportError, AttributeError, OSError):
        return None
