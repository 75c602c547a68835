"""The backups of a repository: listed, found, annotated and forgotten. Calls block; any thread may make them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby

from ..errors import BackupNotFoundError, IntegrityError, ObjectMissingError, RepositoryVersionError, printable
from ..models import Manifest
from .annotations import annotate, current, of_backup, readable
from .codec import AnnotationRecord
from .names import Numbered, vm_name
from .records import Records


class Catalog:
    """What backups there are, with what has been said of them since they were made.

    Args:
        records: Reads and creates the small objects.
    """

    def __init__(self, records: Records) -> None:
        self._records = records

    # --- reading ------------------------------------------------------------------------------------------------------

    def backups(self, vm: str | None, *, since: float | None, tag: str | None) -> list[Manifest]:
        """Backups by VM and number, of one VM or of all; see `Repository.backups`."""
        name = None if vm is None else self._name(vm)
        found = (
            backup
            for backup in self._current(self._records.manifests(self._records.numbered(name)), name)
            if (since is None or backup.time >= since) and (tag is None or tag in backup.tags)
        )
        return sorted(found, key=lambda backup: (backup.vm, backup.seq))

    def latest(self, vm: str) -> Manifest:
        """The last backup of a VM; an older one is not what is meant when that one is damaged.

        Raises:
            BackupNotFoundError: There is none.
            IntegrityError, RepositoryVersionError: It cannot be read.
        """
        for place in reversed(self._records.numbered(self._name(vm))):
            try:
                manifest = self._records.manifest(place)
            except ObjectMissingError:
                continue  # forgotten since it was listed
            except (IntegrityError, RepositoryVersionError) as error:
                what = f"the latest backup of VM {printable(vm)} cannot be read; older ones go by their ids: {error}"
                raise type(error)(what, path=error.path) from error
            if manifest is not None:
                return self._with_annotations(manifest)
        raise BackupNotFoundError(f"there is no backup of VM {printable(vm)} in {self._location}")

    def only(self, prefix: str) -> Manifest:
        """The backup whose id begins so.

        Raises:
            BackupNotFoundError: There is none, or more than one.
            IntegrityError, RepositoryVersionError: None that can be read does, and some cannot be read.
        """
        unreadable: list[IntegrityError | RepositoryVersionError] = []
        backups = self._records.manifests(self._records.numbered(), unreadable)
        found = [backup for backup in backups if backup.id.startswith(prefix)]
        if len(found) == 1:
            return self._with_annotations(found[0])
        if found:
            raise BackupNotFoundError(f"{len(found)} backups begin with {prefix} in {self._location}")
        for error in unreadable:
            what = f"no backup that can be read begins with {prefix} in {self._location}, and there is damage: {error}"
            raise type(error)(what, path=error.path) from error
        raise BackupNotFoundError(f"there is no backup {prefix} in {self._location}")

    # --- changing -----------------------------------------------------------------------------------------------------

    def annotate(self, manifest: Manifest, *, add: Sequence[str], remove: Sequence[str], note: str | None) -> Manifest:
        """Change tags and note of a backup; gives it as it is then."""
        place = self._place(manifest)
        record = AnnotationRecord(
            backup=manifest.id, created=time.time(), remove=tuple(remove), add=tuple(add), note=note
        )
        annotate(self._records, place, record)
        return self._with_annotations(manifest)

    def forget(self, manifest: Manifest, reason: str) -> None:
        """Remove the manifest of a backup, once it is on record when and why."""
        place = self._place(manifest)
        annotate(self._records, place, AnnotationRecord(backup=manifest.id, created=time.time(), forgotten=reason))
        self._records.remove_manifest(place)

    # --- annotations --------------------------------------------------------------------------------------------------

    def _current(self, manifests: list[Manifest], name: str | None) -> list[Manifest]:
        """Backups, of one VM or of all, as their annotations leave them."""
        annotated = defaultdict(list)
        for backup, places in groupby(self._records.annotated(name), key=lambda place: Numbered(place.vm, place.seq)):
            annotated[backup] = list(places)
        if not annotated:
            return manifests
        return [current(manifest, readable(self._records, annotated[self._place(manifest)])) for manifest in manifests]

    def _with_annotations(self, manifest: Manifest) -> Manifest:
        places = of_backup(self._records, self._place(manifest))
        return current(manifest, readable(self._records, places)) if places else manifest

    def _place(self, manifest: Manifest) -> Numbered:
        return Numbered(self._name(manifest.vm), manifest.seq)

    def _name(self, vm: str) -> str:
        return vm_name(self._records.repository, vm)

    @property
    def _location(self) -> str:
        return printable(self._records.store.location)
