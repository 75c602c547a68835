"""The records that travel between the caller, the engine, the transport and the repository.

All are frozen; options are validated when they are made. Nothing here does I/O. Each is loaded on first use: making a
dataclass takes 0.3 ms, and no command needs half of them.
"""

from typing import TYPE_CHECKING

from ..lazy import loaded_on_use

if TYPE_CHECKING:
    from .addresses import ExportAddress as ExportAddress
    from .addresses import TlsPolicy as TlsPolicy
    from .backups import BackupResult as BackupResult
    from .checks import check_id as check_id
    from .copies import CopyResult as CopyResult
    from .estimates import BackupEstimate as BackupEstimate
    from .estimates import DiskEstimate as DiskEstimate
    from .extents import Extent as Extent
    from .findings import Difference as Difference
    from .findings import Problem as Problem
    from .findings import RepairAction as RepairAction
    from .findings import RepairResult as RepairResult
    from .findings import VerifyResult as VerifyResult
    from .manifest import AuditRecord as AuditRecord
    from .manifest import DiskRecord as DiskRecord
    from .manifest import DiskStatistics as DiskStatistics
    from .manifest import FileRecord as FileRecord
    from .manifest import Manifest as Manifest
    from .options import MOST_CONNECTIONS as MOST_CONNECTIONS
    from .options import NO_RETRY as NO_RETRY
    from .options import Limits as Limits
    from .options import Retry as Retry
    from .options import Timeouts as Timeouts
    from .platforms import EndpointRequest as EndpointRequest
    from .platforms import Leftover as Leftover
    from .platforms import MetadataContext as MetadataContext
    from .platforms import VirtualDisk as VirtualDisk
    from .platforms import VirtualMachine as VirtualMachine
    from .progress import DiskProgress as DiskProgress
    from .progress import Progress as Progress
    from .restores import RestoredDisk as RestoredDisk
    from .restores import RestoreResult as RestoreResult
    from .states import Checkpoint as Checkpoint
    from .states import Frozen as Frozen
    from .states import Interruption as Interruption
    from .styles import TlsStyle as TlsStyle
    from .styles import TransportMode as TransportMode
    from .unfinished import UnfinishedBackup as UnfinishedBackup
else:  # hidden from type checkers, to whom a name that is not there is an error
    _MODULES = {
        "checks": ("check_id",),
        "options": ("Limits", "MOST_CONNECTIONS", "NO_RETRY", "Retry", "Timeouts"),
        "addresses": ("ExportAddress", "TlsPolicy"),
        "styles": ("TlsStyle", "TransportMode"),
        "extents": ("Extent",),
        "states": ("Checkpoint", "Frozen", "Interruption"),
        "manifest": ("AuditRecord", "DiskRecord", "DiskStatistics", "FileRecord", "Manifest"),
        "platforms": ("EndpointRequest", "Leftover", "MetadataContext", "VirtualDisk", "VirtualMachine"),
        "backups": ("BackupResult",),
        "estimates": ("BackupEstimate", "DiskEstimate"),
        "unfinished": ("UnfinishedBackup",),
        "restores": ("RestoreResult", "RestoredDisk"),
        "copies": ("CopyResult",),
        "progress": ("DiskProgress", "Progress"),
        "findings": ("Difference", "Problem", "RepairAction", "RepairResult", "VerifyResult"),
    }
    __getattr__ = loaded_on_use(
        __name__, {name: (module, name) for module, names in _MODULES.items() for name in names}
    )
