"""An object store in a directory of a local file system.

An object is written to a file without a name, synced, and linked to its name, which fails if the name is taken. So it
is created once, whole and durable, or not at all, and a writer that is killed leaves nothing. File systems that have no
nameless files get a ``.tmp-<random>`` name first; then a killed writer leaves that.

A hold is an flock(2) taken before the object gets its name. Nobody can see the object unlocked while its creator lives,
and the kernel frees the lock with the creator, however it ends.

Names come from others (a listing, a manifest), the tree may have been tampered with: every step of a path is opened
without following symbolic links, and only regular files are read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import IntegrityError, ObjectExistsError, ObjectMissingError, StorageError, printable
from ..files import FileWriter, close_anyway, read_at, storage_error, sync_names
from ..interfaces import Buffer

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # O_NONBLOCK: a planted FIFO must not hold us up
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700

# What open(2) answers where O_TMPFILE is not supported; EISDIR and ENOENT come from kernels that do not know it.
_NO_NAMELESS_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
_NOT_OURS = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO)

# Our deepest key has five parts. Deeper trees are not ours and are not walked.
_DEPTH = 6

_TEMPORARY_PREFIX = ".tmp-"

_SETTLED = 2 * 10**9  # ns: a file that changed later than that ago may change again within a tick of its time stamps

Keys = list[str]  # within the class, `list` is a method
Stamps = list[tuple[str, str | None]]
_Visitor = Callable[[str, "os.DirEntry[str]"], object]


class LocalStore:
    """An `ObjectStore` on a directory. Calls block; any thread may make them.

    Args:
        root: An existing directory. It is opened once, so everything goes to the directory that it was then. When its
            path leads elsewhere later, because it was moved, or something was mounted over it or unmounted, no object
            is created any more.

    Raises:
        OSError: The directory cannot be opened.
    """

    def __init__(self, root: Path) -> None:
        self._location = str(root)
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._durable: set[str] = set()  # directories whose entry in their parent this process has synced

    def __repr__(self) -> str:
        return f"<LocalStore {self._location}>"

    @property
    def location(self) -> str:
        return self._location

    def close(self) -> None:
        """Give the directory back; idempotent. No other call may follow."""
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)

    # --- creating ---------------------------------------------------------------------------------------------------

    def put(self, key: str, data: Buffer) -> None:
        writer = self.writer(key)
        try:
            writer.write(data)
            writer.commit()
        finally:
            writer.abort()

    def writer(self, key: str) -> LocalWriter:
        directory, name = self._split(key)
        self._check_place()
        try:
            parent = self._open_directory(directory, create=True)
        except OSError as error:
            raise self._misplaced(error, key) or self._failure(error, "create", key) from error
        try:
            return LocalWriter(self._describe(key), key, name, parent)
        except OSError as error:
            os.close(parent)
            raise self._failure(error, "create", key) from error

    def hold(self, key: str, data: Buffer) -> LocalHold:
        writer = self.writer(key)
        try:
            writer.write(data)
            hold = writer.lock()
            try:
                writer.commit()
            except BaseException:
                hold.release()
                raise
        finally:
            writer.abort()
        return hold

    def held(self, key: str) -> bool:
        try:
            fd = self._open_file(key)
        except ObjectMissingError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            raise self._failure(error, "ask for the lock of", key) from error
        finally:
            os.close(fd)
        return False

    # --- reading ----------------------------------------------------------------------------------------------------

    def get(self, key: str, *, limit: int) -> bytes:
        fd = self._open_file(key)
        try:
            size = os.fstat(fd).st_size
            if size > limit:
                what = f"{self._describe(key)} has {size} bytes; its kind has {limit} at most"
                raise IntegrityError(what, path=key)
            return _read_bytes(fd, size)
        except OSError as error:
            raise self._failure(error, "read", key) from error
        finally:
            os.close(fd)

    def read_into(self, key: str, offset: int, buffer: memoryview) -> int:
        fd = self._open_file(key)
        try:
            return read_at(fd, offset, buffer)
        except OSError as error:
            raise self._failure(error, "read", key) from error
        finally:
            os.close(fd)

    def size(self, key: str) -> int:
        fd = self._open_file(key)
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def modified(self, key: str) -> float:
        fd = self._open_file(key)
        try:
            return os.fstat(fd).st_mtime
        finally:
            os.close(fd)

    # --- listing and removing ---------------------------------------------------------------------------------------

    def list(self, prefix: str) -> Keys:
        keys: Keys = []
        self._visit(prefix, lambda key, entry: keys.append(key))
        return sorted(keys)

    def stamps(self, prefix: str) -> Stamps:
        stamps: Stamps = []
        settled = time.time_ns() - _SETTLED

        def visit(key: str, entry: os.DirEntry[str]) -> None:
            with suppress(FileNotFoundError):  # removed since it was listed
                stamps.append((key, _stamp(entry.stat(follow_symlinks=False), settled)))

        self._visit(prefix, visit)
        return sorted(stamps)

    def delete(self, key: str) -> None:
        directory, name = self._split(key)
        try:
            parent = self._open_directory(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failure(error, "remove", key) from error
        try:
            os.unlink(name, dir_fd=parent)
            sync_names(parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._failure(error, "remove", key) from error
        finally:
            os.close(parent)

    # --- paths ------------------------------------------------------------------------------------------------------

    def _check_place(self) -> None:
        """See that the path still leads to the directory that was opened.

        Raises:
            StorageError: It does not: what was created would not be found there.
        """
        try:
            in_place = os.path.samestat(os.stat(self._location), os.fstat(self._root))
        except OSError as error:
            raise storage_error(error, "find", self._location) from error
        if not in_place:
            where = printable(self._location)
            raise StorageError(f"{where} is another directory now; mount or move back the one it was", path=where)

    def _visit(self, prefix: str, visit: _Visitor) -> None:
        """Call `visit` with each key below a prefix that ends with a slash, or is empty, and its directory entry."""
        assert prefix == "" or prefix.endswith("/"), prefix
        try:
            try:
                top = self._open_directory(prefix.rstrip("/"))
            except FileNotFoundError:
                return
            self._walk(top, prefix, prefix.count("/"), visit)
        except OSError as error:
            raise self._misplaced(error, prefix) or self._failure(error, "list", prefix) from error

    def _walk(self, directory: int, prefix: str, depth: int, visit: _Visitor) -> None:
        """Visit the keys below a directory, whose descriptor is closed."""
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    key = prefix + entry.name
                    if not entry.is_dir(follow_symlinks=False):
                        visit(key, entry)
                    elif depth + 1 >= _DEPTH:
                        visit(key + "/", entry)
                    elif key != "lost+found":  # an ext4 file system's own, and not for everybody to read
                        below = os.open(entry.name, _DIRECTORY, dir_fd=directory)
                        self._walk(below, key + "/", depth + 1, visit)
        finally:
            os.close(directory)

    def _open_directory(self, path: str, *, create: bool = False) -> int:
        """A descriptor of a directory below the root; missing ones are created, and made durable, if asked for."""
        fd = os.dup(self._root)
        done = ""
        try:
            for part in path.split("/") if path else ():
                done = f"{done}/{part}" if done else part
                if create:
                    self._make_directory(done, part, fd)
                below = os.open(part, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _make_directory(self, path: str, name: str, parent: int) -> None:
        """Create a directory, and make sure once that its entry is durable, whoever created it."""
        try:
            os.mkdir(name, _DIRECTORY_MODE, dir_fd=parent)
            os.chmod(name, _DIRECTORY_MODE, dir_fd=parent)  # the umask may have taken bits away
        except FileExistsError:
            if path in self._durable:
                return
        sync_names(parent)
        with self._lock:
            self._durable.add(path)

    def _open_file(self, key: str) -> int:
        """A descriptor for reading a regular file.

        Raises:
            ObjectMissingError: There is none of this name.
            IntegrityError: Something else has this name.
        """
        directory, name = self._split(key)
        try:
            parent = self._open_directory(directory)
            try:
                fd = os.open(name, _READ, dir_fd=parent)
            finally:
                os.close(parent)
        except FileNotFoundError as error:
            raise ObjectMissingError(f"{self._describe(key)} is missing", path=key) from error
        except OSError as error:
            if error.errno in _NOT_OURS:
                raise IntegrityError(f"{self._describe(key)} is not a regular file", path=key) from error
            raise self._failure(error, "open", key) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise IntegrityError(f"{self._describe(key)} is not a regular file", path=key)
        return fd

    def _split(self, key: str) -> tuple[str, str]:
        """Directory and name of a key."""
        assert all(part not in ("", ".", "..") for part in key.split("/")), key
        directory, _, name = key.rpartition("/")
        return directory, name

    def _describe(self, key: str) -> str:
        return printable(f"{self._location}/{key}")

    def _misplaced(self, error: OSError, key: str) -> IntegrityError | None:
        """The error for something else, a symbolic link for one, in the place of a directory; None for another failure.

        It says that the repository was tampered with, not that its file system fails.
        """
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            return None
        return IntegrityError(f"{self._describe(key)} does not lie in directories of the repository", path=key)

    def _failure(self, error: OSError, doing: str, key: str) -> StorageError:
        failure = storage_error(error, doing, f"{self._location}/{key}", file_system=self._root)
        failure.path = key
        return failure


class LocalWriter:
    """An object under construction in a `LocalStore`. Owns the descriptor of its directory.

    Raises:
        OSError: No file could be created.
    """

    def __init__(self, path: str, key: str, name: str, directory: int) -> None:
        self._path = path
        self._key = key
        self._name = name
        self._temporary: str | None = None
        self._directory = directory
        self._fd = self._open(directory)
        try:
            self._file = FileWriter(self._fd)
        except OSError:  # no memory
            close_anyway(self._fd)
            raise

    @property
    def position(self) -> int:
        return self._file.position

    def write(self, data: Buffer) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failure(error, "write", self._file.missing()) from error

    def commit(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._fd)
            self._link()
            sync_names(self._directory)
        except FileExistsError as error:
            raise ObjectExistsError(f"{self._path} exists already", path=self._key) from error
        except OSError as error:
            raise self._failure(error, "write", self._file.missing()) from error
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop the object, unless it was committed. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        self._file.close()
        close_anyway(fd)
        try:
            if self._temporary is not None:
                os.unlink(self._temporary, dir_fd=self._directory)
        except OSError:
            pass  # a left-over that verify reports; the object itself stands, or never will
        finally:
            os.close(self._directory)

    def lock(self) -> LocalHold:
        """Lock the file, which has no name yet, until the hold is released."""
        try:
            fd = os.dup(self._fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                raise
        except OSError as error:
            raise self._failure(error, "lock") from error
        return LocalHold(fd)

    def _open(self, directory: int) -> int:
        fd = self._create(directory)
        try:
            os.fchmod(fd, _FILE_MODE)  # the umask may have taken bits away
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _create(self, directory: int) -> int:
        try:
            return open_nameless(directory)
        except OSError as error:
            if error.errno not in _NO_NAMELESS_FILES:
                raise
        while True:
            self._temporary = _TEMPORARY_PREFIX + secrets.token_hex(8)
            fd = os.open(self._temporary, _CREATE, _FILE_MODE, dir_fd=directory)
            if _lock_new(fd):
                return fd
            os.close(fd)

    def _link(self) -> None:
        if self._temporary is None:
            nameless = f"/proc/self/fd/{self._fd}"
            os.link(nameless, self._name, dst_dir_fd=self._directory, follow_symlinks=True)
        else:
            directory = self._directory
            os.link(self._temporary, self._name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)

    def _failure(self, error: OSError, doing: str, needed: int = 0) -> StorageError:
        failure = storage_error(error, doing, self._path, file_system=self._directory, needed=needed)
        failure.path = self._key
        return failure


class LocalHold:
    """A lock on an object, freed by `release` or by the end of the process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        """Give the lock up; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _stamp(status: os.stat_result, settled: int) -> str | None:
    """What tells a file from others and from what it was; None if it changed after the instant `settled` (ns)."""
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    if changed > settled or not stat.S_ISREG(status.st_mode):
        return None
    return f"{status.st_ino}.{status.st_size}.{status.st_mtime_ns}.{status.st_ctime_ns}"


def is_temporary(name: str) -> bool:
    """Whether a file name is one that a writer uses until its object is complete."""
    return name.startswith(_TEMPORARY_PREFIX)


def open_nameless(directory: int) -> int:
    """A descriptor of a new file that has no name yet (open(2), O_TMPFILE).

    Raises:
        OSError: The file system has no such files, or /proc, through which they get a name, is not there.
    """
    if not os.path.exists("/proc/self/fd"):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    return os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, _FILE_MODE, dir_fd=directory)


def _lock_new(fd: int) -> bool:
    """Lock a file that was just created, so that nobody takes it for a left-over.

    Returns:
        Whether it is ours: nobody did so before.

    Raises:
        OSError: The file system has no locks; the descriptor is closed.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(fd).st_nlink > 0
    except BlockingIOError:
        return False
    except BaseException:
        os.close(fd)
        raise


def _read_bytes(fd: int, size: int) -> bytes:
    """The first `size` bytes of a file, or all it has."""
    pieces = []
    done = 0
    while done < size:
        piece = os.pread(fd, size - done, done)
        if not piece:
            break
        pieces.append(piece)
        done += len(piece)
    return b"".join(pieces)  # one piece, the usual case, is not copied
