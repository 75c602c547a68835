"""Ends of a copy in the hands of threads: one piece after another, with calls that block.

The event loop serves all connections in turn, and each piece costs it some 50 µs. Where both ends answer at once that
is a third of the time of a copy, and a second core has nothing to do. A thread that reads a piece and writes it needs
neither the loop nor the interpreter while the system copies (docs/performance.md, "Threads that carry").

Such an end is for the case that nothing goes wrong. It repeats nothing: what fails is left to the `Source` or `Sink`
that it comes from.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from .interfaces import Buffer, Sink, Source


class BlockingEnd(Protocol):
    """What one thread drives; everything but `read_into` and `write` is for the event loop.

    Attributes:
        waited: Seconds that the thread has waited for an answer to begin, so far.
    """

    waited: float

    def stop(self) -> None:
        """Let a call under way end within a second, at once if the other side answers; it raises if it was not done."""
        ...


class Reader(BlockingEnd, Protocol):
    """One thread's end of a source."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer.

        Raises:
            SfasyncError: It could not be filled.
        """
        ...


class Writer(BlockingEnd, Protocol):
    """One thread's end of a sink."""

    def write(self, offset: int, data: Buffer) -> None:
        """Write all bytes.

        Raises:
            SfasyncError: What was written of them is not known.
        """
        ...

    def settle(self) -> None:
        """Tell the sink of what was written; when no call is under way."""
        ...


class Near:
    """An end that lets nobody wait for a peer: its calls are not interrupted."""

    waited = 0.0

    def stop(self) -> None:
        """Nothing to do: a call under way ends by itself."""

    def settle(self) -> None:
        """Nothing to tell."""


@runtime_checkable
class FileReader(Reader, Protocol):
    """A reader of a file that the system can send itself (sendfile(2)), without a copy in our memory."""

    def fileno(self) -> int:
        """The file, in which everything lies where it lies on the disk."""
        ...

    def is_sendable(self, offset: int, buffer: memoryview, block: int) -> bool:
        """Whether a range of the file is in the system's memory, with no zeros in it that must not be sent.

        Args:
            offset: Where it begins.
            buffer: As long as the range; its content is lost.
            block: Zeros must not be sent where they fill a block of so many bytes of the disk; 0 if they may.
        """
        ...


@runtime_checkable
class FileWriter(Writer, Protocol):
    """A writer to which the system can send a file."""

    def send(self, offset: int, length: int, fileno: int) -> None:
        """Write all bytes of a range, of the disk and of the file.

        Raises:
            SfasyncError: What was written of them is not known.
        """
        ...


@runtime_checkable
class BlockingSource(Source, Protocol):
    """A source that threads can read."""

    def readers(self, count: int) -> AbstractAsyncContextManager[list[Reader]]:
        """Up to `count` ends, each for one thread, for the time of the block; no call is left when it ends."""
        ...


@runtime_checkable
class BlockingSink(Sink, Protocol):
    """A sink that threads can write."""

    def writers(self, count: int) -> AbstractAsyncContextManager[list[Writer]]:
        """Up to `count` ends, each for one thread, for the time of the block; no call is left when it ends."""
        ...
