"""The targets of a restore: checked before anything is written, visible only when complete."""

from __future__ import annotations

import logging
import os
import re
import secrets
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from .endpoints import Endpoints, Pipe, TargetSink, checked_target
from .errors import StateError, TargetError, TargetRefusedError, UsageError, printable
from .files import publish, storage_error
from .interfaces import Sink, Source
from .models import ExportAddress
from .transport.file import remove_abandoned
from .workers import Workers

log = logging.getLogger("sfasync")

FORMATS = ("raw", "qcow2")

_HIDDEN = re.compile(r"\.sfasync-[0-9a-f]{16}\.part")
_ABANDONED = 60.0  # seconds; a file whose writer lives is unlocked for moments only

_LONGEST_NAME = 255  # bytes that a name has at most in any file system (limits.h, NAME_MAX)


@dataclass(frozen=True, slots=True)
class OpenTarget:
    """A target while a disk is written to it.

    Attributes:
        sink: Where the disk goes.
        read_back: Where the written disk can be read again; None if it cannot.
        name: The target, for results and messages.
    """

    sink: Sink
    read_back: Path | Source | None
    name: str


def check_format(image_format: str) -> None:
    """See that image files can have a format.

    Raises:
        UsageError: It is none of `FORMATS`.
    """
    if image_format not in FORMATS:
        raise UsageError(f"format {image_format!r} is none of {', '.join(FORMATS)}")


def file_name(disk_id: str, image_format: str) -> str:
    """The file name of a restored disk: the id, percent-encoded, and the format, one of `FORMATS`.

    Raises:
        UsageError: The id is ``.`` or ``..``, or makes too long a name.
    """
    if disk_id in (".", ".."):
        raise UsageError(f"a disk called {disk_id!r} cannot be restored to a file; restore it to a disk", disk=disk_id)
    name = f"{quote(disk_id, safe='')}.{image_format}"
    if len(name) > _LONGEST_NAME:
        raise UsageError(f"disk id {disk_id[:32]!r}… makes too long a file name; restore it to a disk", disk=disk_id)
    return name


@asynccontextmanager
async def export_target(endpoints: Endpoints, address: ExportAddress, size: int) -> AsyncIterator[OpenTarget]:
    """An NBD export, at least as large as the disk; a larger one keeps its tail."""
    async with endpoints.export_target(address, size=size) as sink:
        inner = sink.inner
        yield OpenTarget(sink, inner if isinstance(inner, Source) else None, sink.name)


@asynccontextmanager
async def sink_target(sink: Sink, size: int) -> AsyncIterator[OpenTarget]:
    """A sink of the caller's, who closes it."""
    target = checked_target(sink, size=size)
    yield OpenTarget(target, sink if isinstance(sink, Source) else None, target.name)


@asynccontextmanager
async def stream_target(endpoints: Endpoints, place: Path | Pipe, size: int) -> AsyncIterator[OpenTarget]:
    """Standard output: the file that it was redirected to, which is written in place and sparse, or a pipe."""
    async with endpoints.copy_target(place, size=size) as sink:
        yield OpenTarget(sink, None, place.name if isinstance(place, Pipe) else str(place))


@asynccontextmanager
async def file_target(
    endpoints: Endpoints, path: Path, *, size: int, image_format: str, force: bool, workers: Workers
) -> AsyncIterator[OpenTarget]:
    """A new image file, which appears under its name when it is complete and durable.

    Until then it is a hidden file beside it, removed again when the block fails; what a killed process left there is
    removed by the next one that writes into this directory.

    Raises:
        TargetRefusedError: The file exists and `force` was not given, or what exists is no file.
        StorageError: It could not be created, in a directory that does not exist for example.
    """
    await workers.run(_check_free, path, force)
    await workers.run(_remove_left_overs, path.parent)
    hidden = path.with_name(f".sfasync-{secrets.token_hex(8)}.part")  # not longer than any name that fits
    try:
        opened = (
            endpoints.new_qcow2(hidden, size=size) if image_format == "qcow2" else endpoints.new_file(hidden, size=size)
        )
        async with opened as sink:
            inner = sink.inner if isinstance(sink, TargetSink) else sink
            yield OpenTarget(sink, inner if isinstance(inner, Source) else hidden, str(path))
        await workers.run_to_end(_publish, hidden, path, force)
    except BaseException:
        with suppress(OSError, StateError):  # no such file; no thread once the engine gave up waiting
            await workers.run_surely(os.unlink, hidden)
        raise


def _check_free(path: Path, force: bool) -> None:
    """See that a file may have this name.

    Raises:
        TargetError: There is no such directory.
        TargetRefusedError: Something has it that stays.
    """
    if not path.parent.is_dir():
        raise TargetError(f"cannot create {printable(str(path))}: there is no such directory", path=str(path))
    try:
        mode = path.lstat().st_mode
    except OSError:  # what is wrong besides shows when the file is made
        return
    if not force:
        raise TargetRefusedError(f"{path} exists; remove it or use --force to replace it", path=str(path))
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise TargetRefusedError(f"{path} is not a file; --force replaces only files", path=str(path))


def _remove_left_overs(directory: Path) -> None:
    """Remove hidden files whose writers were killed, as far as that can be done."""
    with suppress(OSError):
        for name in os.listdir(directory):
            if _HIDDEN.fullmatch(name) and remove_abandoned(directory / name, _ABANDONED):
                log.info("removed %s, which an interrupted restore left", directory / name)


def image_format_of(path: Path) -> str:
    """The format that the name of an image file asks for."""
    return "qcow2" if path.suffix.lower() == ".qcow2" else "raw"


def _publish(hidden: Path, path: Path, force: bool) -> None:
    """Give a finished file its name; content and name are durable then.

    Raises:
        TargetRefusedError: The name was taken meanwhile and `force` was not given.
        StorageError: The file or its name could not be made durable.
    """
    try:
        descriptor = os.open(hidden, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise storage_error(error, "finish", str(path)) from error
    publish(hidden, path, force)
