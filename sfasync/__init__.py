"""sfasync: asynchronous backup and restore of virtual disks over NBD.

::

    repository = await sfasync.Repository.open("backups", create=True)
    async with repository, sfasync.Engine(repository) as engine:
        backup = await engine.backup_vm("web-01", disks={"vda": "nbd+unix:///?socket=a.sock"})
        await engine.restore_vm(backup.id, to="restored/")

The names in `__all__` are public; everything else may change. They are loaded on first use (PEP 562), so importing this
package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from . import _version

if TYPE_CHECKING:
    from .config import Configuration
    from .drivers import open_platform
    from .engine import Engine
    from .errors import (
        ArgumentError,
        AuthenticationError,
        BackupNotFoundError,
        BadBlockError,
        BusyError,
        CbtError,
        CbtExpiredError,
        ConfigurationError,
        ConnectError,
        ConnectionLostError,
        DeadlineError,
        ExportError,
        IntegrityError,
        LeaseLostError,
        NbdError,
        NoSpaceError,
        ObjectExistsError,
        ObjectMissingError,
        PlatformError,
        RemoteProtocolError,
        RepositoryError,
        RepositoryVersionError,
        RequestError,
        SfasyncError,
        SourceError,
        StateError,
        StorageError,
        SystemLimitError,
        TargetError,
        TargetRefusedError,
        TlsError,
        UriError,
        UsageError,
        WritesLostError,
    )
    from .interfaces import (
        AllocatedDisk,
        BackupSession,
        BackupStore,
        ChunkSink,
        CleaningResolver,
        DiskWriter,
        EndpointResolver,
        Hold,
        ObjectStore,
        ObjectWriter,
        Platform,
        ReleasingResolver,
        RestoreDisk,
        RestoreView,
        Sink,
        SnapshotDisk,
        SnapshotView,
        Source,
    )
    from .jobs import Job
    from .models import (
        AuditRecord,
        BackupEstimate,
        BackupResult,
        Checkpoint,
        CopyResult,
        Difference,
        DiskEstimate,
        DiskRecord,
        DiskStatistics,
        EndpointRequest,
        ExportAddress,
        Extent,
        FileRecord,
        Frozen,
        Interruption,
        Leftover,
        Limits,
        Manifest,
        MetadataContext,
        Problem,
        RepairAction,
        RepairResult,
        RestoredDisk,
        RestoreResult,
        Retry,
        Timeouts,
        TlsPolicy,
        UnfinishedBackup,
        VerifyResult,
        VirtualDisk,
        VirtualMachine,
    )
    from .nbd.uri import format_uri, parse_uri
    from .platform.plain import PlainPlatform
    from .progress import DiskProgress, Progress
    from .resolvers import EndpointTemplate, TableResolver
    from .store.repository import Repository
    from .transport.export import Export
    from .transport.export import open_export as connect

__version__ = _version.VERSION

__all__ = [
    "AllocatedDisk",
    "ArgumentError",
    "AuditRecord",
    "AuthenticationError",
    "BackupEstimate",
    "BackupNotFoundError",
    "BackupResult",
    "BackupSession",
    "BackupStore",
    "BadBlockError",
    "BusyError",
    "CbtError",
    "CbtExpiredError",
    "Checkpoint",
    "ChunkSink",
    "CleaningResolver",
    "Configuration",
    "ConfigurationError",
    "ConnectError",
    "ConnectionLostError",
    "CopyResult",
    "DeadlineError",
    "Difference",
    "DiskEstimate",
    "DiskProgress",
    "DiskRecord",
    "DiskStatistics",
    "DiskWriter",
    "EndpointRequest",
    "EndpointResolver",
    "EndpointTemplate",
    "Engine",
    "Export",
    "ExportAddress",
    "ExportError",
    "Extent",
    "FileRecord",
    "Frozen",
    "Hold",
    "IntegrityError",
    "Interruption",
    "Job",
    "LeaseLostError",
    "Leftover",
    "Limits",
    "Manifest",
    "MetadataContext",
    "NbdError",
    "NoSpaceError",
    "ObjectExistsError",
    "ObjectMissingError",
    "ObjectStore",
    "ObjectWriter",
    "PlainPlatform",
    "Platform",
    "PlatformError",
    "Problem",
    "Progress",
    "ReleasingResolver",
    "RemoteProtocolError",
    "RepairAction",
    "RepairResult",
    "Repository",
    "RepositoryError",
    "RepositoryVersionError",
    "RequestError",
    "RestoreDisk",
    "RestoreResult",
    "RestoreView",
    "RestoredDisk",
    "Retry",
    "SfasyncError",
    "Sink",
    "SnapshotDisk",
    "SnapshotView",
    "Source",
    "SourceError",
    "StateError",
    "StorageError",
    "SystemLimitError",
    "TableResolver",
    "TargetError",
    "TargetRefusedError",
    "Timeouts",
    "TlsError",
    "TlsPolicy",
    "UnfinishedBackup",
    "UriError",
    "UsageError",
    "VerifyResult",
    "VirtualDisk",
    "VirtualMachine",
    "WritesLostError",
    "__version__",
    "connect",
    "format_uri",
    "open_platform",
    "parse_uri",
]

_MODULES = {
    # the engine and its jobs
    "engine": ("Engine",),
    "jobs": ("Job",),
    "progress": ("DiskProgress", "Progress"),
    # where backups live
    "store.repository": ("Repository",),
    # NBD exports
    "transport.export": ("Export", "open_export"),
    "nbd.uri": ("format_uri", "parse_uri"),
    # where disks come from
    "config": ("Configuration",),
    "drivers": ("open_platform",),
    "platform.plain": ("PlainPlatform",),
    "resolvers": ("EndpointTemplate", "TableResolver"),
    # records
    "models": (
        "AuditRecord",
        "BackupEstimate",
        "BackupResult",
        "Checkpoint",
        "CopyResult",
        "Difference",
        "DiskEstimate",
        "DiskRecord",
        "DiskStatistics",
        "EndpointRequest",
        "ExportAddress",
        "Extent",
        "FileRecord",
        "Frozen",
        "Interruption",
        "Leftover",
        "Limits",
        "Manifest",
        "MetadataContext",
        "Problem",
        "RepairAction",
        "RepairResult",
        "RestoreResult",
        "RestoredDisk",
        "Retry",
        "Timeouts",
        "TlsPolicy",
        "UnfinishedBackup",
        "VerifyResult",
        "VirtualDisk",
        "VirtualMachine",
    ),
    # shapes, for those who write a platform, a store, a source or a sink
    "interfaces": (
        "AllocatedDisk",
        "BackupSession",
        "BackupStore",
        "ChunkSink",
        "CleaningResolver",
        "DiskWriter",
        "EndpointResolver",
        "Hold",
        "ObjectStore",
        "ObjectWriter",
        "Platform",
        "ReleasingResolver",
        "RestoreDisk",
        "RestoreView",
        "Sink",
        "SnapshotDisk",
        "SnapshotView",
        "Source",
    ),
    # errors
    "errors": (
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
    ),
}
_ALIASES = {"open_export": "connect"}
_PLACES = {_ALIASES.get(name, name): (module, name) for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    try:
        module, attribute = _PLACES[name]
    except KeyError:
        raise AttributeError(f"module 'sfasync' has no attribute {name!r}") from None
    value: object = getattr(import_module(f".{module}", __name__), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
