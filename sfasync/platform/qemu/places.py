"""Where the files of a job are on the disk of QEMU's host, and how what it makes is called."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...errors import UsageError, printable
from ...files import storage_error
from ...state import private
from .names import Kind, prefix_of
from .settings import QemuVm

_NAME = re.compile(rf"([0-9]{{1,4}})([{''.join(kind.value for kind in Kind)}])([0-9a-f]{{6}})?")

_SOCKET_PATH: Final = 107  # unix(7)


@dataclass(frozen=True, slots=True)
class Places:
    """Names and paths, the same for each job through a monitor: there is one at a time.

    Attributes:
        prefix: What all names begin with.
        directory: For the files.
        local: Whether QEMU runs on this host, so that its files are ours too.
        socket: Where a server of ours listens; None over TCP, or where one is running.
    """

    prefix: str
    directory: Path
    local: bool
    socket: Path | None

    @classmethod
    def of(cls, settings: QemuVm) -> Places:
        """The places of a VM; the directory is made where it is ours to make.

        Raises:
            UsageError: A path is too long for a socket.
            StorageError: The directory cannot be made, or belongs to somebody else.
        """
        prefix = prefix_of(settings)
        local = settings.socket is not None
        ours = Path(f"/var/tmp/sfasync-qemu-{os.geteuid()}")  # noqa: S108 - `private` refuses somebody else's
        directory = settings.directory or private(ours)
        path = directory / f"{prefix}nbd"
        if len(os.fsencode(path)) > _SOCKET_PATH:
            raise UsageError(f"'{printable(str(path))}' is too long for a Unix socket; choose another directory")
        elsewhere = settings.nbd.socket is not None or settings.nbd.host is not None
        return cls(prefix, directory, local, None if elsewhere else path)

    @property
    def credentials(self) -> str:
        """Id of the object with the credentials of a server of ours."""
        return f"{self.prefix}tls"

    def name(self, number: int, kind: Kind) -> str:
        """Of a node, job, export or bitmap for a disk."""
        return f"{self.prefix}{number}{kind.value}"

    def parse(self, name: str) -> tuple[int, Kind] | None:
        """Number and kind of a name of ours; None for another one."""
        match = _NAME.fullmatch(name.removeprefix(self.prefix)) if name.startswith(self.prefix) else None
        return None if match is None else (int(match[1]), Kind(match[2]))

    def number(self, name: str) -> int:
        """The disk that a name of ours belongs to."""
        parts = self.parse(name)
        assert parts is not None, "the name is none of ours"
        return parts[0]

    def fleecing(self, number: int, what: str) -> Path:
        """A file for what the guest overwrites of a disk while it is read: the ``map`` or the ``data``."""
        return self.directory / f"{self.prefix}{number}.{what}"

    def unlink(self, number: int) -> None:
        """Take their names from files that QEMU has opened, so that they end with their last user, however that ends.

        Raises:
            StorageError: It cannot be done.
        """
        if self.local:
            self._remove([self.fleecing(number, what) for what in ("map", "data")])

    def clear(self) -> None:
        """Remove what is left of files.

        Raises:
            StorageError: Something cannot be removed.
        """
        if self.local:
            self._remove(self.directory.glob(f"{self.prefix}*"))

    def _remove(self, paths: Iterable[Path]) -> None:
        try:
            for path in paths:
                with suppress(FileNotFoundError):
                    path.unlink()
        except OSError as error:
            raise storage_error(error, "clear", str(self.directory)) from error
