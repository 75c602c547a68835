"""Which failures to read an object are damage to the repository, and not a failure of those who read it.

::

    damaged, missing          IntegrityError            lasting, confined
    bad sector                StorageError, EIO ...     lasting, confined
    of a newer version        RepositoryVersionError             confined
    no right, memory, mount   StorageError
"""

from __future__ import annotations

import errno

from ..errors import IntegrityError, RepositoryVersionError, SfasyncError, StorageError

DAMAGE = (IntegrityError, RepositoryVersionError, StorageError)
"""The errors that a verification tells of and goes on after."""

Damage = IntegrityError | RepositoryVersionError | StorageError

_OF_THE_DEVICE = (errno.EIO, errno.EUCLEAN, errno.EBADMSG)


def is_confined(error: SfasyncError) -> bool:
    """Whether what could not be read concerns one object, so that others serve on without it: it is damaged, on a bad
    sector, or of a newer version.
    """
    return isinstance(error, RepositoryVersionError) or is_lasting(error)


def is_lasting(error: SfasyncError) -> bool:
    """Whether what could not be read is bad for everybody and for good: not for want of a right, memory or a mount."""
    cause = error.__cause__
    return isinstance(error, IntegrityError) or (isinstance(cause, OSError) and cause.errno in _OF_THE_DEVICE)
