"""What is said of backups since they were made."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from sfasync.errors import IntegrityError, ObjectExistsError, StorageError
from sfasync.store.annotations import annotate, current, gaps, is_lost, of_backup, readable
from sfasync.store.codec import AnnotationRecord, encode_record
from sfasync.store.names import LAST_NUMBER, Annotated, Numbered, annotation_key, vm_name
from sfasync.store.objects import ObjectKind, encode
from sfasync.store.records import Records

from .memory import MemoryStore
from .test_codec import MANIFEST

REPOSITORY = bytes.fromhex(MANIFEST.repository)
PLACE = Numbered(vm_name(REPOSITORY, MANIFEST.vm), MANIFEST.seq)

TAG = st.sampled_from("abc")
CHANGES = st.lists(st.tuples(st.lists(TAG), st.lists(TAG), st.none() | st.sampled_from(["", "x", "y"])))


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def records(store: MemoryStore) -> Records:
    return Records(store, REPOSITORY)


def change(**changes: object) -> AnnotationRecord:
    return structs.replace(AnnotationRecord(backup=MANIFEST.id, created=1.5), **changes)


@given(CHANGES)
def test_changes_are_applied_in_order(changes: list[tuple[list[str], list[str], str | None]]) -> None:
    tags, note = list(MANIFEST.tags), ""
    for remove, add, text in changes:
        tags = [tag for tag in tags if tag not in remove]
        for tag in add:
            if tag not in tags:
                tags.append(tag)
        note = note if text is None else text
    said = [change(remove=tuple(remove), add=tuple(add), note=text) for remove, add, text in changes]
    assert current(MANIFEST, said) == replace(MANIFEST, tags=tuple(tags), note=note)


def test_what_is_said_of_another_backup_does_not_count() -> None:
    assert current(MANIFEST, [structs.replace(change(add=("x",)), backup="0" * 32)]) == MANIFEST


def test_they_are_numbered_for_each_backup(records: Records) -> None:
    other = Numbered(PLACE.vm, 8)
    for backup in (PLACE, other, PLACE):
        annotate(records, backup, change(add=("x",)))
    assert records.annotated() == [Annotated(*PLACE, 1), Annotated(*PLACE, 2), Annotated(*other, 1)]
    assert of_backup(records, PLACE) == [Annotated(*PLACE, 1), Annotated(*PLACE, 2)]
    assert records.annotated("0" * 32) == []
    with pytest.raises(ObjectExistsError):
        records.put_annotation(Annotated(*PLACE, 1), change())


def test_of_many_at_once_each_has_its_way(records: Records) -> None:
    barrier = threading.Barrier(8)

    def tag(number: int) -> None:
        barrier.wait()
        annotate(records, PLACE, change(add=(str(number),)))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(tag, range(8)))
    places = records.annotated()
    assert [place.number for place in places] == list(range(1, 9))
    assert set(current(MANIFEST, readable(records, places)).tags) == {*MANIFEST.tags, *map(str, range(8))}


def test_a_damaged_one_is_left_out(records: Records, store: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    for tag in "abc":
        annotate(records, PLACE, change(add=(tag,)))
    key = annotation_key(*PLACE, 2)
    store.objects[key] = store.objects[key][:-1] + b"?"
    with caplog.at_level(logging.WARNING, "sfasync"):
        assert current(MANIFEST, readable(records, records.annotated())).tags == (*MANIFEST.tags, "a", "c")
    assert key in caplog.text


def test_one_that_names_no_backup_is_refused(records: Records, store: MemoryStore) -> None:
    place = Annotated(*PLACE, 1)
    key = annotation_key(*place)
    payload = encode_record(structs.replace(change(), backup="x"))
    store.put(key, encode(ObjectKind.ANNOTATION, key, REPOSITORY, payload))
    with pytest.raises(IntegrityError, match="its backup is no id"):
        records.annotation(place)


def test_numbers_end(records: Records) -> None:
    records.put_annotation(Annotated(*PLACE, LAST_NUMBER), change(add=("x",)))
    with pytest.raises(StorageError, match="used up all numbers"):
        annotate(records, PLACE, change(add=("y",)))
    assert records.annotated() == [Annotated(*PLACE, LAST_NUMBER)]


def test_gaps_are_found() -> None:
    a, b = ("a" * 32, 1), ("a" * 32, 2)
    places = [Annotated(*a, 1), Annotated(*a, 2), Annotated(*a, 5), Annotated(*b, 2)]
    assert list(gaps(places)) == [Annotated(*a, 3), Annotated(*b, 1)]
    assert list(gaps(places[:2])) == []


def test_a_backup_that_nobody_forgot_is_lost_without_its_manifest(records: Records) -> None:
    records.put_manifest(PLACE, MANIFEST)
    annotate(records, PLACE, change(add=("x",)))
    assert not is_lost(records, PLACE)
    records.remove_manifest(PLACE)
    assert is_lost(records, PLACE)
    annotate(records, PLACE, change(forgotten=""))
    assert not is_lost(records, PLACE)
