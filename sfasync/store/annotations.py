"""What is said of a backup after it was made: tags, a note, that a disk is suspect, and that it has been forgotten.

A manifest never changes, so each change is an object of its own. They are numbered from 1 for each backup and created
exclusively: of two who change a backup at once one comes second, and every reader applies both in the same order.

A backup is forgotten when an annotation that says so is durable and its manifest has been removed after that. The
annotation stays, so that the number of the backup is never used again.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace

from ..errors import IntegrityError, ObjectExistsError, StorageError
from ..models import Manifest
from .codec import AnnotationRecord
from .damage import DAMAGE, is_confined
from .names import LAST_NUMBER, Annotated, Numbered, annotation_key, backup_key
from .records import Records

log = logging.getLogger("sfasync")


def current(manifest: Manifest, annotations: Iterable[AnnotationRecord]) -> Manifest:
    """A backup with what its annotations, in the order of their numbers, leave it with."""
    tags, note, suspect = manifest.tags, manifest.note, manifest.suspect
    for annotation in annotations:
        if annotation.backup != manifest.id:
            continue  # of one that had its place before; it can only have come here by hand
        kept = (tag for tag in tags if tag not in annotation.remove)
        tags = tuple(dict.fromkeys((*kept, *annotation.add)))
        note = note if annotation.note is None else annotation.note
        suspect = tuple(dict.fromkeys((*suspect, *annotation.suspect)))
    return replace(manifest, tags=tags, note=note, suspect=suspect)


def readable(records: Records, places: Iterable[Annotated]) -> Iterator[AnnotationRecord]:
    """What annotations say. One that cannot be read is left out, with a warning in the log: its backup is still there,
    and verify tells about it.
    """
    for place in places:
        try:
            yield records.annotation(place)
        except DAMAGE as error:
            if not is_confined(error):
                raise
            log.warning("an annotation is left out: %s", error)


def annotate(records: Records, backup: Numbered, record: AnnotationRecord) -> None:
    """Add an annotation, after those that a backup has.

    Raises:
        StorageError: It could not be written.
        UsageError: It is larger than 64 KiB.
    """
    while True:
        number = max((place.number for place in of_backup(records, backup)), default=0) + 1
        if number > LAST_NUMBER:
            raise StorageError(f"{backup_key(*backup)} has used up all numbers of annotations")
        try:
            return records.put_annotation(Annotated(*backup, number), record)
        except ObjectExistsError:
            continue  # somebody else was faster; ours comes after theirs


def of_backup(records: Records, backup: Numbered) -> list[Annotated]:
    """The places of the annotations that a backup has."""
    return [place for place in records.annotated(backup.vm) if place.seq == backup.seq]


def gaps(places: Iterable[Annotated]) -> Iterator[Annotated]:
    """Places that are free although a later one of the same backup is taken: what was there is lost."""
    before = Annotated("", 0, 0)
    for place in sorted(places):
        first = before.number + 1 if (place.vm, place.seq) == (before.vm, before.seq) else 1
        if first < place.number:
            yield Annotated(place.vm, place.seq, first)
        before = place


def is_lost(records: Records, backup: Numbered, given_up: Container[str] = ()) -> bool:
    """Whether an annotated backup has no manifest although nothing says that it was forgotten.

    Args:
        records: Reads them.
        backup: Its place.
        given_up: Keys of annotations that cannot be read and count as if they said nothing. Others may say just that.
    """
    try:
        records.store.size(backup_key(*backup))
    except IntegrityError:
        pass  # none, or something else has its name
    else:
        return False
    try:  # read after the manifest was found missing: it is removed only after that was written
        places = [place for place in of_backup(records, backup) if annotation_key(*place) not in given_up]
        return all(records.annotation(place).forgotten is None for place in places)
    except DAMAGE:
        return False  # that may be what the damaged one says
