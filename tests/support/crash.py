"""What a crash may leave of a directory: from the system calls that a process made in it.

The calls are recorded by strace. A file system may have written any part of what was not synced, in any order: of the
writes to a file after its last fsync any may be missing, and the last of them be there in half; of the names made or
removed in a directory after its last fsync likewise (the ALICE method: Pillai et al., "All File Systems Are Not Created
Equal", OSDI 2014). Nothing here knows what a repository is.
"""

from __future__ import annotations

import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

STRACE = ("strace", "-ff", "-ttt", "-T", "-y", "-xx", "-s", "100000000")
CALLS = ("openat", "pwrite64", "fsync", "linkat", "mkdirat", "unlinkat")
"""What the store changes a directory by; `read_trace` refuses to go on after another call that could."""

_OTHERS = (
    *("write", "writev", "pwritev", "pwritev2", "fdatasync", "sync_file_range", "copy_file_range", "fallocate"),
    *("rename", "renameat", "renameat2", "link", "unlink", "symlinkat", "mkdir", "rmdir", "truncate", "ftruncate"),
)

_LINE = re.compile(
    r"(?P<began>[0-9.]+) (?P<call>\w+)\((?P<rest>.*) = (?P<result>-?\d+)(?P<more>.*) <(?P<took>[0-9.]+)>"
)
_HANDLE = re.compile(r"^(?P<fd>\d+)<(?P<path>[^>]*)>")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


class File:
    """A file, which has no name at first."""


@dataclass(frozen=True)
class Write:
    file: File
    offset: int
    data: bytes


@dataclass(frozen=True)
class Sync:
    what: File | str  # a directory by its name


@dataclass(frozen=True)
class Name:
    """A name in a directory, made or removed: of a file, of a directory (True), of nothing (None)."""

    directory: str
    name: str
    what: File | bool | None


Step = Write | Sync | Name


def command(log: Path) -> tuple[str, ...]:
    """What a program has to run under, for `read_trace` to read `log`.*."""
    return (*STRACE, "-o", str(log), "-e", f"trace={','.join(CALLS + _OTHERS)}")


def read_trace(log: Path, root: Path) -> list[Step]:
    """The steps that changed something below a directory, in the order in which they were done.

    Raises:
        AssertionError: There is a call that this does not know what to make of.
    """
    calls = []
    for path in log.parent.glob(f"{log.name}.*"):
        for line in path.read_text().splitlines():
            match = _LINE.fullmatch(line)
            if match is not None and int(match["result"]) >= 0:
                calls.append((float(match["began"]) + float(match["took"]), match))
    reader = _Reader(str(root))
    return [step for _, match in sorted(calls, key=lambda call: call[0]) if (step := reader.step(match)) is not None]


class _Reader:
    """Makes steps of calls, in their order."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._files: dict[str, File] = {}  # by the path that the kernel tells of one without a name
        self._paths: dict[int, str] = {}  # of descriptors of such files

    def step(self, match: re.Match[str]) -> Step | None:
        call, rest = match["call"], match["rest"]
        if call == "openat":
            self._opened(int(match["result"]), rest, match["more"])
            return None
        if call == "linkat":  # of a file without a name, through /proc: its directory comes third
            _, old, handle, new, _ = rest.split(", ")
            directory = self._below(_handle(handle)[1])
            file = self._files.get(self._paths.get(int(_text(old).rpartition("/")[2]), ""))
            return None if directory is None or file is None else Name(directory, _text(new), file)
        if not rest[0].isdigit():
            assert self._root not in _decoded(rest), match[0][:200]
            return None
        path = _handle(rest)[1]
        directory = self._below(path)
        if directory is None:
            return None
        if call == "pwrite64":
            data = bytes.fromhex(_TEXT.findall(rest)[0].replace("\\x", ""))[: int(match["result"])]
            return Write(self._files[path], int(rest.rpartition(", ")[2].rstrip(")")), data)
        if call == "fsync":
            return Sync(self._files.get(path, directory))
        if call in ("mkdirat", "unlinkat"):
            return Name(directory, _text(rest), True if call == "mkdirat" else None)
        raise AssertionError(f"unknown: {match[0][:200]}")

    def _opened(self, fd: int, rest: str, more: str) -> None:
        path = _decoded(more.partition("<")[2].partition(">")[0])
        if self._below(path) is not None:
            self._paths[fd] = path
            if "O_TMPFILE" in rest:
                self._files[path] = File()

    def _below(self, path: str) -> str | None:
        """A path as seen from the root, the root itself being empty; None if it is not below."""
        return path[len(self._root) :].lstrip("/") if f"{path}/".startswith(f"{self._root}/") else None


def _handle(text: str) -> tuple[int, str]:
    match = _HANDLE.match(text)
    assert match is not None, text[:200]
    return int(match["fd"]), _decoded(match["path"])


def _text(rest: str) -> str:
    return _decoded(_TEXT.findall(rest)[0])


def _decoded(text: str) -> str:
    return re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), text)


def build(steps: list[Step], before: Path, after: Path, choice: random.Random) -> None:
    """Make one of the states that a crash after these steps may leave.

    Args:
        steps: Those that were done.
        before: The directory as it was before the first one.
        after: Where the state is made; must not be there.
        choice: Which of them.
    """
    lost = choice.choice((0.0, 0.5, 0.5, 1.0)), choice.choice((0.0, 0.5, 0.5, 1.0))  # of data, of names
    last_sync: dict[int | str, int] = {}
    for number, step in enumerate(steps):
        if isinstance(step, Sync):
            last_sync[step.what if isinstance(step.what, str) else id(step.what)] = number
    shutil.copytree(before, after)
    contents: dict[int, bytearray] = {}
    names: list[Name] = []
    for number, step in enumerate(steps):
        if isinstance(step, Write):
            durable = number < last_sync.get(id(step.file), -1)
            _write(contents.setdefault(id(step.file), bytearray()), step, durable or choice.random() >= lost[0], choice)
        elif isinstance(step, Name) and (number < last_sync.get(step.directory, -1) or choice.random() >= lost[1]):
            names.append(step)
    for name in names:
        _apply(name, after, contents)


def _write(content: bytearray, step: Write, kept: bool, choice: random.Random) -> None:
    """Put a write where it belongs, whether what comes before it is there or not; one that is not kept, in part."""
    length = len(step.data) if kept else choice.choice((0, 0, len(step.data) // 2))
    if length:
        content.extend(bytes(max(0, step.offset - len(content))))
        content[step.offset : step.offset + length] = step.data[:length]


def _apply(name: Name, root: Path, contents: dict[int, bytearray]) -> None:
    path = root / name.directory / name.name
    if not path.parent.is_dir():
        return  # its directory was lost, and all that is in it
    if name.what is None:
        path.unlink(missing_ok=True)
    elif isinstance(name.what, File):
        path.write_bytes(contents.get(id(name.what), b""))
    else:
        path.mkdir(exist_ok=True)
