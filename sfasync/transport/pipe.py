"""Pipes, sockets and terminals' kin as one end of a copy: bytes in order, of a length that only their end tells.

The event loop waits for them; no thread does, so a peer that never reads or writes does not hold up a cancellation.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

from ..errors import NoSpaceError, SourceError, TargetError
from ..files import is_full
from ..interfaces import Buffer
from ..units import MiB
from ..workers import Workers

__all__ = ["PipeSink", "PipeSource"]

_ZEROS = memoryview(bytes(MiB))

_CAPACITY = MiB  # of a pipe, where we may; the usual 64 KiB cost a wake-up each


class _Pipe:
    """A descriptor that somebody else opened, made not to wait for as long as this is open."""

    def __init__(self, fd: int, flags: int, name: str) -> None:
        self._name = name
        self._fd, self._give_back = _unblocked(fd, flags)
        with suppress(OSError):
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _CAPACITY)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}>"

    def close(self) -> None:
        """Leave the descriptor as it was found. Idempotent."""
        give_back, self._give_back = self._give_back, lambda: None
        give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class PipeSource(_Pipe):
    """What comes through a pipe.

    Args:
        fd: A descriptor to read, which stays the caller's.
        name: What it is called in messages.
    """

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, os.O_RDONLY, name)

    async def read_into(self, buffer: memoryview) -> int:
        """Fill the buffer with the bytes that come next; one call at a time.

        Cancelling loses what has come so far.

        Returns:
            Bytes read: fewer than the buffer takes only at the end.

        Raises:
            SourceError: They cannot be read.
        """
        loop = asyncio.get_running_loop()
        done = 0
        while done < len(buffer):
            try:
                count = os.readv(self._fd, [buffer[done:]])
            except BlockingIOError:
                await _ready(self._fd, loop.add_reader, loop.remove_reader)
                continue
            except OSError as error:
                raise SourceError(f"cannot read {self._name}: {error.strerror}") from error
            if count == 0:
                break
            done += count
        await asyncio.sleep(0)  # what never makes us wait (/dev/zero) must not keep the loop for itself
        return done


class PipeSink(_Pipe):
    """A sink that puts everything through a pipe, in order of offset.

    Calls may come at once, as for any sink; each waits until the bytes before its own have gone. Together they must
    cover the disk, and begin in order.

    Args:
        fd: A descriptor to write, which stays the caller's.
        name: What it is called in messages.
        size: Bytes to come, as far as known.
        workers: Where blocking calls run.
    """

    def __init__(self, fd: int, name: str, *, size: int, workers: Workers) -> None:
        super().__init__(fd, os.O_WRONLY, name)
        self._size = size
        self._workers = workers
        self._position = 0
        self._turns: dict[int, asyncio.Future[None]] = {}

    @property
    def size(self) -> int:
        return self._size

    @property
    def block_size(self) -> int:
        return 1

    async def grow(self, size: int) -> None:
        """Expect so many bytes."""
        self._size = size

    async def end(self, size: int) -> None:
        """Nothing to do: everything has gone."""

    async def write(self, offset: int, data: Buffer) -> None:
        """Put all bytes through. Cancelling leaves a part of them out for good.

        Raises:
            NoSpaceError, TargetError: They could not be written; `TargetError` too where nobody reads any more.
        """
        await self._turn(offset)
        with memoryview(data) as view:
            await self._put(view)
        self._next()

    async def zero(self, offset: int, length: int) -> None:
        """Put that many zeros through; otherwise as `write`."""
        await self._turn(offset)
        while length:
            with _ZEROS[:length] as zeros:
                await self._put(zeros)
                length -= len(zeros)
        self._next()

    async def flush(self) -> bool:
        """Make what was written durable, where it went to a file; False for a pipe, of which only the reader knows.

        Raises:
            NoSpaceError, TargetError: It is not durable.
        """
        try:
            await self._workers.run_to_end(os.fsync, self._fd)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EROFS):  # nothing that could be made durable (fsync(2))
                return False
            raise self._error(error) from error
        return True

    async def _turn(self, offset: int) -> None:
        if offset != self._position:
            turn = self._turns[offset] = asyncio.get_running_loop().create_future()
            await turn

    def _next(self) -> None:
        turn = self._turns.pop(self._position, None)
        if turn is not None and not turn.done():
            turn.set_result(None)

    async def _put(self, view: memoryview) -> None:
        loop = asyncio.get_running_loop()
        done = 0
        while done < len(view):
            try:
                with view[done:] as rest:
                    count = os.write(self._fd, rest)
            except BlockingIOError:
                await _ready(self._fd, loop.add_writer, loop.remove_writer)
                continue
            except OSError as error:
                raise self._error(error) from error
            done += count
            self._position += count

    def _error(self, error: OSError) -> NoSpaceError | TargetError:
        kind = NoSpaceError if is_full(error) else TargetError
        return kind(f"cannot write to {self._name}: {error.strerror}")


async def _ready(fd: int, watch: Callable[..., object], forget: Callable[[int], object]) -> None:
    """Wait until the descriptor takes or gives a byte."""
    woken = asyncio.get_running_loop().create_future()
    watch(fd, _wake, woken)
    try:
        await woken
    finally:
        forget(fd)


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


def _unblocked(fd: int, flags: int) -> tuple[int, Callable[[], None]]:
    """A descriptor of the same pipe that does not wait, and how to give it back.

    O_NONBLOCK belongs to the open file description, which we share with whoever started us; so a pipe is opened once
    more. That does not do for a socket, for a pipe of another user's, and for one that nobody reads any more; nor for
    files and devices, which would begin anew.
    """
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        with suppress(OSError):
            own = os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
            return own, partial(os.close, own)
    found = os.get_blocking(fd)
    os.set_blocking(fd, False)
    return fd, partial(os.set_blocking, fd, found)
