"""The backups of a repository: listed, found, annotated and forgotten. Calls block; any thread may make them.

What there is, a listing of the repository tells. Manifests and annotations that have not changed since they were last
read come from a cache; the one backup that somebody asked for is read from the repository.
"""

from __future__ import annotations

import logging
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

from ..errors import BackupNotFoundError, IntegrityError, ObjectMissingError, RepositoryVersionError, printable
from ..models import Manifest
from .annotations import annotate, current, of_backup, readable
from .codec import AnnotationRecord
from .damage import DAMAGE, Damage, is_confined
from .names import (
    ANNOTATIONS,
    BACKUPS,
    Numbered,
    parse_annotation,
    parse_backup,
    vm_name,
)
from .objectcache import ObjectCache, Remembered
from .records import Records

log = logging.getLogger("sfasync")

_T = TypeVar("_T")
_Place = TypeVar("_Place")

_SHORTEST_PREFIX = 4
_PREFIX = re.compile(rf"[0-9a-f]{{{_SHORTEST_PREFIX},32}}")
_LATEST = "@latest"


class Catalog:
    """What backups there are, with what has been said of them since they were made.

    Args:
        records: Reads and creates the small objects.
        cache: Of the same repository.
    """

    def __init__(self, records: Records, cache: ObjectCache) -> None:
        self._records = records
        self._cache = cache

    # --- reading ------------------------------------------------------------------------------------------------------

    def backups(self, vm: str | None, *, since: float | None, tag: str | None) -> list[Manifest]:
        """Backups by VM and number, of one VM or of all; see `Repository.backups`."""
        below = "" if vm is None else f"{self._name(self._id_of(vm))}/"
        found = (
            backup
            for backup in self._annotated(self._manifests(below, []), below)
            if (since is None or backup.time >= since) and (tag is None or tag in backup.tags)
        )
        return sorted(found, key=lambda backup: (backup.vm, backup.seq))

    def find(self, reference: str) -> Manifest:
        """The backup meant by a reference; see `Repository.find`."""
        return self._with_annotations(self._find(reference))

    def _find(self, reference: str) -> Manifest:
        """The same as it is stored."""
        if reference.endswith(_LATEST):
            return self._latest(reference.removesuffix(_LATEST))
        if _PREFIX.fullmatch(reference) is None:
            raise BackupNotFoundError(
                f"{printable(reference)} is no backup: give an id, {_SHORTEST_PREFIX} or more of its first digits,"
                f" or VM{_LATEST}"
            )
        return self._remembered(reference) or self._only(reference)

    def _latest(self, vm: str) -> Manifest:
        """The last backup of a VM; an older one is not what is meant when that one is damaged."""
        for place in reversed(self._records.numbered(self._name(self._id_of(vm)))):
            try:
                manifest = self._records.manifest(place)
            except ObjectMissingError:
                continue  # forgotten since it was listed
            except (IntegrityError, RepositoryVersionError) as error:
                what = f"the latest backup of VM {printable(vm)} cannot be read; older ones go by their ids: {error}"
                raise type(error)(what, path=error.path) from error
            if manifest is not None:
                return manifest
        raise BackupNotFoundError(f"there is no backup of VM {printable(vm)} in {self._location}")

    def _id_of(self, vm: str) -> str:
        """The id of the VM that an id, or else a name, stands for; what is neither stays.

        Raises:
            BackupNotFoundError: Several VMs have the name.
        """
        if self._records.numbered(self._name(vm)):
            return vm
        ids = {manifest.vm for manifest in self._manifests("", []).values() if manifest.vm_name == vm}
        if len(ids) > 1:
            listed = ", ".join(printable(other) for other in sorted(ids))
            raise BackupNotFoundError(f"{len(ids)} VMs are called {printable(vm)}; name one by its id: {listed}")
        return ids.pop() if ids else vm

    def _only(self, prefix: str) -> Manifest:
        """The backup whose id begins so."""
        unreadable: list[Damage] = []
        manifests = self._manifests("", unreadable)
        places = [place for place, manifest in manifests.items() if manifest.id.startswith(prefix)]
        if len(places) > 1:
            raise BackupNotFoundError(f"{len(places)} backups begin with {prefix} in {self._location}")
        for place in places:
            with suppress(ObjectMissingError):  # forgotten since it was listed
                manifest = self._records.manifest(place)
                assert manifest is not None, "a place that had a manifest never becomes void"
                return manifest
        for error in unreadable:
            what = f"no backup that can be read begins with {prefix} in {self._location}, and there is damage: {error}"
            raise type(error)(what, path=error.path) from error
        raise BackupNotFoundError(f"there is no backup {prefix} in {self._location}")

    def _remembered(self, backup: str) -> Manifest | None:
        """The backup of a whole id, if it is where it was when it was last listed."""
        for place in filter(None, map(parse_backup, self._cache.keys_of(backup))):
            with suppress(IntegrityError, RepositoryVersionError):
                manifest = self._records.manifest(place)
                if manifest is not None and manifest.id == backup:
                    return manifest
        return None

    # --- changing -----------------------------------------------------------------------------------------------------

    def annotate(self, reference: str, *, add: Sequence[str], remove: Sequence[str], note: str | None) -> Manifest:
        """Change tags and note of a backup; see `Repository.annotate`."""
        manifest = self._find(reference)
        self._say(manifest, remove=tuple(remove), add=tuple(add), note=note)
        return self._with_annotations(manifest)

    def distrust(self, last: Manifest, disk_id: str) -> list[Manifest]:
        """Mark a disk as suspect in backups; see `Repository.distrust`."""
        found = []
        for backup in reversed(self.backups(last.vm, since=None, tag=None)):
            disk = backup.disk(disk_id) if backup.seq <= last.seq else None
            if disk is None:
                continue
            if disk.mode == "full":
                break
            if disk_id not in backup.suspect:
                self._say(backup, suspect=(disk_id,))
            found.append(backup)
        return found

    def forget(self, manifest: Manifest, reason: str) -> None:
        """Remove the manifest of a backup, once it is on record when and why."""
        self._say(manifest, forgotten=reason)
        self._records.remove_manifest(self._place(manifest))

    def _say(
        self,
        manifest: Manifest,
        *,
        remove: tuple[str, ...] = (),
        add: tuple[str, ...] = (),
        note: str | None = None,
        forgotten: str | None = None,
        suspect: tuple[str, ...] = (),
    ) -> None:
        record = AnnotationRecord(
            backup=manifest.id,
            created=time.time(),
            remove=remove,
            add=add,
            note=note,
            forgotten=forgotten,
            suspect=suspect,
        )
        annotate(self._records, self._place(manifest), record)

    # --- all of a kind ------------------------------------------------------------------------------------------------

    def _manifests(self, below: str, unreadable: list[Damage]) -> dict[Numbered, Manifest]:
        """Manifests by place, all or those of one VM; what is wrong with others is added to `unreadable`."""
        each = self._each(BACKUPS + below, parse_backup, self._records.manifest_in, "a backup", unreadable)
        return {place: manifest for place, manifest in each if manifest is not None}

    def _annotated(self, manifests: dict[Numbered, Manifest], below: str) -> Iterator[Manifest]:
        """Backups as their annotations leave them."""
        said: defaultdict[Numbered, list[AnnotationRecord]] = defaultdict(list)
        read = self._records.annotation_in
        for place, annotation in self._each(ANNOTATIONS + below, parse_annotation, read, "an annotation", []):
            said[Numbered(place.vm, place.seq)].append(annotation)
        for backup, manifest in manifests.items():
            yield current(manifest, said[backup]) if backup in said else manifest

    def _each(
        self,
        prefix: str,
        parse: Callable[[str], _Place | None],
        read: Callable[[bytes, _Place, bool], _T],
        what: str,
        unreadable: list[Damage],
    ) -> Iterator[tuple[_Place, _T]]:
        """The objects below a prefix, in order: remembered ones as they were, others from the repository.

        One that cannot be read is left out, with a warning in the log: it must not keep the others from their owner,
        and verify tells all about it.

        Args:
            prefix: Begins their keys, and ends with a slash.
            parse: Gives the place that a key is; None for one that is not ours.
            read: Takes an object apart; called with its bytes, its place, and whether it took these bytes before.
            what: One of them, for the log.
            unreadable: What is wrong is added here.
        """
        remembered = self._cache.load(prefix)
        new: dict[str, Remembered] = {}
        for key, stamp in self._records.store.stamps(prefix):
            place = parse(key)
            if place is None:
                continue
            before = remembered.pop(key, None)
            if before is not None and before.stamp == stamp:
                try:
                    yield place, read(before.data, place, True)
                    continue
                except (IntegrityError, RepositoryVersionError):
                    pass  # the cache is damaged
            try:
                data = self._records.get(key)
                found = read(data, place, False)
            except ObjectMissingError:
                continue  # gone since it was listed
            except DAMAGE as error:
                if not is_confined(error):
                    raise
                log.warning("%s is left out: %s", what, error)
                unreadable.append(error)
                continue
            if stamp is not None:
                new[key] = Remembered(stamp, _backup_of(found), data)
            yield place, found
        self._cache.update(new, remembered)

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


def _backup_of(found: object) -> str:
    """Id of the backup that an object is."""
    return found.id if isinstance(found, Manifest) else ""
