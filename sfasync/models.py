"""The records that travel between the caller, the engine, the transport and the repository.

All are frozen; options are validated when they are made. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from .errors import UsageError
from .units import KiB, MiB, Size

MOST_CONNECTIONS: Final = 16
"""Connections to one disk."""

# --- options ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an engine may use; one set is shared by all its jobs.

    Attributes:
        memory: Bytes for block data in flight: buffers, sealing and unsealing. At least 16 MiB.
        requests: Requests in flight on one connection, 1 to 256.
        connections: Connections to one disk, 1 to 16; more than one only where the server promises multi-conn.
        disks: Disks moved at the same time, over all jobs of the engine.
        rate: Bytes read from sources in a second, over all jobs; None for no limit.
    """

    memory: Size = 64 * MiB
    requests: int = 16
    connections: int = 4
    disks: int = 8
    rate: Size | None = None

    def __post_init__(self) -> None:
        _within("memory", self.memory, 16 * MiB, None)
        _within("requests", self.requests, 1, 256)
        _within("connections", self.connections, 1, MOST_CONNECTIONS)
        _within("disks", self.disks, 1, 1024)
        if self.rate is not None:
            _within("rate", self.rate, 64 * KiB, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds after which the transport gives up.

    Attributes:
        connect: From the first packet until the export is open: name resolution, TCP, TLS and NBD handshake together.
        stall: With requests in flight, the time in which some byte must come or leave.
        request: The time in which one request must be answered.
        close: For the soft disconnect; after it the connection is aborted.
    """

    connect: float = 10.0
    stall: float = 30.0
    request: float = 120.0
    close: float = 1.0

    def __post_init__(self) -> None:
        for name in ("connect", "stall", "request", "close"):
            if getattr(self, name) <= 0:
                raise UsageError(f"timeout {name!r} must be more than 0 seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How faults of connections and servers are met. Only work that may be repeated is.

    Attributes:
        attempts: How often one request is sent, as long as the server fails it or the connection is lost over it, 1 to
            100. With 1, a request is never repeated.
        outage: Seconds in which a lost connection must be replaced; 0 to let what used it fail.
        connect: Seconds to go on trying when nobody answers at the first connect; 0 to try once.
        delay: Longest pause in seconds before the first repetition; it doubles with each.
        max_delay: Longest pause in seconds.
        jitter: Share of each pause that is left to chance, 0 to 1.
    """

    attempts: int = 5
    outage: float = 60.0
    connect: float = 0.0
    delay: float = 0.1
    max_delay: float = 5.0
    jitter: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= 100:
            raise UsageError(f"retry 'attempts' must be 1 to 100, not {self.attempts}")
        for name in ("outage", "connect", "delay", "max_delay"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):  # false for what is not a number, too
                raise UsageError(f"retry {name!r} must be a number of seconds, 0 or more, not {value}")
        if not 0 <= self.jitter <= 1:
            raise UsageError(f"retry 'jitter' must be 0 to 1, not {self.jitter}")


NO_RETRY = Retry(attempts=1, outage=0.0)
"""Nothing is repeated and no connection is replaced."""


def check_id(what: str, text: str) -> None:
    """Refuse ids and tags that no file name, log line or manifest should have to carry.

    Raises:
        UsageError: Empty, longer than 255 bytes, or with control characters.
    """
    if not text or len(text.encode("utf-8", "surrogatepass")) > 255 or not text.isprintable():
        raise UsageError(f"{what} {text[:64]!r} must be 1 to 255 bytes of printable text")


def _within(name: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high}"
        raise UsageError(f"limit {name!r} must be at least {low}{upper}, not {value}")


# --- addresses -------------------------------------------------------------------------------------------------------

TlsStyle = Literal["starttls", "direct"]
"""How TLS begins: with the NBD option of that name, or with the first byte of the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsPolicy:
    """How a server proves who it is, and how we do. There is no way to switch verification off.

    Attributes:
        style: How TLS begins. `starttls` is NBD's own way; `direct` is for servers behind a TLS proxy, and some others.
        ca_file: Certificates (PEM) of the authorities to believe; None for those of the system.
        ca_text: The same certificates as text, in place of a file: PEM, or one in base64 without the lines around it.
        cert_file: Our certificate chain (PEM), where the server asks for one.
        key_file: The private key of `cert_file` (PEM).
        hostname: The name that the server's certificate must carry; None for the host connected to, and `localhost` on
            a Unix socket.
        check_hostname: Whether it must carry that name. Without, every certificate of the authorities is good; so they
            must be named, and not be those of the system.
        fingerprint: SHA-256 of the server's certificate (DER) in hex; when given, it must match as well.
        psk_file: Pre-shared keys, one `identity:hexkey` a line, as for nbdkit and qemu; needs Python 3.13.
        psk_identity: Which line of `psk_file` to use; None for the first.
    """

    style: TlsStyle = "starttls"
    ca_file: Path | None = None
    ca_text: str | None = field(default=None, repr=False)
    cert_file: Path | None = None
    key_file: Path | None = None
    hostname: str | None = None
    check_hostname: bool = True
    fingerprint: str | None = None
    psk_file: Path | None = None
    psk_identity: str | None = None

    def __post_init__(self) -> None:
        if self.style not in get_args(TlsStyle):
            raise UsageError(f"TLS style {self.style!r} is not known; there are {', '.join(get_args(TlsStyle))}")
        if self.ca_file is not None and self.ca_text is not None:
            raise UsageError("the certificates of authorities come from a file or as text, not both")
        if not self.check_hostname and self.ca_file is None and self.ca_text is None:
            raise UsageError("a certificate without the right name is only accepted from authorities that are given")

    def completed(self, default: TlsPolicy | None) -> TlsPolicy:
        """This policy; one that says neither whom to believe nor who we are has that from `default`."""
        own = (self.ca_file, self.ca_text, self.cert_file, self.fingerprint, self.psk_file)
        if default is None or any(value is not None for value in own):
            return self
        return replace(default, style=self.style, hostname=self.hostname)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportAddress:
    """Where an NBD export is: a TCP host and port, or a Unix socket, and the name of the export.

    Attributes:
        host: Host name or address; None on a Unix socket.
        port: TCP port; 10809 is NBD's own.
        socket: Path of a Unix socket; None over TCP.
        export: Name of the export; the empty name asks for the server's default.
        tls: Policy of a connection that must be TLS; None for a plain one.
        connections: Most connections that may be made to it at once; None for as many as the caller's limits allow.
        rate: Bytes a second that its server gives to one connection; None where that is not known. Nothing is slowed
            down to it: it tells what limited a job.
    """

    host: str | None = None
    port: int = 10809
    socket: Path | None = None
    export: str = ""
    tls: TlsPolicy | None = None
    connections: int | None = None
    rate: int | None = None

    def __post_init__(self) -> None:
        if (self.host is None) == (self.socket is None):
            raise UsageError("an export address has either a host or a Unix socket")
        if self.connections is not None:
            _within("connections", self.connections, 1, MOST_CONNECTIONS)

    @property
    def tls_style(self) -> TlsStyle | None:
        """How TLS begins; None for a plain connection."""
        return None if self.tls is None else self.tls.style

    @property
    def peer(self) -> str:
        """The server, for messages: ``host:port`` or the path of the socket."""
        if self.socket is not None:
            return str(self.socket)
        return f"[{self.host}]:{self.port}" if ":" in (self.host or "") else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class MetadataContext:
    """A metadata context that an NBD server has for an export (proto.md, "Metadata querying").

    Attributes:
        address: The export.
        name: The context, as ``qemu:dirty-bitmap:NAME``.
    """

    address: ExportAddress
    name: str


TransportMode = Literal["nbd", "nbdssl"]
"""SFVDDK's words for plain NBD and NBD over TLS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRequest:
    """The disk whose address a resolver is asked for.

    Attributes:
        vm_id: The VM, as the platform numbers it.
        disk_id: The disk within the VM.
        snapshot_id: The snapshot to read; None for the disk itself, to be written.
        server_id: The VM's id on the management plane, where that is another one and known.
        resource_id: The platform's lease on the VM, where there is one.
        mode: What is to be spoken.
    """

    vm_id: str
    disk_id: str
    snapshot_id: str | None = None
    server_id: str | None = None
    resource_id: str | None = None
    mode: TransportMode = "nbd"


# --- ranges ----------------------------------------------------------------------------------------------------------


class Extent(NamedTuple):
    """A range of a disk and what its server says of it.

    Attributes:
        offset: First byte.
        length: Bytes, more than 0.
        zero: Reads as zeros; only this lets a read be skipped.
        hole: Not allocated; says nothing about content.
    """

    offset: int
    length: int
    zero: bool = False
    hole: bool = False

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The point in time from which a platform tracks changes of one disk.

    Attributes:
        id: The platform's name for it.
        disk_identity: What tells this disk from every other one of the platform, and from a later one of its name.
        size: Size of the disk at that point, in bytes.
    """

    id: str
    disk_identity: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """What tells a frozen disk from every other state of it: where this is equal, and the size, so are the bytes.

    Attributes:
        snapshot: The platform's name of the snapshot, or the caller's.
        checkpoint: The checkpoint that came with it; None where changes are not tracked.
    """

    snapshot: str
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interruption:
    """A backup that was interrupted.

    Attributes:
        snapshot: The snapshot that it read.
        began: When it began to do so, in seconds since the epoch.
    """

    snapshot: str
    began: float


# --- what a repository holds -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """A file of the VM that is not a disk: configuration, BIOS variables, TPM state.

    Attributes:
        name: Name of the file.
        size: Bytes.
        digest: Content digest in hex.
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskStatistics:
    """What moving one disk took; all counts in bytes of the disk unless said.

    Attributes:
        bytes_read: Read from the source.
        bytes_skipped: Not read, because unchanged since the parent (KEEP).
        bytes_zero: Zero in the backup, whether told by the map or found.
        bytes_new: In chunks that the repository did not have.
        bytes_duplicate: In chunks that the repository had.
        bytes_stored: Written to the repository for this disk, after compression.
        retries: Requests that were repeated.
        seconds: `total` wall seconds, which `memory` (waiting for a free buffer), `read` and `write` divide among them;
            beside them the seconds that threads spent in `seal` (digest, compress, check) and `store` (packs).
    """

    bytes_read: int = 0
    bytes_skipped: int = 0
    bytes_zero: int = 0
    bytes_new: int = 0
    bytes_duplicate: int = 0
    bytes_stored: int = 0
    retries: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """How far the audits of a disk have come since it was last read in full.

    Attributes:
        seed: Which walk over its chunks they take.
        position: Where on it the next one begins: 0 to the number of chunks - 1.
        chunks: How many chunks this backup read again although they were called unchanged, and found so.
    """

    seed: int
    position: int
    chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRecord:
    """One disk of a backup, as its manifest records it.

    Attributes:
        id: The disk's id within its VM.
        size: Bytes.
        root: Hex digest of the root of its content tree.
        tree: Hex tree digest: the proof of its content, independent of chunk size, key and repository.
        mode: `full` or `incremental`.
        reasons: Why that mode, as short codes (`first-backup`, `no-cbt`, `cbt-expired`, `disk-resized`); and `resumed`
            where part of it was finished by a backup that was interrupted.
        checkpoint: From where the next incremental may go on; None where the platform has none.
        statistics: What this backup took.
        audit: Of an incremental disk; None if nothing was ever audited since the last full one.
    """

    id: str
    size: int
    root: str
    tree: str
    mode: str
    reasons: tuple[str, ...] = ()
    checkpoint: Checkpoint | None = None
    statistics: DiskStatistics = DiskStatistics()
    audit: AuditRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A backup. Its presence in the repository means that the backup is there, whole.

    Attributes:
        id: 32 hex digits.
        repository: Id of the repository it was made in.
        seq: Its number among the backups of this VM; orders them.
        vm: Id of the VM.
        vm_name: Name of the VM, for people.
        time: Seconds since the epoch at which the snapshot was taken.
        parent: Id of the backup it builds on; None for a first one.
        platform: Name of the platform.
        version: Version of sfasync that wrote it.
        snapshot: The platform's name of the snapshot read; None where it has none.
        tags: Free words given by the user, as they are now.
        disks: Its disks, in the platform's order.
        files: Its other files.
        seconds: Wall seconds the backup took.
        note: What the user has to say of it, as it is now.
        suspect: Ids of disks that may lack changes: a later audit found that the platform had not told of some.
    """

    id: str
    repository: str
    seq: int
    vm: str
    vm_name: str
    time: float
    parent: str | None = None
    platform: str
    version: str
    snapshot: str | None = None
    tags: tuple[str, ...] = ()
    disks: tuple[DiskRecord, ...]
    files: tuple[FileRecord, ...] = ()
    seconds: float = 0.0
    note: str = ""
    suspect: tuple[str, ...] = ()

    def disk(self, disk_id: str) -> DiskRecord | None:
        """The record of a disk, or None."""
        return next((disk for disk in self.disks if disk.id == disk_id), None)


# --- what a platform tells -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualDisk:
    """A disk of a VM, as its platform lists it.

    Attributes:
        id: Its id within the VM, as backups name it.
        size: Bytes; None where only opening the disk tells.
        tracked: Whether its changes are tracked; None where the platform does not say.
    """

    id: str
    size: int | None = None
    tracked: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualMachine:
    """A VM of a platform.

    Attributes:
        id: The platform's id of it.
        name: Its name, for people; not always unique.
        state: The platform's word for its state (`running`, `stopped`).
        disks: Its disks, in the platform's order.
        refusal: Why it cannot be backed up, as one sentence; None if it can.
        warnings: What somebody who backs it up should know.
    """

    id: str
    name: str
    state: str
    disks: tuple[VirtualDisk, ...]
    refusal: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Something of ours that a killed run has left on a platform.

    Attributes:
        kind: What it is, as the platform calls it: `snapshot`, `backup resource`, `virtual machine`, `bitmap`,
            `export`, `node`, `job`, `server`, `object`, `file`.
        id: The platform's id of it.
        vm: The VM it belongs to; empty where it belongs to none.
        removed: Whether it is gone now.
        problem: Why it is not; empty if it is, or if nobody tried.
    """

    kind: str
    id: str
    vm: str
    removed: bool
    problem: str = ""


# --- what a caller gets ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedBackup:
    """A backup that was stopped, or still runs, and what the next one of the same snapshot need not read again.

    Attributes:
        vm: Id of the VM.
        snapshot: Name of the snapshot it reads.
        disks: Ids of the disks of which something is finished.
        bytes_journaled: Bytes of these disks that are finished, zeros included.
        started: When its first session began, in seconds since the epoch.
        updated: When it last noted what it had finished, by the clock of the repository's file system.
        running: Whether a session works on the VM now.
    """

    vm: str
    snapshot: str
    disks: tuple[str, ...]
    bytes_journaled: int
    started: float
    updated: float
    running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupResult:
    """A finished backup, durable in the repository.

    Attributes:
        id, vm, parent, disks: As in the manifest.
        limited_by: What held the job up most: `source`, `network` (a connection has all that the platform gives it),
            `compression` or `store`.
        seconds: Wall seconds.
        resumed: By disk, the bytes that an interrupted backup of the same snapshot had finished and that were not read
            again.
        bad_blocks: By disk, the ranges that could not be read and are zeros in the backup, where that was allowed.
        untold: By disk, a range that an audit found changed although the platform had called it unchanged. The disk was
            read in full then, and the backups before are marked as suspect.
        warnings: What went wrong without harm to the backup, one line each.
    """

    id: str
    vm: str
    parent: str | None
    disks: tuple[DiskRecord, ...]
    limited_by: str
    seconds: float
    resumed: Mapping[str, int] = field(default_factory=dict)
    bad_blocks: Mapping[str, tuple[Extent, ...]] = field(default_factory=dict)
    untold: Mapping[str, Extent] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def bytes_read(self) -> int:
        return sum(disk.statistics.bytes_read for disk in self.disks)

    @property
    def bytes_resumed(self) -> int:
        return sum(self.resumed.values())

    @property
    def bytes_new(self) -> int:
        return sum(disk.statistics.bytes_new for disk in self.disks)

    @property
    def bytes_stored(self) -> int:
        return sum(disk.statistics.bytes_stored for disk in self.disks)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskEstimate:
    """What a backup would read of one disk.

    Attributes:
        id, size, mode, reasons: As its record would have them.
        bytes_to_read: From the source; what an audit reads comes on top.
        bytes_zero: Known to be zero, and not read.
        bytes_unchanged: Taken over from the last backup, and not read.
    """

    id: str
    size: int
    mode: str
    reasons: tuple[str, ...]
    bytes_to_read: int
    bytes_zero: int
    bytes_unchanged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupEstimate:
    """What a backup would read.

    Attributes:
        vm, vm_name: The VM.
        parent: Id of the backup it would build on; None for a first one.
        disks: Its disks, in the platform's order.
        seconds: Wall seconds that the look took.
    """

    vm: str
    vm_name: str
    parent: str | None
    disks: tuple[DiskEstimate, ...]
    seconds: float

    @property
    def bytes_to_read(self) -> int:
        return sum(disk.bytes_to_read for disk in self.disks)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredDisk:
    """One restored disk.

    Attributes:
        id: The disk's id.
        size: Bytes of the disk.
        target: Path or address written to, without secrets.
        bytes_written: Data bytes written.
        bytes_zero: Bytes made zero without writing data.
        tree: Hex tree digest of the content, checked block by block before writing.
        verified: Whether the target was read back and found equal.
        seconds: Wall seconds.
        mode: `full`, or `differential` where only what may have changed since the backup was written.
        reason: Why it was not differential although that was wanted, as a short code.
        bytes_skipped: Not written, because unchanged since the backup.
    """

    id: str
    size: int
    target: str
    bytes_written: int
    bytes_zero: int
    tree: str
    verified: bool
    seconds: float
    mode: str = "full"
    reason: str | None = None
    bytes_skipped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreResult:
    """A finished restore, durable on its targets.

    Attributes:
        id, vm: Of the backup.
        disks: The disks restored, in the order they were asked for.
        seconds: Wall seconds.
        restored_vm: Id of the VM that has these disks now; None where no platform is behind them.
        warnings: What went wrong without harm to the disks, one line each.
    """

    id: str
    vm: str
    disks: tuple[RestoredDisk, ...]
    seconds: float
    restored_vm: str | None = None
    warnings: tuple[str, ...] = ()


class Difference(NamedTuple):
    """A range of a disk that two backups have differently.

    Attributes:
        disk: The disk's id.
        kind: ``changed``; ``added`` where only the second backup has it; ``removed`` where only the first one has.
        offset: First byte.
        length: Bytes, more than 0.
    """

    disk: str
    kind: Literal["changed", "added", "removed"]
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that verify found damaged or missing.

    Attributes:
        object: Name of the object within the repository.
        problem: What is wrong, in one line.
        backups: Ids of the backups it touches, as far as known.
    """

    object: str
    problem: str
    backups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """What verify found. No problems means that what was asked for is whole.

    Attributes:
        backups: Backups checked.
        objects: Objects of the repository read.
        blobs: Stored blobs found in place (structure) or read and compared with their digests (data).
        bytes_read: Bytes of the repository read.
        data: Whether bytes were read and compared with their digests, or the structure was looked at only.
        problems: Damage that is new, or keeps the backups that it names from being restored.
        known: Objects that are damaged still but in quarantine, one each: an earlier verification told of them, and
            what is spoiled has a good copy elsewhere or is needed by no backup. What was not read counts as bad still.
        leftovers: Files of interrupted writers and others that belong to no backup; no error.
        quarantined: Copies of blobs that were in quarantine, of known and of other objects.
        all_read_since: When the longest unread of the packs concerned was last read whole, in seconds since the epoch,
            this verification included; None if one never was.
        warnings: What else went wrong, one line each: that the result could not be remembered.
        seconds: Wall seconds.
    """

    backups: int
    objects: int
    blobs: int
    bytes_read: int
    data: bool
    problems: tuple[Problem, ...]
    known: tuple[Problem, ...]
    leftovers: tuple[str, ...]
    quarantined: int
    all_read_since: float | None
    warnings: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairAction:
    """Something that repair did, or would do.

    Attributes:
        object: Name of the object within the repository.
        action: `remove` what a killed writer left; `index` a pack; `replace` an index object; put in `quarantine` what
            is bad, or an annotation that is missing; `release` what is good again; take the place of a lost manifest
            with a `void`.
        reason: Why, in one line.
    """

    object: str
    action: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairResult:
    """A finished repair.

    Attributes:
        actions: What was done, in order; what would be done, in a dry run.
        problems: What is damaged after that, with the backups it touches; in a dry run, what is damaged now.
        dry_run: Whether nothing was done.
        seconds: Wall seconds.
    """

    actions: tuple[RepairAction, ...]
    problems: tuple[Problem, ...]
    dry_run: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyResult:
    """A finished copy.

    Attributes:
        size: Bytes of the source.
        bytes_read: Data bytes read and written.
        bytes_zero: Bytes made zero without reading.
        durable: Whether the target promised that the bytes are on stable storage.
        requests: Requests of data that were under way at once in the end.
        request_size: Bytes of each.
        limited_by: What held the copy up more: `source` or `target`.
        seconds: Wall seconds.
    """

    size: int
    bytes_read: int
    bytes_zero: int
    durable: bool
    requests: int
    request_size: int
    limited_by: str
    seconds: float
