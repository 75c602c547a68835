"""The directory of a lab that runs in the background: whether it runs, how it is reached, what is left of it.

::

    lab.pid        locked by the process as long as it lives; says which process, and where its sockets are
    lab.log        what that process has to say
    sfasync.toml, password, secret-key      for clients; written by each start
    vms/           the machines, and the certificate of the authority
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..errors import StateError, printable
from ..files import storage_error
from ..state import private, state_directory

_FILES = ("lab.pid", "lab.log", "sfasync.toml", "password", "secret-key")
_LIMIT = 64 << 10  # bytes of the file that says which process
_SOCKETS = "sfasync-lab-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A lab's process.

    Attributes:
        pid: The process.
        sockets: The directory of its sockets.
    """

    pid: int
    sockets: str

    @property
    def control(self) -> Path:
        """Where it takes commands."""
        return Path(self.sockets, "control")


class Home:
    """A directory that a lab has, or may have.

    Args:
        path: The directory; None for the one that is there for it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = (state_directory("lab") if path is None else path).absolute()

    @property
    def machines(self) -> Path:
        """The directory of its machines."""
        return self.path / "vms"

    @property
    def log(self) -> Path:
        """What the lab's process says."""
        return self.path / "lab.log"

    @property
    def configuration(self) -> Path:
        """The configuration file for clients."""
        return self.path / "sfasync.toml"

    def make(self) -> None:
        """Make the directories, for their owner alone.

        Raises:
            StorageError: It cannot be made, or belongs to somebody else.
        """
        private(self.path)
        private(self.machines)

    @contextmanager
    def taken(self) -> Iterator[Path]:
        """Be the lab of this directory for the time of the block; gives a directory for sockets.

        What a lab that was killed has left of those is removed.

        Raises:
            StateError: Another one is.
            StorageError: The directory cannot be used.
        """
        path = self.path / "lab.pid"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise storage_error(error, "open", str(path)) from error
        try:
            if not _is_free(fd):
                raise StateError(f"a lab runs in {printable(str(self.path))}; sfasync lab down ends it")
            _forget_sockets(_said(fd))
            # The path of a Unix socket has at most 107 bytes, so the directory itself will not do.
            with tempfile.TemporaryDirectory(prefix=_SOCKETS) as sockets:
                os.ftruncate(fd, 0)
                os.pwrite(fd, msgspec.json.encode({"pid": os.getpid(), "sockets": sockets}), 0)
                yield Path(sockets)
                os.ftruncate(fd, 0)
        finally:
            os.close(fd)

    def alive(self) -> bool:
        """Whether a lab runs here, or is beginning or ending to."""
        return self._look()[0]

    def running(self) -> Running | None:
        """The lab that runs here; None as well while it begins or ends."""
        alive, said = self._look()
        return said if alive else None

    def remove(self) -> None:
        """Remove what a lab that has ended kept here, and the directory if nothing else is in it.

        Raises:
            StateError: It has not ended.
        """
        if not self.path.is_dir():
            return
        with self.taken():
            pass  # and its sockets are gone as well
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.machines, ignore_errors=True)
        with suppress(OSError):  # it has something else in it, or was not there
            self.path.rmdir()

    def _look(self) -> tuple[bool, Running | None]:
        """Whether somebody has the lock, and what is said of who has or had it."""
        try:
            fd = os.open(self.path / "lab.pid", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False, None
        try:
            return not _is_free(fd), _said(fd)
        finally:
            os.close(fd)


def _is_free(fd: int) -> bool:
    """Whether no lab has the lock; if so, the caller has it now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _said(fd: int) -> Running | None:
    try:
        return msgspec.json.decode(os.pread(fd, _LIMIT, 0), type=Running)
    except msgspec.MsgspecError:  # nothing is said yet, or any more
        return None


def _forget_sockets(before: Running | None) -> None:
    if before is not None and Path(before.sockets).name.startswith(_SOCKETS):
        shutil.rmtree(before.sockets, ignore_errors=True)
