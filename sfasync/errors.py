"""Every error that sfasync raises.

::

    SfasyncError                        code           exit
    ├── UsageError                      usage             2   an argument cannot be used as it is
    │   ├── ArgumentError               argument          2   a ValueError as well
    │   ├── UriError                    uri               2
    │   ├── ConfigurationError          configuration     2   the configuration file, or a secret it names
    │   ├── TargetRefusedError          target-refused    2   exists already, or is too small
    │   ├── BackupNotFoundError         no-such-backup    2
    │   └── StateError                  state             2   a call in the wrong order
    ├── RepositoryError                 repository       10   none there, or it cannot be read
    │   └── RepositoryVersionError      repo-version     10
    ├── BusyError                       busy             11   somebody else works on this VM: a session, its platform
    ├── TlsError                        tls              13   TLS
    ├── AuthenticationError             authentication   13   credentials, or the rights of their owner
    ├── SourceError                     source           20   the source failed
    │   ├── PlatformError               platform         20   the platform failed or refused
    │   │   └── CbtExpiredError         cbt-expired      20   changes are tracked anew since the last backup
    │   └── NbdError                    nbd              20
    │       ├── ConnectError            connect          20   no connection: name, address, socket
    │       ├── ExportError             export           20   unknown export, or one we cannot use
    │       ├── RemoteProtocolError     protocol         20   the server broke the protocol: connection dead
    │       ├── ConnectionLostError     connection-lost  20   connection dead
    │       ├── DeadlineError           deadline         20   no progress in time: connection dead
    │       ├── RequestError            request          20   the server refused one request: connection lives
    │       └── BadBlockError           bad-block        20   a range that cannot be read, however often it is asked
    ├── StorageError                    storage          21   repository or target I/O
    │   ├── NoSpaceError                no-space         21
    │   ├── SystemLimitError            system-limit     21   no more memory, open files or threads for this process
    │   ├── ObjectExistsError           object-exists    21   a create-only name is taken
    │   └── TargetError                 target           21   writing the target disk failed
    │       └── WritesLostError         writes-lost      21   acknowledged, and gone with the connection
    ├── IntegrityError                  integrity        22   stored bytes are not what was stored
    │   └── ObjectMissingError          object-missing   22
    ├── CbtError                        cbt              23   changed blocks unusable and a full backup not allowed
    └── LeaseLostError                  lease-lost       24   the platform took back lease or snapshot

A class says who is at fault and what survives. Facts travel as attributes and stand in the message; the message is one
line, and text that came from a peer is escaped and cut by `printable`.
"""

import errno
from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "ArgumentError",
    "AuthenticationError",
    "BackupNotFoundError",
    "BadBlockError",
    "BusyError",
    "CbtError",
    "CbtExpiredError",
    "ConfigurationError",
    "ConnectError",
    "ConnectionLostError",
    "DeadlineError",
    "ExportError",
    "IntegrityError",
    "LeaseLostError",
    "NbdError",
    "NoSpaceError",
    "ObjectExistsError",
    "ObjectMissingError",
    "PlatformError",
    "RemoteProtocolError",
    "RepositoryError",
    "RepositoryVersionError",
    "RequestError",
    "SfasyncError",
    "SourceError",
    "StateError",
    "StorageError",
    "SystemLimitError",
    "TargetError",
    "TargetRefusedError",
    "TlsError",
    "UriError",
    "UsageError",
    "WritesLostError",
]

_PRINTABLE_LIMIT = 256


def one_line(text: str) -> str:
    """Text fit for one line of a terminal: control characters escaped, nothing cut."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable(text: str) -> str:
    """Text of a peer made safe for one line of a terminal: control characters escaped, cut at 256 characters."""
    safe = one_line(text[:_PRINTABLE_LIMIT])
    return safe[:_PRINTABLE_LIMIT] + "…" if len(safe) > _PRINTABLE_LIMIT or len(text) > _PRINTABLE_LIMIT else safe


class SfasyncError(Exception):
    """The root of all errors of sfasync.

    Attributes:
        code: Short stable name of the kind of failure, as in ``--json``.
        exit_code: What the command line exits with.
        retryable: Whether repeating the idempotent part of the work may succeed.
        disk: Id of the disk concerned, if one is.
        offset: First byte concerned on that disk, if known.
        length: Bytes concerned from `offset`, if known.
        path: File or repository object concerned, if known.
    """

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        disk: str | None = None,
        offset: int | None = None,
        length: int | None = None,
        path: str | None = None,
    ) -> None:
        super().__init__(message)
        self.disk = disk
        self.offset = offset
        self.length = length
        self.path = path


class UsageError(SfasyncError):
    """An argument cannot be used as it is; nothing was touched."""

    code = "usage"
    exit_code = 2


class ArgumentError(UsageError, ValueError):
    """A number or a buffer does not fit the disk; the message names what was found and what is needed."""

    code = "argument"


class UriError(UsageError):
    """A URI is malformed, or names something that is not there (a certificate file)."""

    code = "uri"


class ConfigurationError(UsageError):
    """The configuration file cannot be used as it is, or a secret that it names cannot be had."""

    code = "configuration"


class TargetRefusedError(UsageError):
    """A target exists already, is not empty, or is smaller than what should be written to it."""

    code = "target-refused"


class BackupNotFoundError(UsageError):
    """No backup matches, or more than one does."""

    code = "no-such-backup"


class StateError(UsageError):
    """A call came in the wrong order; the message names the state found and the state needed."""

    code = "state"


class RepositoryError(SfasyncError):
    """There is no repository, or its configuration cannot be read."""

    code = "repository"
    exit_code = 10


class RepositoryVersionError(RepositoryError):
    """The repository, or one object of it, needs a newer version of sfasync."""

    code = "repo-version"


class BusyError(SfasyncError):
    """Another session, or the platform itself, works on this VM, or one took over from us; nothing was committed."""

    code = "busy"
    exit_code = 11


class TlsError(SfasyncError):
    """TLS is lacking, refused or demanded, verification failed, or the peer broke off; no export name was sent."""

    code = "tls"
    exit_code = 13


class AuthenticationError(SfasyncError):
    """A platform does not accept the credentials, or does not allow their owner what is needed."""

    code = "authentication"
    exit_code = 13


class SourceError(SfasyncError):
    """Reading a source failed."""

    code = "source"
    exit_code = 20


class PlatformError(SourceError):
    """A platform failed, refused, or answered what cannot be true.

    Attributes:
        status: Of HTTP, where the platform speaks it and did answer.
        reason: The platform's own code of the failure, where it gave one.
    """

    code = "platform"

    def __init__(self, message: str, *, status: int | None = None, reason: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class CbtExpiredError(PlatformError):
    """The platform tracks changes anew since the checkpoint that was asked for: tracking is to be reset."""

    code = "cbt-expired"


class NbdError(SourceError):
    """Anything that an NBD server, or the way to it, does wrong."""

    code = "nbd"


class ConnectError(NbdError):
    """No connection could be made: name resolution, refused, no such socket, timeout."""

    code = "connect"


class ExportError(NbdError):
    """The server does not know the export, refuses it, or describes it in a way that cannot be used."""

    code = "export"


class RemoteProtocolError(NbdError):
    """The server broke the protocol; the connection is dead and nothing it sent later is used."""

    code = "protocol"


class ConnectionLostError(NbdError):
    """The connection ended while requests were in flight."""

    code = "connection-lost"
    retryable = True


class DeadlineError(NbdError):
    """The server made no progress in time; the connection is dead."""

    code = "deadline"
    retryable = True


class RequestError(NbdError):
    """The server answered one request with an error; the connection lives.

    Attributes:
        errno: The NBD error number, which has the value of the Linux errno of that name (proto.md, "Error values").
    """

    code = "request"
    retryable = True

    def __init__(self, message: str, *, errno: int, offset: int | None = None, length: int | None = None) -> None:
        super().__init__(message, offset=offset, length=length)
        self.errno = errno


class BadBlockError(NbdError):
    """A range cannot be read: the server refuses it, or drops the connection over it, each time it is asked."""

    code = "bad-block"


class StorageError(SfasyncError):
    """Reading or writing the repository or a local target failed."""

    code = "storage"
    exit_code = 21


class NoSpaceError(StorageError):
    """The file system of the repository or of a target is full, or a quota is."""

    code = "no-space"


class SystemLimitError(StorageError):
    """The process met a limit of the system: memory, open files or threads. Nothing half-done is visible."""

    code = "system-limit"


def system_limit(error: BaseException) -> SystemLimitError | None:
    """The error for a limit of the system that `error` stands for; None if it stands for something else."""
    no_memory = (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, ImportError) and "map segment" in str(error))  # of a library: the loader has no errno
        or (isinstance(error, RuntimeError) and str(error).startswith("can't allocate"))  # a lock, or a file's
    )
    if no_memory:
        return SystemLimitError("there is no more memory; let the process have more, or give it less with --memory")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return SystemLimitError("no more files can be opened; raise the limit (ulimit -n)")
    return None


class ObjectExistsError(StorageError):
    """The name of an object to be created is taken; nothing was changed."""

    code = "object-exists"


class TargetError(StorageError):
    """Writing the target disk failed."""

    code = "target"


class WritesLostError(TargetError):
    """A connection was lost before what it had acknowledged was durable; the server may have forgotten it.

    Attributes:
        ranges: What has to be written again before a flush can succeed: (start, end) in bytes, in order.
    """

    code = "writes-lost"
    retryable = True

    def __init__(self, message: str, *, ranges: Sequence[tuple[int, int]]) -> None:
        super().__init__(message, offset=ranges[0][0], length=sum(end - start for start, end in ranges))
        self.ranges = tuple(ranges)


class IntegrityError(SfasyncError):
    """Stored bytes are not the bytes that were stored; nothing wrong was handed on."""

    code = "integrity"
    exit_code = 22


class ObjectMissingError(IntegrityError):
    """An object that the repository should hold is not there."""

    code = "object-missing"


class CbtError(SfasyncError):
    """Changed-block information is unusable and a full backup was not allowed.

    A platform may raise it while it tells what has changed; where a full backup is allowed, the disk is read in full
    then.

    Attributes:
        reason: Why, as a short code (`cbt-expired`): the disk of the backup gets it.
    """

    code = "cbt"
    exit_code = 23

    def __init__(
        self,
        message: str,
        *,
        reason: str = "cbt-invalid",
        disk: str | None = None,
        offset: int | None = None,
        length: int | None = None,
    ) -> None:
        super().__init__(message, disk=disk, offset=offset, length=length)
        self.reason = reason


class LeaseLostError(SfasyncError):
    """The platform took back its lease or its snapshot; nothing was committed."""

    code = "lease-lost"
    exit_code = 24
