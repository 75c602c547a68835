"""Where the disks of a backup are restored to: one target for each, opened by the restore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import TargetRefusedError, UsageError, printable
from .files import make_directory, storage_error
from .interfaces import Sink
from .models import ExportAddress, Manifest
from .resources import Resources
from .restore import Target, record_of
from .targets import export_target, file_name, file_target, sink_target


def disk_targets(
    resources: Resources, manifest: Manifest, addresses: Mapping[str, ExportAddress | Sink]
) -> dict[str, Target]:
    """Disks that the caller named.

    Raises:
        UsageError: The backup does not have one of them.
    """
    targets: dict[str, Target] = {}
    for disk, address in addresses.items():
        size = record_of(manifest, disk).size
        if isinstance(address, ExportAddress):
            targets[disk] = Target(opening=export_target(resources.endpoints, address, size))
        else:
            targets[disk] = Target(opening=sink_target(address, size))
    return targets


async def file_targets(
    resources: Resources,
    manifest: Manifest,
    directory: Path,
    disks: Sequence[str] | None,
    *,
    image_format: str,
    force: bool,
) -> dict[str, Target]:
    """Image files in a directory, which is made if it is not there.

    Args:
        resources: The engine's.
        manifest: The backup.
        directory: Where the files are made.
        disks: Ids of the disks wanted; None for all.
        image_format: ``raw`` or ``qcow2``.
        force: Replace files that exist.

    Raises:
        UsageError: The backup does not have one of the disks; nothing was made.
        TargetRefusedError: Something else has the name of the directory.
        StorageError: It cannot be made.
    """
    wanted = [disk.id for disk in manifest.disks] if disks is None else list(dict.fromkeys(disks))
    paths = {disk: directory / file_name(disk, image_format) for disk in wanted}
    sizes = {disk: record_of(manifest, disk).size for disk in wanted}
    await resources.workers.run(_make_directory, directory)
    return {
        disk: Target(
            opening=file_target(
                resources.endpoints,
                path,
                size=sizes[disk],
                image_format=image_format,
                force=force,
                workers=resources.workers,
            )
        )
        for disk, path in paths.items()
    }


def refuse_shared(addresses: Mapping[str, ExportAddress | Sink]) -> None:
    """See that no two disks go to the same place, where they would overwrite each other.

    Raises:
        UsageError: Two do.
    """
    taken: dict[object, str] = {}
    for disk, address in addresses.items():
        place: object = id(address)
        if isinstance(address, ExportAddress):
            place = address.host, address.port, address.socket, address.export
        other = taken.setdefault(place, disk)
        if other != disk:
            raise UsageError(f"disks {other!r} and {disk!r} cannot be restored to the same place", disk=disk)


def _make_directory(directory: Path) -> None:
    """The directory of a restore, durable itself: files in it are only as durable as it is."""
    try:
        make_directory(directory)
    except (FileExistsError, NotADirectoryError) as error:
        raise TargetRefusedError(f"{printable(str(directory))} is not a directory", path=str(directory)) from error
    except OSError as error:
        raise storage_error(error, "make the directory", str(directory)) from error
