"""What we make on a platform, written down before and after, so that exactly that can be removed again.

Each run, one backup or one restore, has a file in ``$XDG_STATE_HOME/sfasync/scp``, for its owner alone, which is locked
while its process lives and removed when nothing of the run is left. A file that is not locked was left by a process
that is dead, and whoever finds it may take the lock and remove what it names::

    {"version": 1, "origin": "https://scp.example", "pid": 4711}
    {"entry": 0, "kind": "snapshot", "vm": "8d06...", "name": "sfasync-1f3c", "token": "9b2e...", "at": 1790000000.0}
    {"entry": 0, "id": "5e1c...", "task": "77aa..."}
    {"entry": 0, "gone": true}

A line is durable before the next step is taken: the first one of an entry before the platform is asked, the second one
when it has told the id, the last one when the thing is gone. A last line without its end counts as not written.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from ...errors import printable
from ...files import storage_error, sync_directory
from ...state import private, state_directory
from ...workers import Workers

log = logging.getLogger("sfasync")

Kind = Literal["snapshot", "backup resource", "virtual machine"]

_NAME: Final = re.compile(r"[0-9a-f]{32}\.jsonl")
_LIMIT: Final = 1 << 20
_NEWBORN: Final = 3600.0
"""Seconds after which a file without a first line is no run that is about to begin."""

_PATIENCE: Final = 100

_READ = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _Header(msgspec.Struct, frozen=True):
    origin: str
    pid: int
    version: Literal[1] = 1


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is said of an entry: that it is intended, which id it has, or that it is gone."""

    entry: int
    kind: Kind | None = None
    vm: str = ""
    name: str = ""
    token: str = ""
    at: float = 0.0
    seconds: int = 0
    body: dict[str, Any] | None = None
    id: str = ""
    task: str = ""
    gone: bool = False


@dataclass(slots=True)
class Entry:
    """Something that we make, or have made.

    Attributes:
        number: Within its run.
        kind: What it is.
        vm: The VM that it belongs to; empty for one that is being made.
        name: What we call it, known to nobody else before; empty where such things have no names.
        token: With which the platform knows the request that makes it, for some minutes.
        at: When it was asked for, in seconds since the epoch.
        seconds: How long it lasts by itself; 0 for things that stay.
        body: What it is asked for with, where the other attributes do not tell.
        id: The platform's id; empty while that is not known.
        task: The platform's task that makes it; empty if it is known to have ended.
    """

    number: int
    kind: Kind
    vm: str
    name: str
    token: str
    at: float
    seconds: int = 0
    body: dict[str, Any] | None = None
    id: str = ""
    task: str = ""


@dataclass(slots=True)
class _File:
    """A run's file, locked as long as it is open."""

    path: Path
    fd: int
    entries: dict[int, Entry] = field(default_factory=dict)


class Run:
    """What one run has made and not removed yet. Made by `Journal`."""

    def __init__(self, journal: Journal, file: _File) -> None:
        self._journal = journal
        self._file: _File | None = file
        self._next = 1 + max(file.entries, default=-1)

    @property
    def entries(self) -> Sequence[Entry]:
        """What is not gone, in the order in which it was made."""
        return list(self._open.entries.values())

    @property
    def _open(self) -> _File:
        assert self._file is not None, "the run has ended"
        return self._file

    async def intend(
        self, kind: Kind, *, vm: str, name: str = "", seconds: int = 0, body: dict[str, Any] | None = None
    ) -> Entry:
        """Write down what is about to be asked for.

        Raises:
            StorageError: It could not be written; it must not be asked for.
        """
        entry = Entry(self._next, kind, vm, name, str(uuid.uuid4()), time.time(), seconds, body)
        self._next += 1
        line = _Line(entry.number, kind, vm=vm, name=name, token=entry.token, at=entry.at, seconds=seconds, body=body)
        self._open.entries[entry.number] = entry
        await self._write(line)
        return entry

    async def take_over(self, entry: Entry) -> Entry:
        """Make something ours that a dead run had made."""
        taken = await self.intend(entry.kind, vm=entry.vm, name=entry.name, seconds=entry.seconds)
        await self.made(taken, entry.id)
        return taken

    async def made(self, entry: Entry, identity: str, task: str | None = None) -> None:
        """The platform has told the id, and which task makes it, if it is not there yet.

        Raises:
            StorageError: It could not be written.
        """
        entry.id, entry.task = identity, task or ""
        await self._write(_Line(entry.number, id=identity, task=entry.task))

    async def gone(self, entry: Entry) -> None:
        """It is not there any more, or meant to stay.

        Raises:
            StorageError: It could not be written.
        """
        if self._open.entries.pop(entry.number, None) is not None:
            await self._write(_Line(entry.number, gone=True))

    async def end(self) -> None:
        """Remove the file if nothing is left; otherwise leave it to whoever cleans up. Idempotent."""
        file, self._file = self._file, None
        if file is not None:
            await self._journal.workers.run_surely(_end, file)

    async def _write(self, line: _Line) -> None:
        await self._journal.workers.run_surely(_append, self._open, msgspec.json.encode(line))


class Journal:
    """The runs of this user on one platform. Files are read and written in a thread.

    Args:
        origin: The platform.
        workers: The thread.
        directory: Where the files are; None for the usual place.
    """

    def __init__(self, origin: str, workers: Workers, directory: Path | None = None) -> None:
        self.workers = workers
        self._origin = origin
        self._directory = directory

    async def begin(self) -> Run:
        """A new run of this process.

        Raises:
            StorageError: It could not be written down.
        """
        return Run(self, await self.workers.run_surely(_create, self._place(), _Header(self._origin, os.getpid())))

    async def abandoned(self, vm: str | None = None) -> list[Run]:
        """The runs of dead processes, of one VM or of all, which are ours from now on: each has to be ended.

        Raises:
            StorageError: The journal cannot be read.
        """
        files = await self.workers.run_surely(_abandoned, self._place(), self._origin, vm)
        return [Run(self, file) for file in files]

    def _place(self) -> Path:
        return state_directory("scp") if self._directory is None else self._directory


# --- in the thread ---------------------------------------------------------------------------------------------------


def _create(place: Path, header: _Header) -> _File:
    path = private(place) / f"{secrets.token_hex(16)}.jsonl"
    try:
        fd = os.open(path, _CREATE, 0o600)
    except OSError as error:
        raise storage_error(error, "create", str(path)) from error
    file = _File(path, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # nobody keeps the lock of a file that is still empty
        sync_directory(place)
    except OSError as error:
        _end(file)
        raise storage_error(error, "create", str(path)) from error
    try:
        _append(file, msgspec.json.encode(header))
    except BaseException:
        _end(file)
        raise
    return file


def _append(file: _File, line: bytes) -> None:
    try:
        _write_all(file.fd, line + b"\n")
        os.fsync(file.fd)
    except OSError as error:
        raise storage_error(error, "write", str(file.path)) from error


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _end(file: _File) -> None:
    try:
        if not file.entries:
            with suppress(FileNotFoundError):
                file.path.unlink()
    except OSError as error:
        raise storage_error(error, "remove", str(file.path)) from error
    finally:
        os.close(file.fd)


def _abandoned(place: Path, origin: str, vm: str | None) -> list[_File]:
    if not place.exists():
        return []
    try:
        names = sorted(os.listdir(private(place)))
    except OSError as error:
        raise storage_error(error, "list", str(place)) from error
    files = (_dead(place / name) for name in names if _NAME.fullmatch(name))
    return [file for file in files if file is not None and _is_wanted(file, origin, vm)]


def _dead(path: Path) -> _File | None:
    """The file of a process that is dead, open; None if it lives, or is none."""
    try:
        fd = os.open(path, _READ)
    except OSError:  # gone, or nothing of ours
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # others may look at the same time
    except OSError:
        os.close(fd)
        return None
    return _File(path, fd)


def _is_wanted(file: _File, origin: str, vm: str | None) -> bool:
    """Whether the file is a run on the platform, and of the VM, and is ours now; any other is closed."""
    try:
        header, file.entries = _read(file)
        wanted = header is not None and header.origin == origin and _is_of(file, vm) and _taken(file)
        if header is None and time.time() - os.fstat(file.fd).st_mtime > _NEWBORN:
            file.path.unlink(missing_ok=True)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        log.warning("%s is left alone, it is no journal of this version: %s", file.path, printable(str(error)))
        wanted = False
    if not wanted:
        os.close(file.fd)
    return wanted


def _is_of(file: _File, vm: str | None) -> bool:
    """Whether a run is one of the VM, or has made nothing, so that only its file has to go."""
    return vm is None or not file.entries or any(entry.vm == vm for entry in file.entries.values())


def _taken(file: _File) -> bool:
    """Whether nobody else has the file from now on; those who only look at it keep it for a moment."""
    for _ in range(_PATIENCE):
        try:
            fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
            continue
        if not os.fstat(file.fd).st_nlink:
            return False
        _, file.entries = _read(file)  # somebody may have removed things before us
        return True
    return False


def _read(file: _File) -> tuple[_Header | None, dict[int, Entry]]:
    """What a file says; no header while its run has only just begun."""
    data = os.pread(file.fd, _LIMIT + 1, 0)
    if len(data) > _LIMIT:
        raise ValueError(f"it is longer than {_LIMIT} bytes")
    *lines, torn = data.split(b"\n")
    if not lines:
        return None, {}
    if torn:  # what is written next must not continue it
        os.ftruncate(file.fd, len(data) - len(torn))
    header = msgspec.json.decode(lines[0], type=_Header)
    entries: dict[int, Entry] = {}
    for line in lines[1:]:
        _apply(msgspec.json.decode(line, type=_Line), entries)
    return header, entries


def _apply(line: _Line, entries: dict[int, Entry]) -> None:
    if line.kind is not None:
        entries[line.entry] = Entry(
            line.entry, line.kind, line.vm, line.name, line.token, line.at, line.seconds, line.body
        )
    elif line.gone:
        entries.pop(line.entry, None)
    elif line.entry in entries:
        entries[line.entry].id, entries[line.entry].task = line.id, line.task
