"""Where this user's programs keep what must outlive a crash (XDG Base Directory Specification)."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import StorageError, printable
from .files import make_directory, storage_error


def state_directory(name: str) -> Path:
    """The directory of one kind of state; it may not be there yet.

    Raises:
        StorageError: There is no such place.
    """
    base = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):  # a path that is not absolute counts as none
        base = os.path.expanduser("~/.local/state")
    if not os.path.isabs(base):
        raise StorageError("this user has no home for a journal; set XDG_STATE_HOME to a directory")
    return Path(base) / "sfasync" / name


def private(place: Path) -> Path:
    """The directory, made for its owner alone.

    Raises:
        StorageError: It cannot be, or it belongs to somebody else.
    """
    try:
        make_directory(place)
        status = place.stat()
        if status.st_uid == os.geteuid() and status.st_mode & 0o077:
            place.chmod(0o700)
    except OSError as error:
        raise storage_error(error, "create", str(place)) from error
    if status.st_uid != os.geteuid():
        raise StorageError(
            f"{printable(str(place))} belongs to another user; set XDG_STATE_HOME to a directory of this one",
            path=str(place),
        )
    return place
