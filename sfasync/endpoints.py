"""Opens what a caller names: sources to read, targets to write.

A source is an NBD URI, an `ExportAddress`, the path of an image file or block device, or any `Source`; a target
likewise, and ``null:``. ``-`` is standard input or output. What the caller made, the caller closes.

Pipes, qcow2 and what platforms tell are imported where they are met: most copies see none of them.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from .blocking import BlockingSink, Writer
from .errors import CbtError, NoSpaceError, SourceError, TargetError, TargetRefusedError, UsageError, printable
from .files import create_file
from .interfaces import Buffer, GrowingSink, Sink, Source
from .models import ExportAddress, Extent, Limits, Retry, Timeouts, TlsPolicy
from .nbd.uri import parse_uri
from .transport.export import Export, open_export
from .transport.file import FileSink, FileSource, NullSink
from .workers import Workers

if TYPE_CHECKING:
    from .models import MetadataContext
    from .transport.pipe import PipeSink, PipeSource

NULL = "null:"
STANDARD = "-"

_Disk = TypeVar("_Disk", Source, Sink)


def parse_disk(disk: str | ExportAddress | _Disk) -> ExportAddress | _Disk:
    """A disk of a VM as the caller named it: a URI is parsed, anything else stays.

    Raises:
        UriError: The text is not an NBD URI.
    """
    return parse_uri(disk) if isinstance(disk, str) else disk


class Pipe(NamedTuple):
    """An end of a copy that is no disk: bytes can only follow one another.

    Attributes:
        fd: The descriptor; it is not closed.
        name: What it is called in messages.
    """

    fd: int
    name: str


def parse_endpoint(
    place: str | os.PathLike[str] | ExportAddress | _Disk, *, standard: int
) -> ExportAddress | Path | Pipe | _Disk | None:
    """One end of a copy: an export, a file, a pipe, None for ``null:``, or what the caller opened.

    Args:
        place: As the caller named it.
        standard: The descriptor that ``-`` stands for.

    Raises:
        UsageError: The text looks like a URI but is not one of NBD's; or it is ``-``, and that is closed or a terminal.
    """
    if place == STANDARD:
        return _standard(standard)
    if not isinstance(place, str | os.PathLike):
        return place
    text = os.fspath(place)
    if text == NULL:
        return None
    if "://" in text or text.startswith(("nbd:", "nbds:", "nbd+", "nbds+")):
        return parse_uri(text)
    if not text:
        raise UsageError("an empty name is neither a file nor an NBD URI")
    return Path(text)


class Endpoints:
    """Opens sources and targets with one set of limits."""

    def __init__(
        self, limits: Limits, timeouts: Timeouts, workers: Workers, retry: Retry, tls: TlsPolicy | None = None
    ) -> None:
        self._limits = limits
        self._tls = tls
        self._timeouts = timeouts
        self._retry = retry
        self._workers = workers

    @asynccontextmanager
    async def source(
        self, place: ExportAddress | Path | Source, *, connections: int | None = None, requests: int | None = None
    ) -> AsyncIterator[Source]:
        """Open a source for the time of the block.

        Raises:
            SourceError, TlsError: It cannot be opened.
        """
        if isinstance(place, ExportAddress):
            async with await open_export(
                self._trusted(place),
                connections=connections or self._limits.connections,
                requests=requests or self._limits.requests,
                timeouts=self._timeouts,
                retry=self._retry,
            ) as export:
                yield export
        elif isinstance(place, Path):
            async with await FileSource.open(place, workers=self._workers) as file:
                yield file
        else:
            yield place

    @asynccontextmanager
    async def changes(
        self, ranges: AsyncIterator[Extent] | MetadataContext | None
    ) -> AsyncIterator[AsyncIterator[Extent] | None]:
        """What a platform says of changes; where an NBD server has it, read there, over a connection of its own.

        Raises:
            CbtError: The server does not have the context.
            SourceError, TlsError: It cannot be read, then or later.
        """
        from .models import MetadataContext

        if not isinstance(ranges, MetadataContext):
            yield ranges
            return
        address, context = self._trusted(ranges.address), ranges.name
        export = await open_export(address, contexts=(context,), timeouts=self._timeouts, retry=self._retry)
        async with export:
            if context not in export.contexts:
                raise CbtError(
                    f"{address.peer} has no metadata context {printable(context)!r} for this export",
                    reason="bitmap-missing",
                )
            async with aclosing(_with_flags(export, context)) as told:
                yield told

    @asynccontextmanager
    async def export_target(
        self,
        address: ExportAddress,
        *,
        size: int,
        connections: int | None = None,
        requests: int | None = None,
    ) -> AsyncIterator[TargetSink]:
        """Open an export to be written for the time of the block.

        Raises:
            TargetRefusedError: It is read-only or smaller than `size`; nothing was written.
            TargetError, TlsError: It cannot be opened.
        """
        with _target_errors(address.peer):
            export = await open_export(
                self._trusted(address),
                connections=connections or self._limits.connections,
                requests=requests or self._limits.requests,
                timeouts=self._timeouts,
                retry=self._retry,
            )
        async with export:
            if export.read_only:
                raise TargetRefusedError(f"target {address.peer} is read-only")
            yield checked_target(export, size=size, name=address.peer)

    @asynccontextmanager
    async def copy_target(
        self,
        place: ExportAddress | Path | Pipe | Sink | None,
        *,
        size: int,
        connections: int | None = None,
        requests: int | None = None,
    ) -> AsyncIterator[TargetSink | FileSink | PipeSink | NullSink]:
        """Open the target of a copy for the time of the block; a file is created, or overwritten as nbdcopy does.

        Raises:
            TargetRefusedError: It is too small, or cannot be written; nothing was written.
            TargetError, TlsError: It cannot be opened.
        """
        if place is None:
            yield NullSink(size)
        elif isinstance(place, ExportAddress):
            async with self.export_target(place, size=size, connections=connections, requests=requests) as target:
                yield target
        elif isinstance(place, Path):
            async with await FileSink.open(place, size=size, workers=self._workers, overwrite=True) as file:
                yield file
        elif isinstance(place, Pipe):
            from .transport.pipe import PipeSink

            with PipeSink(place.fd, place.name, size=size, workers=self._workers) as pipe:
                yield pipe
        else:
            yield checked_target(place, size=size)

    @contextmanager
    def stream(self, place: Pipe) -> Iterator[PipeSource]:
        """Open a pipe to read it for the time of the block."""
        from .transport.pipe import PipeSource

        with PipeSource(place.fd, place.name) as pipe:
            yield pipe

    @asynccontextmanager
    async def growing_target(
        self,
        place: ExportAddress | Path | Pipe | Sink | None,
        *,
        connections: int | None = None,
        requests: int | None = None,
    ) -> AsyncIterator[GrowingSink]:
        """As `copy_target`, for a copy whose size only its end tells; a file begins empty."""
        async with self.copy_target(place, size=0, connections=connections, requests=requests) as target:
            yield _BoundedSink(target) if isinstance(target, TargetSink) else target

    @asynccontextmanager
    async def new_file(self, path: Path, *, size: int) -> AsyncIterator[FileSink]:
        """Create a raw image file, which must not exist, to be written in the block."""
        async with await FileSink.open(path, size=size, workers=self._workers, overwrite=False) as file:
            yield file

    @asynccontextmanager
    async def new_qcow2(self, path: Path, *, size: int) -> AsyncIterator[TargetSink]:
        """Create a qcow2 image file, which must not exist, to be written in the block."""
        from .qcow2 import new_qcow2

        await self._workers.run_to_end(create_file, path)  # qemu-img would let everybody read it
        async with new_qcow2(
            path,
            size=size,
            connections=self._limits.connections,
            requests=self._limits.requests,
            timeouts=self._timeouts,
            retry=self._retry,
        ) as export:
            yield TargetSink(export, str(path))

    def _trusted(self, address: ExportAddress) -> ExportAddress:
        """The address, with the engine's own idea of whom to believe if it has none."""
        return address if address.tls is None else replace(address, tls=address.tls.completed(self._tls))


async def _with_flags(export: Export, context: str) -> AsyncGenerator[Extent, None]:
    """The ranges of an export for which a metadata context has flags."""
    async with aclosing(export.block_status(context, 0, export.size)) as told:
        async for offset, length, flags in told:
            if flags:
                yield Extent(offset, length)


def checked_target(sink: Sink, *, size: int, name: str | None = None) -> TargetSink:
    """A sink that is large enough, with its errors told as those of a target.

    Args:
        sink: Where a disk goes.
        size: Bytes of that disk.
        name: The target, for messages; None to call it after its class.

    Raises:
        TargetRefusedError: It is smaller than `size`, or takes only blocks in which `size` bytes do not end.
    """
    name = f"<{type(sink).__name__}>" if name is None else name
    if sink.size < size:
        raise TargetRefusedError(f"target {name} has {sink.size} bytes, the disk has {size}")
    if sink.size > size and size % sink.block_size:
        raise TargetRefusedError(
            f"target {name} takes blocks of {sink.block_size} bytes only, the disk has {size} bytes"
        )
    return TargetSink(sink, name)


def _standard(fd: int) -> Path | Pipe:
    """Standard input or output: the file that it was redirected to, from its beginning, or else a pipe.

    Raises:
        UsageError: It is closed, or a terminal.
    """
    reading = fd == 0
    name = "standard input" if reading else "standard output"
    if (sys.__stdin__ if reading else sys.__stdout__) is None:  # its number may be something else's by now
        raise UsageError(f"{name} is closed")
    if os.isatty(fd):
        raise UsageError(f"{name} is a terminal; use a file or a pipe")
    try:
        path = _redirection(fd, os.R_OK if reading else os.R_OK | os.W_OK)
    except OSError as error:
        raise UsageError(f"{name} cannot be used: {error.strerror}") from error
    return path or Pipe(fd, name)


def _redirection(fd: int, access: int) -> Path | None:
    """The path of the file or block device that a descriptor stands at the beginning of, if it may be opened again."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        return None
    if os.lseek(fd, 0, os.SEEK_CUR) != 0 or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
        return None
    path = Path(os.readlink(f"/proc/self/fd/{fd}"))
    try:
        same = os.path.samestat(path.stat(), status)
    except OSError:  # it has lost its name
        return None
    return path if same and os.access(path, access) else None


class TargetSink:
    """A sink whose failures are those of a target (exit 21), whatever they are for its implementation."""

    def __init__(self, sink: Sink, name: str) -> None:
        self.inner = sink
        self.name = name

    @property
    def size(self) -> int:
        return self.inner.size

    @property
    def block_size(self) -> int:
        return self.inner.block_size

    async def write(self, offset: int, data: Buffer) -> None:
        with _target_errors(self.name):
            await self.inner.write(offset, data)

    async def zero(self, offset: int, length: int) -> None:
        with _target_errors(self.name):
            await self.inner.zero(offset, length)

    async def flush(self) -> bool:
        with _target_errors(self.name):
            return await self.inner.flush()

    @asynccontextmanager
    async def writers(self, count: int) -> AsyncIterator[list[Writer]]:
        """As of `BlockingSink`; none, if it is not one. What fails there is met again by `write`."""
        if isinstance(self.inner, BlockingSink):
            async with self.inner.writers(count) as writers:
                yield writers
        else:
            yield []


class _BoundedSink:
    """A sink of fixed size for a disk whose size only its end tells."""

    def __init__(self, target: TargetSink) -> None:
        self._target = target
        self.size = target.size
        self.block_size = target.block_size
        self.write = target.write
        self.zero = target.zero
        self.flush = target.flush

    async def end(self, size: int) -> None:
        """Nothing to do: what lies behind the end stays."""

    async def grow(self, size: int) -> None:
        """See that the disk may end at `size`.

        Raises:
            NoSpaceError: The target ends before that.
            TargetError: The target takes only blocks in which `size` bytes do not end.
        """
        name = self._target.name
        if size > self.size:
            raise NoSpaceError(
                f"target {name} is full: it has {self.size} bytes, and more are to come", offset=self.size
            )
        if size < self.size and size % self.block_size:
            raise TargetError(f"target {name} takes blocks of {self.block_size} bytes only, the disk ends at {size}")


@contextmanager
def _target_errors(name: str) -> Iterator[None]:
    try:
        yield
    except SourceError as error:
        message = str(error) if name in str(error) else f"{name}: {error}"
        raise TargetError(f"writing failed: {message}", offset=error.offset, length=error.length) from error
