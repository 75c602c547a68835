"""A repository: backups of any number of VMs in one place, deduplicated, incremental for ever.

Sessions, verification and what reads disks are imported when they are first needed: half of the time that a listing
takes would go into importing them.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ..errors import (
    BackupNotFoundError,
    BusyError,
    IntegrityError,
    ObjectExistsError,
    ObjectMissingError,
    RepositoryError,
    StateError,
    StorageError,
    SystemLimitError,
    TargetRefusedError,
    UsageError,
    printable,
)
from ..files import make_directory, storage_error, sync_directory
from ..models import check_id
from ..tasks import Looks, finish, insist
from ..units import KiB, MiB
from ..workers import Workers, settled
from .blobs import BlobReader
from .catalog import Catalog
from .codec import FORMAT, MAX_OBJECT, Configuration, decode_configuration, encode_record
from .local import LocalStore, is_temporary
from .locator import Locator
from .names import CONFIG, session_key
from .objectcache import ObjectCache
from .objects import ObjectKind, check_writable, decode, encode
from .records import Records
from .seal import BlobKind
from .tree import CHUNK_SIZES, ZERO

if TYPE_CHECKING:
    from ..models import Difference, Manifest, RepairResult, UnfinishedBackup, VerifyResult
    from .disk import StoredDisk
    from .repair import Repair
    from .session import Session
    from .verify import Reading

_WAITING = 1  # beside a thread for each core, while one waits for a disk: 1.08 times the speed of a backup on two
_CLOSERS = 2
_SCRIBES = 1  # not among the closers, for which it waits
_POLL_SECONDS = 0.2
_CLOSE_SECONDS = 5.0
_MAX_TEXT = 4 * KiB
_NOT_CONTENT = ("lost+found",)  # of a file system that is mounted there


class Repository:
    """Backups in a directory: a `BackupStore`. Made by `open` or `init`; belongs to one event loop.

    Attributes:
        location: The directory.
        id: 32 hex digits, random.
        chunk_size: Bytes of a chunk.
    """

    def __init__(self, store: LocalStore, configuration: Configuration, workers: Workers) -> None:
        self.location = store.location
        self.id = configuration.id
        self.chunk_size = configuration.chunk_size
        self._store = store
        self._workers = workers
        self._closers = Workers(_CLOSERS, "sfasync-pack")
        self._scribes = Workers(_SCRIBES, "sfasync-journal")
        self._records = Records(store, bytes.fromhex(configuration.id))
        self._locator = Locator(store, self._records.repository)
        self._blobs = BlobReader(store, self._locator)
        self._objects = ObjectCache(self._records.repository)
        self._catalog = Catalog(self._records, self._objects)
        self._sessions: set[Session] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Repository {self.id[:12]} in {self.location}{', closed' if self._closed else ''}>"

    @classmethod
    async def open(cls, location: str | os.PathLike[str], *, create: bool = False) -> Repository:
        """Open a repository.

        Args:
            location: Its directory.
            create: Make it if there is none.

        Raises:
            RepositoryError: There is none, or its configuration cannot be read.
            RepositoryVersionError: A newer version made it.
            StorageError: It could not be created.
        """
        path = _local_path(location)
        if create:
            try:
                return await cls.init(path)
            except TargetRefusedError:
                pass  # there is one, or what `open` has more to say about
        return await cls._in_thread(_open, path)

    @classmethod
    async def init(cls, location: str | os.PathLike[str], *, chunk_size: int = MiB) -> Repository:
        """Make a repository in a directory that does not exist or is empty.

        Args:
            location: The directory.
            chunk_size: Bytes of a chunk, 256 KiB to 4 MiB, a power of two; never changes.

        Raises:
            UsageError: The chunk size is none of these.
            TargetRefusedError: The directory holds something.
            StorageError: It could not be created, or its file system cannot create files exclusively.
        """
        path = _local_path(location)
        if chunk_size not in CHUNK_SIZES:
            sizes = ", ".join(str(size) for size in CHUNK_SIZES)
            raise UsageError(f"a chunk size of {chunk_size} is none of {sizes}")
        return await cls._in_thread(_init, path, chunk_size)

    @classmethod
    async def _in_thread(cls, function: Callable[..., tuple[LocalStore, Configuration]], *args: object) -> Repository:
        workers = Workers(len(os.sched_getaffinity(0)) + _WAITING, "sfasync-store")
        future = workers.submit(function, *args)
        try:
            store, configuration = await settled(future)
        except BaseException:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result()[0].close()  # cancelled just when it was open
            workers.close()
            raise
        return cls(store, configuration, workers)

    async def __aenter__(self) -> Repository:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Abort the sessions that are open and give everything back. Idempotent; no other call may follow.

        Raises:
            StorageError: That was not done after 5 s, because the disk hangs. It is when the disk answers.
        """
        if self._closed:
            return
        self._closed = True
        try:
            await finish(self._workers.run_anyway(self._close), _CLOSE_SECONDS)
        except TimeoutError as error:
            where = printable(self.location)
            raise StorageError(f"{where} cannot be closed: its disk does not answer", path=where) from error
        finally:
            for workers in (self._workers, self._closers, self._scribes):
                workers.close()

    # --- backups ------------------------------------------------------------------------------------------------------

    async def begin(self, vm: str, *, wait: float = 0.0, resume: bool = True) -> Session:
        """Begin a backup of a VM, after at most `wait` seconds for another session of the same VM to end.

        Without `resume`, what an interrupted backup of the VM had finished is dropped. Cancelling leaves no session
        behind.

        Raises:
            BusyError: Another session works on the VM.
            RepositoryError: The repository is not the one that was opened any more.
            RepositoryVersionError: Only newer versions may write to it.
            StorageError: The session could not be created.
        """
        self._require_open()

        async def begin() -> Session:
            future = self._workers.submit(self._begin, vm, resume)
            try:
                return await settled(future)
            except asyncio.CancelledError:
                if not future.cancelled() and future.exception() is None:
                    await future.result().abort()
                raise

        return await insist(begin, BusyError, Looks(_POLL_SECONDS, _POLL_SECONDS, seconds=wait))

    async def backups(
        self, vm: str | None = None, *, since: float | None = None, tag: str | None = None
    ) -> list[Manifest]:
        """The backups, ordered by VM and number. Damaged ones are left out and logged.

        Args:
            vm: Only those of this VM: its id, or its name if no VM has it as id.
            since: Only those whose snapshot was taken at this time or later, in seconds since the epoch.
            tag: Only those that have this tag now.

        Raises:
            BackupNotFoundError: Several VMs have the name.
            StorageError: The repository cannot be read.
        """
        self._require_open()
        return await self._workers.run(partial(self._catalog.backups, vm, since=since, tag=tag))

    async def unfinished(self) -> list[UnfinishedBackup]:
        """The backups that were stopped or still run and can be resumed, by VM and age.

        Raises:
            StorageError: The repository cannot be read.
        """
        self._require_open()
        from .resume import unfinished

        return await self._workers.run(unfinished, self._records)

    async def find(self, reference: str) -> Manifest:
        """The backup meant by an id, a unique prefix of at least 4 digits, or ``VM@latest``, with a VM's id or name.

        Raises:
            BackupNotFoundError: None matches, or several do.
            IntegrityError: The latest is damaged; or none matches, and damaged ones may.
            RepositoryVersionError: As above, but a newer version wrote it.
            StorageError: The repository cannot be read.
        """
        self._require_open()
        return await self._workers.run(self._catalog.find, reference)

    async def annotate(
        self, backup: str, *, add: Sequence[str] = (), remove: Sequence[str] = (), note: str | None = None
    ) -> Manifest:
        """Change the tags and the note of a backup. Two who do so at once both have their way, one after the other.

        Cancelling waits until it is decided.

        Args:
            backup: As of `find`.
            add, remove: Tags to give it and to take away.
            note: What to say of it, one line of at most 4 KiB; empty for nothing, None to leave it.

        Returns:
            The backup as it is then.

        Raises:
            UsageError: A tag or the note cannot be one, or there is nothing to change.
            StorageError: It could not be written.
            BackupNotFoundError, IntegrityError, RepositoryError: As of `find` and `begin`.
        """
        for tag in (*add, *remove):
            check_id("tag", tag)
        if both := set(add) & set(remove):
            raise UsageError(f"tag {min(both)!r} cannot be added and removed at once")
        if note is not None:
            _check_text("note", note)
        if not (add or remove) and note is None:
            raise UsageError("nothing to change: name tags to add or remove, or a note")
        return await self._workers.run_to_end(self._annotate, backup, add, remove, note)

    async def forget(self, *backups: str, reason: str = "", dry_run: bool = False) -> list[Manifest]:
        """Remove backups, that is their manifests, for good; what they alone stored stays until the repository is
        pruned. When and why is kept on record.

        All are looked up before the first is removed. A session that builds on one of them, and a restore that reads
        one, are not disturbed. Cancelling waits for the one that is being removed; those before it are gone.

        Args:
            backups: Each as of `find`.
            reason: Why, one line of at most 4 KiB.
            dry_run: Only look them up.

        Returns:
            The backups forgotten.

        Raises:
            UsageError: The reason cannot be one.
            StorageError: One could not be removed; those before it are gone.
            BackupNotFoundError, IntegrityError, RepositoryError: As of `find` and `begin`; nothing was removed.
        """
        _check_text("reason", reason)
        found = {manifest.id: manifest for manifest in [await self.find(backup) for backup in backups]}
        for manifest in () if dry_run else found.values():
            await self._workers.run_to_end(self._forget, manifest, reason)
        return list(found.values())

    async def distrust(self, last: Manifest, disk_id: str) -> list[Manifest]:
        """Mark a disk as suspect in a backup and in those before it, back to the last in which it was read in full.

        Cancelling waits until it is decided.

        Returns:
            The backups of which the disk is suspect now, the last one first.

        Raises:
            StorageError: One could not be marked; those after it are.
            RepositoryError: As of `begin`.
        """
        return await self._workers.run_to_end(self._distrust, last, disk_id)

    def open_disk(self, manifest: Manifest, disk_id: str) -> StoredDisk:
        """A disk of a backup as a source.

        Raises:
            BackupNotFoundError: The backup has no such disk.
        """
        self._require_open()
        record = manifest.disk(disk_id)
        if record is None:
            raise BackupNotFoundError(f"backup {manifest.id} has no disk {disk_id!r}", disk=disk_id)
        from .disk import StoredDisk

        return StoredDisk(record, self.chunk_size, self._blobs, self._workers)

    async def diff(self, first: Manifest, second: Manifest, disk_id: str | None = None) -> AsyncIterator[Difference]:
        """Where two backups differ, disk by disk and in order of offset: those of the first, then new ones.

        Reads pages, no chunks, and no page of what both have; exact to a chunk. Memory does not grow with the disks.

        Args:
            first, second: The backups; of one VM or of two.
            disk_id: Only this disk.

        Raises:
            BackupNotFoundError: Neither backup has that disk.
            IntegrityError: A page is lost or damaged.
            StorageError: The repository cannot be read.
        """
        self._require_open()
        from .diff import differences
        from .disk import open_tree

        open_it = partial(open_tree, chunk_size=self.chunk_size, blobs=self._blobs)
        known = list(dict.fromkeys(disk.id for disk in (*first.disks, *second.disks)))
        if disk_id is not None and disk_id not in known:
            raise BackupNotFoundError(f"neither backup has a disk {disk_id!r}", disk=disk_id)
        for name in known if disk_id is None else [disk_id]:
            ranges = differences(name, first.disk(name), second.disk(name), open_it, self._workers)
            async with aclosing(ranges):
                async for difference in ranges:
                    yield difference

    async def read_file(self, manifest: Manifest, name: str) -> bytes:
        """A file of a backup that is not a disk.

        Raises:
            BackupNotFoundError: The backup has no such file.
            IntegrityError: It is lost or damaged.
        """
        self._require_open()
        record = next((file for file in manifest.files if file.name == name), None)
        if record is None:
            raise BackupNotFoundError(f"backup {manifest.id} has no file {name!r}")
        digest = bytes.fromhex(record.digest)
        if digest == ZERO:
            return bytes(record.size)
        return await self._workers.run(self._blobs.read, BlobKind.FILE, digest, record.size)

    async def verify(
        self,
        ids: Sequence[str] = (),
        *,
        data: bool = False,
        older_than: float | None = None,
        percent: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> VerifyResult:
        """Check the given backups, or the whole repository.

        Damage is in the result, not an exception. What was read and what was found bad is recorded in the repository;
        if that fails, there is a warning in the result. Cancelling stops it soon, and records nothing.

        Args:
            ids: Whole ids of backups; none for everything, left-overs included.
            data: Read every byte of every file concerned and recompute all digests.
            older_than: Read, as with `data`, only what no verification has read for so many seconds.
            percent: Read, as with `data`, so much of the bytes concerned, what is longest unread first.
            progress: Called on the loop with objects done and objects in all.

        Raises:
            UsageError: `data` is given together with one that reads less, or a number is out of range.
            BackupNotFoundError: An id is unknown.
            StorageError: The repository cannot be read.
        """
        self._require_open()
        reading = _reading(data, older_than, percent)
        from .verify import Verification

        verification = Verification(self._records, self.chunk_size, ids, reading)
        return await verification.run(self._workers.count, progress)

    async def repair(
        self, *, dry_run: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> RepairResult:
        """Give the repository back what can be had from what is in it, then look what is damaged still.

        Packs that no index object has are indexed again, damaged index objects replaced, what is bad is put in
        quarantine and what is good again let out, and what killed writers left is removed. Nothing that cannot be read
        is removed. Others may go on working. Cancelling stops it soon; what was done stands.

        Args:
            dry_run: Do nothing, and say what would be done.
            progress: As of `verify`, of the look at what is damaged.

        Raises:
            RepositoryVersionError: Only newer versions may write to it.
            StorageError: The repository cannot be read or written.
        """
        from ..models import RepairResult
        from .repair import Repair
        from .verify import Reading, Verification

        self._require_open()
        began = time.monotonic()
        stopped = threading.Event()
        repair = Repair(self._records, dry_run=dry_run, stopped=stopped)
        await settled(self._workers.submit(self._repair, repair), stop=stopped.set)
        verification = Verification(self._records, self.chunk_size, (), Reading(), remember=not dry_run)
        result = await verification.run(self._workers.count, progress)
        return RepairResult(
            actions=tuple(repair.actions),
            problems=result.problems,
            dry_run=dry_run,
            seconds=time.monotonic() - began,
        )

    # --- in a thread --------------------------------------------------------------------------------------------------

    def _begin(self, vm: str, resume: bool) -> Session:
        self._check_writable()
        from .resume import reclaim
        from .session import Session, claim

        claimed = claim(self._records, vm, resume=resume)
        session = Session(
            vm,
            claimed,
            chunk_size=self.chunk_size,
            records=self._records,
            locator=self._locator,
            workers=self._workers,
            closers=self._closers,
            scribes=self._scribes,
            on_end=self._sessions.discard,
        )
        self._sessions.add(session)
        try:
            self._locator.sync()
            self._locator.set_usable()
            session.look_back()
            reclaim(self._records, session_key(*claimed.place))
        except BaseException:
            session.abort_now()
            raise
        return session

    def _annotate(self, reference: str, add: Sequence[str], remove: Sequence[str], note: str | None) -> Manifest:
        self._check_writable()
        return self._catalog.annotate(reference, add=add, remove=remove, note=note)

    def _distrust(self, last: Manifest, disk_id: str) -> list[Manifest]:
        self._check_writable()
        return self._catalog.distrust(last, disk_id)

    def _forget(self, manifest: Manifest, reason: str) -> None:
        self._check_writable()
        self._catalog.forget(manifest, reason)

    def _repair(self, repair: Repair) -> None:
        self._check_writable()
        repair.run()

    def _check_writable(self) -> None:
        """See that the repository is still there, is this one, and is ours to write."""
        configuration, data = _read_configuration(self._store)
        if configuration.id != self.id:
            raise RepositoryError(f"another repository is in {self.location} now; open it again", path=self.location)
        check_writable(data, CONFIG)

    def _close(self) -> None:
        for session in list(self._sessions):
            session.abort_now()
        self._locator.close()
        self._objects.close()
        self._store.close()

    def _require_open(self) -> None:
        if self._closed:
            raise StateError(f"the repository in {self.location} is closed; open it again")


def _check_text(what: str, text: str) -> None:
    """See that a remark can be kept and shown.

    Raises:
        UsageError: It is longer than 4 KiB, or more than a line.
    """
    if len(text.encode("utf-8", "surrogatepass")) > _MAX_TEXT or not text.isprintable():
        raise UsageError(f"the {what} must be one line of printable text, {_MAX_TEXT} bytes at most")


def _reading(data: bool, older_than: float | None, percent: float | None) -> Reading:
    """What a verification is to read.

    Raises:
        UsageError: As of `Repository.verify`.
    """
    from .verify import Reading

    if older_than is None and percent is None:
        return Reading(data=data)
    if data:
        raise UsageError("verification of all data reads everything; ask for that, or for a part of it")
    if older_than is not None and not 0 <= older_than < math.inf:
        raise UsageError(f"what was read more than {older_than} seconds ago cannot be found")
    if percent is not None and not 0 < percent <= 100:
        raise UsageError(f"{percent} percent of a repository cannot be read: give more than 0, and 100 at most")
    return Reading(data=True, older_than=older_than, percent=100.0 if percent is None else percent)


def _local_path(location: str | os.PathLike[str]) -> Path:
    """The directory meant; relative ones are made absolute now, whatever the process does later.

    Raises:
        UsageError: It is a URL, or cannot be a path.
    """
    text = os.fspath(location)
    if "://" in text:
        raise UsageError(f"{printable(text)} cannot be a repository: give the path of a directory")
    if not text or "\0" in text:
        raise UsageError("the path of a repository must not be empty or contain zero bytes")
    return Path(os.path.abspath(text))


def _open(path: Path) -> tuple[LocalStore, Configuration]:
    """Open a repository. Blocks."""
    try:
        store = LocalStore(path)
    except (FileNotFoundError, NotADirectoryError):
        raise _no_repository(path) from None
    except OSError as error:
        where = printable(str(path))
        raise RepositoryError(f"cannot open the repository in {where}: {error.strerror}", path=where) from error
    try:
        return store, _read_configuration(store)[0]
    except BaseException:
        store.close()
        raise


def _read_configuration(store: LocalStore) -> tuple[Configuration, bytes]:
    """The configuration, and the object that holds it.

    Raises:
        RepositoryError: There is none, or it is damaged.
        RepositoryVersionError: A newer version wrote it.
        SystemLimitError: The process cannot open it.
    """
    try:
        data = store.get(CONFIG, limit=MAX_OBJECT)
        frame = decode(data, CONFIG, None, ObjectKind.CONFIG)
        configuration = decode_configuration(frame.payload, CONFIG)
    except ObjectMissingError:
        raise _no_repository(Path(store.location)) from None
    except SystemLimitError:
        raise  # that says nothing about the repository
    except (IntegrityError, StorageError) as error:
        where = printable(store.location)
        raise RepositoryError(f"the configuration of the repository in {where} cannot be read: {error}") from error
    if configuration.id != frame.head.repository.hex():
        raise RepositoryError(f"the configuration of the repository in {store.location} contradicts itself")
    return configuration, data


def _no_repository(path: Path) -> RepositoryError:
    where = printable(str(path))
    return RepositoryError(f"there is no repository in {where}; make one with: sfasync init --repo {where}", path=where)


def _init(path: Path, chunk_size: int) -> tuple[LocalStore, Configuration]:
    """Make a repository. Blocks."""
    where = printable(str(path))
    try:
        make_directory(path)
        _sync_name(path)
        names = [name for name in os.listdir(path) if name not in _NOT_CONTENT and not is_temporary(name)]
        if CONFIG in names:
            raise TargetRefusedError(f"there is a repository in {where} already", path=where)
        if names:
            raise TargetRefusedError(f"{where} is not empty; a repository needs a directory of its own", path=where)
        store = LocalStore(path)
    except (FileExistsError, NotADirectoryError) as error:
        raise TargetRefusedError(f"{where} is not a directory", path=where) from error
    except OSError as error:
        raise storage_error(error, "make a repository in", str(path)) from error
    try:
        return store, _create_configuration(store, chunk_size)
    except BaseException:
        store.close()
        raise


def _sync_name(path: Path) -> None:
    """Make the directory itself durable: who made it a moment ago, with mkdir(1), did not."""
    with suppress(PermissionError):  # a directory above that is for others; they made it
        sync_directory(path.parent)


def _create_configuration(store: LocalStore, chunk_size: int) -> Configuration:
    """Create the configuration, twice: the second time must be refused, or names could be created over each other."""
    repository = secrets.token_bytes(16)
    configuration = Configuration(format=FORMAT, id=repository.hex(), chunk_size=chunk_size, created=time.time())
    data = encode(ObjectKind.CONFIG, CONFIG, repository, encode_record(configuration))
    try:
        store.put(CONFIG, data)
    except ObjectExistsError as error:
        raise TargetRefusedError(f"there is a repository in {store.location} already", path=store.location) from error
    try:
        store.put(CONFIG, data)
    except ObjectExistsError:
        return configuration
    raise StorageError(f"{store.location} lets files be created over others; a repository cannot live there")
