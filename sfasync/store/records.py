"""The objects that hold small records, read and created: manifests, voids, annotations, sessions and their ends.

`codec` says how a record is written.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

from ..errors import ObjectExistsError, ObjectMissingError
from ..interfaces import Hold, ObjectStore
from ..models import Manifest
from .codec import (
    MAX_OBJECT,
    AnnotationRecord,
    SessionRecord,
    VoidRecord,
    check_annotation,
    check_manifest,
    decode_again,
    decode_record,
    encode_record,
    features,
)
from .damage import DAMAGE, Damage, is_confined
from .gaps import Gap, find_gaps
from .names import (
    ANNOTATIONS,
    BACKUPS,
    JOURNALS,
    SESSIONS,
    Annotated,
    JournalPlace,
    Numbered,
    annotation_key,
    backup_key,
    end_key,
    parse_annotation,
    parse_backup,
    parse_end,
    parse_journal,
    parse_session,
    session_key,
    vm_name,
)
from .objects import Frame, ObjectKind, damaged, decode, encode

log = logging.getLogger("sfasync")


class Records:
    """Reads and creates the small objects. Calls block; any thread may make them.

    Args:
        store: Where the repository is.
        repository: Its id.
    """

    def __init__(self, store: ObjectStore, repository: bytes) -> None:
        self.store = store
        self.repository = repository

    # --- manifests ----------------------------------------------------------------------------------------------------

    def numbered(self, vm: str | None = None) -> list[Numbered]:
        """The places under which manifests or voids are, of one VM (its name in keys) or of all, in order."""
        keys = self.store.list(BACKUPS if vm is None else f"{BACKUPS}{vm}/")
        return [place for key in keys if (place := parse_backup(key)) is not None]

    def manifest(self, place: Numbered) -> Manifest | None:
        """The manifest in a place; None for a void.

        Raises:
            ObjectMissingError: There is neither.
            IntegrityError: It is damaged.
            RepositoryVersionError: A newer version wrote it.
        """
        return self.manifest_in(self.get(backup_key(*place)), place)

    def manifest_in(self, data: bytes, place: Numbered, again: bool = False) -> Manifest | None:
        """As `manifest`, of an object that was read; `again` if this was called with it before, without an error."""
        key = backup_key(*place)
        frame = decode(data, key, self.repository, ObjectKind.MANIFEST, ObjectKind.VOID)
        if frame.head.kind == ObjectKind.VOID:
            decode_record(frame.payload, VoidRecord, key)
            return None
        if again:
            return decode_again(frame.payload, Manifest, key)
        manifest = decode_record(frame.payload, Manifest, key)
        check_manifest(manifest, key)
        belongs = vm_name(self.repository, manifest.vm), manifest.seq, manifest.repository
        if belongs != (*place, self.repository.hex()):
            raise damaged(key, "belongs elsewhere")
        return manifest

    def manifests(self, places: Iterable[Numbered], unreadable: list[Damage] | None = None) -> list[Manifest]:
        """The backups in these places. One that cannot be read is left out, with a warning in the log: it must not
        keep the others from their owner, and verify tells all about it. What is wrong with it is added to `unreadable`.

        Raises:
            StorageError: The repository cannot be read.
        """
        found = []
        for place in places:
            try:
                manifest = self.manifest(place)
            except ObjectMissingError:
                continue  # forgotten since it was listed
            except DAMAGE as error:
                if not is_confined(error):
                    raise
                log.warning("a backup is left out: %s", error)
                if unreadable is not None:
                    unreadable.append(error)
                continue
            if manifest is not None:
                found.append(manifest)
        return found

    def latest(self, places: list[Numbered]) -> tuple[Numbered, Manifest] | None:
        """The last backup in these places that can be read, and its place."""
        for place in reversed(places):
            for manifest in self.manifests([place]):
                return place, manifest
        return None

    def put_manifest(self, place: Numbered, manifest: Manifest) -> None:
        """Create a manifest: from now on there is this backup.

        Raises:
            ObjectExistsError: The place is taken.
            UsageError: The manifest is larger than 64 KiB.
        """
        self._put(ObjectKind.MANIFEST, backup_key(*place), manifest)

    def put_void(self, place: Numbered, reason: str) -> None:
        """Take the place of a manifest for good, unless it is taken."""
        with suppress(ObjectExistsError):
            self._put(ObjectKind.VOID, backup_key(*place), VoidRecord(reason=reason, created=time.time()))

    def remove_manifest(self, place: Numbered) -> None:
        """Remove a manifest; one that is gone is no error."""
        self.store.delete(backup_key(*place))

    # --- annotations --------------------------------------------------------------------------------------------------

    def annotated(self, vm: str | None = None) -> list[Annotated]:
        """The places of annotations, of one VM (its name in keys) or of all, in the order in which they count."""
        keys = self.store.list(ANNOTATIONS if vm is None else f"{ANNOTATIONS}{vm}/")
        return [place for key in keys if (place := parse_annotation(key)) is not None]

    def annotation(self, place: Annotated) -> AnnotationRecord:
        """What an annotation says; errors as of `manifest`."""
        return self.annotation_in(self.get(annotation_key(*place)), place)

    def annotation_in(self, data: bytes, place: Annotated, again: bool = False) -> AnnotationRecord:
        """As `annotation`, of an object that was read; `again` as of `manifest_in`."""
        key = annotation_key(*place)
        payload = decode(data, key, self.repository, ObjectKind.ANNOTATION).payload
        if again:
            return decode_again(payload, AnnotationRecord, key)
        record = decode_record(payload, AnnotationRecord, key)
        check_annotation(record, key)
        return record

    def put_annotation(self, place: Annotated, record: AnnotationRecord) -> None:
        """Create an annotation.

        Raises:
            ObjectExistsError: The place is taken.
            UsageError: It is larger than 64 KiB.
        """
        self._put(ObjectKind.ANNOTATION, annotation_key(*place), record)

    def gaps(self, highest: Mapping[str, int]) -> list[Gap]:
        """Numbers whose manifests are gone, and were not forgotten; `highest` as of `find_gaps`.

        What takes the place of another is listed after it: sessions become manifests, manifests annotations.
        """
        known = self.sessions() + self.numbered() + [Numbered(place.vm, place.seq) for place in self.annotated()]
        return list(find_gaps(known, highest))

    # --- sessions -----------------------------------------------------------------------------------------------------

    def sessions(self, vm: str | None = None) -> list[Numbered]:
        """The places that have a session object, of one VM or of all."""
        places = [parse_session(key) for key in self.store.list(SESSIONS)]
        return [place for place in places if place is not None and vm in (None, place.vm)]

    def ends(self, vm: str) -> list[Numbered]:
        """The places of a VM that have an end of a session."""
        places = [parse_end(key) for key in self.store.list(SESSIONS)]
        return [place for place in places if place is not None and place.vm == vm]

    def session(self, place: Numbered) -> SessionRecord:
        """What a session says of itself; errors as of `manifest`."""
        key = session_key(*place)
        return decode_record(self._read(key, ObjectKind.SESSION).payload, SessionRecord, key)

    def end(self, place: Numbered) -> None:
        """Check the end of a session; errors as of `manifest`."""
        key = end_key(*place)
        if len(self._read(key, ObjectKind.END).payload) != 0:
            raise damaged(key, "should be empty")

    def hold_session(
        self, place: Numbered, parent: tuple[Numbered, Manifest] | None, resumes: Iterable[int] = ()
    ) -> Hold:
        """Create the object of a session and hold it; `resumes` are the numbers of the sessions whose journals it uses.

        Raises:
            ObjectExistsError: Somebody else did.
        """
        record = SessionRecord(
            host=socket.gethostname(),
            pid=os.getpid(),
            created=time.time(),
            parent=backup_key(*parent[0]) if parent else None,
            roots=tuple(disk.root for disk in parent[1].disks) if parent else (),
            resumes=tuple(resumes),
        )
        key = session_key(*place)
        return self.store.hold(key, encode(ObjectKind.SESSION, key, self.repository, encode_record(record)))

    def put_end(self, place: Numbered) -> None:
        """Record that a session has ended, unless that is recorded."""
        key = end_key(*place)
        with suppress(ObjectExistsError):
            self.store.put(key, encode(ObjectKind.END, key, self.repository, b""))

    # --- journals -----------------------------------------------------------------------------------------------------

    def journals(self, vm: str | None = None) -> list[JournalPlace]:
        """The places that have a journal, of one VM or of all, in order."""
        places = [parse_journal(key) for key in self.store.list(JOURNALS)]
        return [place for place in places if place is not None and vm in (None, place.vm)]

    # --- objects ------------------------------------------------------------------------------------------------------

    def get(self, key: str) -> bytes:
        """All bytes of a small object; errors as of `ObjectStore.get`."""
        return self.store.get(key, limit=MAX_OBJECT)

    def _read(self, key: str, *kinds: ObjectKind) -> Frame:
        return decode(self.get(key), key, self.repository, *kinds)

    def _put(self, kind: ObjectKind, key: str, record: object) -> None:
        self.store.put(key, encode(kind, key, self.repository, encode_record(record), features(record)))
