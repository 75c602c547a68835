"""What is damage, and what only a failure of those who read."""

from __future__ import annotations

import errno
import os

import pytest

from sfasync.errors import (
    IntegrityError,
    ObjectMissingError,
    RepositoryVersionError,
    SfasyncError,
    StorageError,
    SystemLimitError,
)
from sfasync.store.damage import is_confined, is_lasting


def caused(code: int) -> StorageError:
    error = StorageError("cannot read it")
    error.__cause__ = OSError(code, os.strerror(code))
    return error


@pytest.mark.parametrize(
    ("error", "lasting", "confined"),
    [
        (IntegrityError("x"), True, True),
        (ObjectMissingError("x"), True, True),
        (caused(errno.EIO), True, True),
        (caused(errno.EBADMSG), True, True),
        (RepositoryVersionError("x"), False, True),
        (caused(errno.EACCES), False, False),
        (caused(errno.ENOTCONN), False, False),
        (StorageError("x"), False, False),
        (SystemLimitError("x"), False, False),
    ],
)
def test_what_could_not_be_read(error: SfasyncError, lasting: bool, confined: bool) -> None:
    assert (is_lasting(error), is_confined(error)) == (lasting, confined)
