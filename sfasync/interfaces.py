"""The shapes that the parts of sfasync have for each other.

A `Source` is read, a `Sink` is written. A `Platform` freezes the disks of a VM and hands them out; a `BackupStore`
keeps backups; an `ObjectStore` keeps the objects of a repository. Implementations live in `transport/`, `platform/` and
`store/`, which never import each other: the engine joins them through these shapes. Sources, sinks, platforms and
object stores have contract suites in `tests/contracts`, for those who write another.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from .models import (
        Checkpoint,
        DiskRecord,
        DiskStatistics,
        EndpointRequest,
        ExportAddress,
        Extent,
        FileRecord,
        Frozen,
        Interruption,
        Leftover,
        Manifest,
        MetadataContext,
        VerifyResult,
        VirtualMachine,
    )

Buffer = bytes | bytearray | memoryview


@runtime_checkable
class Source(Protocol):
    """A disk that can be read. Many reads may be under way at once, in any order."""

    @property
    def size(self) -> int:
        """Bytes of the disk; fixed while it is open."""
        ...

    @property
    def block_size(self) -> int:
        """Alignment of offsets and lengths in bytes, a power of two; a last piece may end at `size`."""
        ...

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole buffer with the bytes from `offset`.

        The buffer belongs to the source until the call returns or raises; after that, cancelled or not, the source does
        not touch it again.

        Raises:
            SfasyncError: The bytes could not be read; the buffer's content is undefined.
        """
        ...

    def extents(self, offset: int = 0, length: int | None = None) -> AsyncIterator[Extent]:
        """What is known of the range without reading it: adjacent extents, in order, covering it exactly.

        A source that knows nothing yields one extent of data. Memory does not grow with the disk.
        """
        ...


@runtime_checkable
class SurveyedSource(Source, Protocol):
    """A source that can read around what cannot be read, and counts what it had to ask for again."""

    @property
    def retries(self) -> int:
        """Requests that were repeated, so far."""
        ...

    async def read_around(self, offset: int, buffer: memoryview, *, most: int) -> Sequence[Extent]:
        """As `read_into`, but at most `most` bytes that cannot be read become zeros; gives where they are, in order.

        Raises:
            SfasyncError: More than that cannot be read, or something else failed.
        """
        ...


@runtime_checkable
class ScatteredSource(Source, Protocol):
    """A source of which several short ranges are read in less time together than one after the other."""

    async def read_scattered(self, parts: Sequence[tuple[int, memoryview]]) -> None:
        """As `read_into` for each pair of offset and buffer; they do not overlap. All are filled, or it raises."""
        ...


class SparseChunk(NamedTuple):
    """A whole chunk of a disk that is zeros but for some parts; or, without parts, any number of chunks of zeros.

    Attributes:
        offset, length: Where it is, in bytes.
        parts: Pairs of offset on the disk and bytes, in order, none of them outside of the chunk; perhaps zeros, too.
    """

    offset: int
    length: int
    parts: Sequence[tuple[int, memoryview]]


@runtime_checkable
class Sink(Protocol):
    """A disk that can be written. Many writes may be under way at once, to ranges that do not overlap."""

    @property
    def size(self) -> int:
        """Bytes that can be written; fixed while it is open."""
        ...

    @property
    def block_size(self) -> int:
        """Alignment of offsets and lengths in bytes, a power of two; a last piece may end at `size`."""
        ...

    async def write(self, offset: int, data: Buffer) -> None:
        """Write all bytes at `offset`. The buffer is not touched after the call returned or raised."""
        ...

    async def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, without data where the sink can; any length, the whole disk included."""
        ...

    async def flush(self) -> bool:
        """Make everything written durable; False if the sink cannot promise that."""
        ...


class GrowingSink(Sink, Protocol):
    """A sink for a disk whose size shows only at its end."""

    async def grow(self, size: int) -> None:
        """Make room for a disk of `size` bytes or more, before what lies there is written.

        Raises:
            NoSpaceError, TargetError: The sink does not take that much.
        """
        ...

    async def end(self, size: int) -> None:
        """Let the disk end at `size`, when everything is written.

        Raises:
            NoSpaceError, TargetError: It cannot be done.
        """
        ...


class Stream(Protocol):
    """Bytes that come in order, and whose number only their end tells."""

    async def read_into(self, buffer: memoryview) -> int:
        """Fill the buffer with the bytes that come next; one call at a time.

        Returns:
            Bytes read: fewer than the buffer takes only at the end.

        Raises:
            SfasyncError: They cannot be read.
        """
        ...


class ChunkSink(Sink, Protocol):
    """A sink that also takes chunks without their zeros, and ranges, unread, from the parent: the backup it builds on.

    Ranges are whole chunks: both ends are chunk boundaries or the end of the disk.
    """

    async def write_sparse(self, chunks: Sequence[SparseChunk]) -> None:
        """Write chunks, which best follow each other. Their parts are not touched after the call returned or raised."""
        ...

    async def keep(self, offset: int, length: int) -> None:
        """Take over the range from the parent."""
        ...

    async def audit(self, offset: int, data: Buffer) -> None:
        """Take over chunks that are said to be unchanged, and that were read to see whether they are.

        Raises:
            CbtError: They are not, by reason `audit-failed`.
        """
        ...

    async def audit_zero(self, offset: int, length: int) -> None:
        """Take over a range that is said to be unchanged and reads as zeros.

        Raises:
            CbtError: As of `audit`, from this call or a later one.
        """
        ...


# --- platforms -------------------------------------------------------------------------------------------------------


class SnapshotDisk(Protocol):
    """One frozen disk of a snapshot."""

    @property
    def id(self) -> str: ...

    @property
    def size(self) -> int | None:
        """Bytes, or None where only opening the disk tells."""
        ...

    @property
    def address(self) -> ExportAddress | Source:
        """Where the frozen disk is read."""
        ...

    @property
    def shares(self) -> Mapping[str, int]:
        """What it shares with other disks (a host, a datastore), by name, and how many may be open there at once."""
        ...

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The new checkpoint that the next backup may go on from; None where changes are not tracked."""
        ...

    @property
    def reason(self) -> str | None:
        """Why `changed` is None, as a short code (`no-cbt`, `cbt-expired`); None where changes are known."""
        ...

    def changed(self) -> AsyncIterator[Extent] | MetadataContext | None:
        """Every range that may have changed since the base, or None if that is not known.

        In order, without overlap, within the disk; covers all of it. Where an NBD server has it, as a context whose
        flags are 0 for what has not changed, the engine reads it there. What cannot be so is not believed, and the disk
        is read in full. A platform that finds out on the way that it does not know raises `CbtError` with the reason.
        """
        ...


@runtime_checkable
class AllocatedDisk(SnapshotDisk, Protocol):
    """A frozen disk whose platform may be trusted about what was never written."""

    def allocated(self) -> AsyncIterator[Extent] | None:
        """Every range that may hold data, in order: all else reads as zeros and is not read. None if nobody tells."""
        ...


class SnapshotView(Protocol):
    """A snapshot while its context is open."""

    @property
    def vm_id(self) -> str: ...

    @property
    def vm_name(self) -> str: ...

    @property
    def snapshot_id(self) -> str | None:
        """The platform's own name of the frozen state; None where it has none, then nothing is resumed on it."""
        ...

    @property
    def config(self) -> bytes | None:
        """The VM's configuration, verbatim JSON; None where the platform has none."""
        ...

    @property
    def files(self) -> Mapping[str, bytes]:
        """Small files of the VM: BIOS variables, TPM state."""
        ...

    @property
    def disks(self) -> Sequence[SnapshotDisk]: ...

    @property
    def lost(self) -> Awaitable[str]:
        """Completes, with the reason, when the platform takes lease or snapshot back; never completes otherwise."""
        ...

    async def check(self) -> None:
        """Ask whether the snapshot still stands.

        Raises:
            LeaseLostError: It does not.
        """
        ...

    async def committed(self, disk_ids: Sequence[str]) -> None:
        """The manifest is durable: older checkpoints of these disks may go. Idempotent; failure is only a warning."""
        ...


class RestoreDisk(Protocol):
    """One disk of a VM, ready to be written."""

    @property
    def address(self) -> ExportAddress | Sink:
        """Where it is written."""
        ...

    @property
    def shares(self) -> Mapping[str, int]:
        """As of `SnapshotDisk`."""
        ...

    @property
    def reason(self) -> str | None:
        """Why `changed` is None, as a short code; None where changes are known."""
        ...

    def changed(self) -> AsyncIterator[Extent] | MetadataContext | None:
        """Every range that may differ from what the disk had at the checkpoint given, in order, or None: all may.

        As of `SnapshotDisk`.
        """
        ...


class RestoreView(Protocol):
    """Disks of a VM, ready to be written, while the context is open. Leaving it without `finish` gives all up."""

    @property
    def vm_id(self) -> str: ...

    @property
    def vm_name(self) -> str: ...

    @property
    def disks(self) -> Mapping[str, RestoreDisk]:
        """The disks asked for, by the ids that the backup has for them."""
        ...

    @property
    def lost(self) -> Awaitable[str]:
        """As of `SnapshotView`."""
        ...

    async def check(self) -> None:
        """Ask whether the disks may still be written; called when writing one failed.

        Raises:
            LeaseLostError: They may not.
        """
        ...

    async def finish(self) -> Sequence[str]:
        """All disks are written and flushed: bring the VM into its final state.

        Returns:
            Warnings: what is not as it was, and what the user should do.
        """
        ...


class Platform(Protocol):
    """Gives frozen disks to read and disks to write, and cleans up after itself.

    What its calls raise is typed: `PlatformError` where the platform failed or refused, `UsageError` for a VM or disk
    that it does not have, `TlsError` where it does not know us.
    """

    @property
    def name(self) -> str:
        """The kind of platform, as manifests record it."""
        ...

    async def vms(self) -> Sequence[VirtualMachine]:
        """The VMs that this account can see, by name."""
        ...

    async def identify(self, vm: str) -> str:
        """The id of a VM, given that or its name.

        Raises:
            UsageError: There is no such VM, or several have the name.
        """
        ...

    def snapshot(
        self,
        vm: str,
        *,
        disks: Sequence[str] | None = None,
        base: Mapping[str, Checkpoint] | None = None,
        chain: str = "",
        reuse: str | None = None,
    ) -> AbstractAsyncContextManager[SnapshotView]:
        """Freeze the disks of a VM.

        Args:
            vm: Id of the VM, or its name where that is unique.
            disks: Ids of the disks wanted; None for all.
            base: For each disk the checkpoint that the last backup of this chain ended with.
            chain: Names the line of backups (repository and VM); two chains never touch each other's checkpoints.
            reuse: Id of a snapshot to use again, if it still stands.
        """
        ...

    def restore(
        self,
        vm: str | None,
        *,
        new_name: str | None = None,
        config: bytes | None,
        files: Mapping[str, bytes],
        disks: Mapping[str, int],
        since: Mapping[str, Checkpoint] | None = None,
    ) -> AbstractAsyncContextManager[RestoreView]:
        """Prepare disks to be written.

        Args:
            vm: Id or name of the VM that gets its disks back; None to make a new one.
            new_name: Name of the new VM.
            config: The configuration that the backup has, verbatim.
            files: The other files that the backup has.
            disks: Sizes (bytes) of the disks to be written, by disk id.
            since: For a differential restore, the checkpoint of each disk in the backup: what has not changed since
                need not be written.

        Raises:
            UsageError: The VM cannot be restored so: it runs, a disk is missing or too small.
        """
        ...

    async def cleanup(self, *, dry_run: bool = False) -> Sequence[Leftover]:
        """Remove what killed runs of ours left behind, and nothing else; runs that are alive keep theirs."""
        ...


class EndpointResolver(Protocol):
    """Tells where a disk is served, where the platform itself does not."""

    async def resolve(self, request: EndpointRequest) -> ExportAddress:
        """The address of a disk, with TLS if and only if the request's mode is ``nbdssl``.

        Raises:
            UsageError: The resolver does not know the disk.
            SfasyncError: It could not find out.
        """
        ...


@runtime_checkable
class ReleasingResolver(EndpointResolver, Protocol):
    """A resolver that takes something for each disk it resolves, which has to be given back."""

    async def release(self, request: EndpointRequest) -> None:
        """Give back what `resolve` took for this request, in this process or in one that is dead. Idempotent."""
        ...


@runtime_checkable
class CleaningResolver(EndpointResolver, Protocol):
    """A resolver that knows by itself what dead processes of this user have taken."""

    async def cleanup(self) -> None:
        """Give all of that back.

        Raises:
            SfasyncError: Something could not be given back.
        """
        ...


# --- stores ----------------------------------------------------------------------------------------------------------


class DiskWriter(ChunkSink, Protocol):
    """Takes one disk of a backup. Writes are whole chunks: they start at multiples of the chunk size."""

    async def adopt(self, offset: int, length: int) -> Sequence[Extent]:
        """Take over what an interrupted backup of the same frozen disk had finished of a range of whole chunks.

        Returns:
            What was taken over, in order: whole chunks, which must not be written any more. The others must be.
        """
        ...

    def restart(self) -> None:
        """Begin the disk anew, without a parent, because nothing of it can be kept. No call may be under way."""
        ...

    @property
    def chunk_size(self) -> int: ...

    @property
    def statistics(self) -> DiskStatistics: ...

    async def finish(self) -> tuple[str, str]:
        """Root and tree digest in hex, when every byte of the disk has been written, zeroed or kept.

        Raises:
            StateError: Some range was not.
        """
        ...


class BackupSession(Protocol):
    """A running backup of one VM; nobody sees it until `commit`."""

    @property
    def seq(self) -> int: ...

    @property
    def parent(self) -> Manifest | None:
        """The VM's last backup, as read after the session began."""
        ...

    @property
    def interrupted(self) -> Interruption | None:
        """The last backup of the VM, if it was interrupted and this session can go on from there."""
        ...

    def disk(
        self,
        disk_id: str,
        size: int,
        *,
        parent: DiskRecord | None = None,
        frozen: Frozen | None = None,
        doubtful: Callable[[int, int], bool] | None = None,
    ) -> DiskWriter:
        """Begin a disk.

        Args:
            disk_id: Its id within the VM.
            size: Its bytes.
            parent: The record that `keep` takes ranges from.
            frozen: The state of it that is read: what is finished is noted for it, so that a later backup of the same
                state can adopt it, and what was noted so before can be adopted. None: neither.
            doubtful: Whether a range that was read, by offset and length, is not what the disk has: it is not noted.
        """
        ...

    async def lost(self, disk: DiskRecord) -> tuple[Extent, ...]:
        """What of a disk of the parent must not be kept, in order: no good copy of it is known.

        Raises:
            IntegrityError: Nothing of it can be kept.
        """
        ...

    async def checkpoint(self) -> float:
        """Make what is finished durable, and note it for a backup that goes on should this one be interrupted.

        Cancelling returns at once and changes nothing.

        Returns:
            Seconds after which to call again.
        """
        ...

    async def add_file(self, name: str, data: bytes) -> FileRecord: ...

    def check(self, manifest: Manifest) -> None:
        """See that a manifest like this one could be committed, before disks are read for it in vain.

        Raises:
            UsageError: It could not.
        """
        ...

    async def commit(self, manifest: Manifest) -> Manifest:
        """Make everything durable, then the manifest; returns it with id, repository and seq filled in.

        Raises:
            BusyError: Another session fenced this one; nothing became visible.
        """
        ...

    async def abort(self, *, keep: bool = True) -> None:
        """End the session without a backup. Idempotent; nothing becomes visible.

        What is finished is noted first; without `keep`, because it may not be what the snapshot has, it is forgotten.
        """
        ...


class BackupStore(Protocol):
    """Keeps backups. The repository is one."""

    @property
    def id(self) -> str: ...

    @property
    def chunk_size(self) -> int: ...

    async def begin(self, vm: str, *, wait: float = 0.0, resume: bool = True) -> BackupSession:
        """Begin a backup of a VM, after at most `wait` seconds for another session of the same VM to end.

        Without `resume`, what an interrupted backup of the VM had finished is dropped.

        Raises:
            BusyError: Another session works on the VM.
        """
        ...

    async def backups(self, vm: str | None = None) -> list[Manifest]:
        """The backups, of one VM (its id, or else its name) or of all, ordered by VM and seq."""
        ...

    async def distrust(self, last: Manifest, disk_id: str) -> list[Manifest]:
        """Mark a disk as suspect in a backup and in those before it, back to the last in which it was read in full.

        That one is not marked. The marks stay.

        Args:
            last: The backup.
            disk_id: The disk.

        Returns:
            The backups of which the disk is suspect now, the last one first.
        """
        ...

    async def find(self, reference: str) -> Manifest:
        """The backup meant by an id, a unique prefix of one, or ``VM@latest``.

        Raises:
            BackupNotFoundError: None matches, or several do.
            IntegrityError: The latest is damaged; or none matches, and damaged ones may.
        """
        ...

    async def read_file(self, manifest: Manifest, name: str) -> bytes:
        """A file of a backup that is not a disk.

        Raises:
            BackupNotFoundError: The backup has no such file.
            IntegrityError: It is lost or damaged.
        """
        ...

    def open_disk(self, manifest: Manifest, disk_id: str) -> Source:
        """A disk of a backup as a source; every byte is checked against its digest before it is handed out."""
        ...

    async def verify(
        self,
        ids: Sequence[str] = (),
        *,
        data: bool = False,
        older_than: float | None = None,
        percent: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> VerifyResult:
        """Check the given backups, or the whole repository; arguments as of `Engine.verify`."""
        ...


class ObjectWriter(Protocol):
    """An object under construction; invisible until `commit`. Called from worker threads, one call at a time."""

    @property
    def position(self) -> int: ...

    def write(self, data: Buffer) -> None: ...

    def commit(self) -> None:
        """Make the object durable and visible under its key, exclusively.

        Raises:
            ObjectExistsError: The key is taken; nothing changed.
        """
        ...

    def abort(self) -> None: ...


class Hold(Protocol):
    """An object whose creator is known to be alive as long as the hold is kept."""

    def release(self) -> None: ...


class ObjectStore(Protocol):
    """Create-only objects under keys such as ``domains/default/packs/ab/abcd…``; all calls block, for worker threads.

    `put` and `ObjectWriter.commit` return only when the object is durable, its directory entry included.
    """

    @property
    def location(self) -> str:
        """The store, for messages, without secrets."""
        ...

    def put(self, key: str, data: Buffer) -> None:
        """Create an object.

        Raises:
            ObjectExistsError: The key is taken; nothing changed.
            StorageError: It could not be made durable.
        """
        ...

    def writer(self, key: str) -> ObjectWriter:
        """Begin an object whose bytes come in pieces."""
        ...

    def hold(self, key: str, data: Buffer) -> Hold:
        """Create an object and keep a sign of life on it until the hold is released or the process ends."""
        ...

    def held(self, key: str) -> bool:
        """Whether the creator of a held object is alive."""
        ...

    def get(self, key: str, *, limit: int) -> bytes:
        """A whole object of at most `limit` bytes.

        Raises:
            ObjectMissingError: There is no such object.
            IntegrityError: It is larger than `limit`.
        """
        ...

    def read_into(self, key: str, offset: int, buffer: memoryview) -> int:
        """Bytes read into the buffer from `offset`: fewer than its length only at the end of the object."""
        ...

    def size(self, key: str) -> int: ...

    def modified(self, key: str) -> float:
        """When an object was created, in seconds by the store's own clock: only good to compare with another's.

        Raises:
            ObjectMissingError: There is no such object.
        """
        ...

    def list(self, prefix: str) -> list[str]:
        """Keys of all objects below a prefix that ends with ``/``, sorted; also those whose names are not ours."""
        ...

    def stamps(self, prefix: str) -> Sequence[tuple[str, str | None]]:
        """As `list`, each key with a stamp, which is another one if the object is; None where that is not sure."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...
