"""Small objects of a repository."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from sfasync.errors import IntegrityError, ObjectExistsError, ObjectMissingError
from sfasync.models import Manifest
from sfasync.store.names import BACKUPS, Numbered, backup_key, end_key, session_key, vm_name
from sfasync.store.objects import ObjectKind, encode
from sfasync.store.records import Records

from .memory import MemoryStore
from .test_codec import MANIFEST

REPOSITORY = bytes.fromhex(MANIFEST.repository)
VM = vm_name(REPOSITORY, MANIFEST.vm)
PLACE = Numbered(VM, MANIFEST.seq)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def records(store: MemoryStore) -> Records:
    return Records(store, REPOSITORY)


def at(seq: int) -> tuple[Numbered, Manifest]:
    return Numbered(VM, seq), replace(MANIFEST, seq=seq)


def test_a_manifest_is_created_once(records: Records) -> None:
    records.put_manifest(PLACE, MANIFEST)
    assert records.manifest(PLACE) == MANIFEST
    with pytest.raises(ObjectExistsError):
        records.put_manifest(PLACE, MANIFEST)
    records.put_void(PLACE, "fenced")
    assert records.manifest(PLACE) == MANIFEST


def test_a_void_keeps_a_manifest_out(records: Records) -> None:
    records.put_void(PLACE, "fenced")
    records.put_void(PLACE, "aborted")
    with pytest.raises(ObjectExistsError):
        records.put_manifest(PLACE, MANIFEST)
    assert records.manifest(PLACE) is None
    assert records.manifests([PLACE]) == []


def test_places_are_listed_in_order_and_by_vm(records: Records, store: MemoryStore) -> None:
    for seq in (3, 1, 255, 16):
        records.put_manifest(*at(seq))
    other = Numbered("0" * 32, 1)
    records.put_void(other, "fenced")
    store.put(BACKUPS + "foreign", b"")
    assert [place.seq for place in records.numbered(VM)] == [1, 3, 16, 255]
    assert records.numbered() == sorted([other, *records.numbered(VM)])
    assert [manifest.seq for manifest in records.manifests(records.numbered())] == [1, 3, 16, 255]


def test_a_damaged_backup_does_not_hide_the_others(
    records: Records, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    for seq in (1, 2, 3):
        records.put_manifest(*at(seq))
    key = backup_key(VM, 2)
    store.objects[key] = store.objects[key][:-1] + b"?"
    with pytest.raises(IntegrityError):
        records.manifest(Numbered(VM, 2))
    with caplog.at_level(logging.WARNING, "sfasync"):
        assert [manifest.seq for manifest in records.manifests(records.numbered())] == [1, 3]
    assert key in caplog.text
    with pytest.raises(ObjectMissingError):
        records.manifest(Numbered(VM, 9))
    assert records.manifests([Numbered(VM, 9)]) == []


def test_a_manifest_elsewhere_than_it_says_is_refused(records: Records, store: MemoryStore) -> None:
    key = backup_key(VM, 8)
    store.put(backup_key(VM, 7), b"")
    for manifest in (MANIFEST, replace(MANIFEST, seq=8, vm="other"), replace(MANIFEST, seq=8, repository="0" * 32)):
        store.objects.pop(key, None)
        records.put_manifest(Numbered(VM, 8), manifest)
        with pytest.raises(IntegrityError, match="belongs elsewhere"):
            records.manifest(Numbered(VM, 8))


def test_a_session_tells_whose_it_is_and_what_it_builds_on(records: Records, store: MemoryStore) -> None:
    hold = records.hold_session(Numbered(VM, 8), (PLACE, MANIFEST))
    session = records.session(Numbered(VM, 8))
    assert session.parent == backup_key(*PLACE)
    assert session.roots == tuple(disk.root for disk in MANIFEST.disks)
    assert session.pid > 0
    assert store.held(session_key(VM, 8))
    hold.release()
    with pytest.raises(ObjectExistsError):
        records.hold_session(Numbered(VM, 8), None)
    assert records.hold_session(Numbered(VM, 9), None)
    assert records.session(Numbered(VM, 9)).parent is None
    assert records.sessions() == records.sessions(VM) == [Numbered(VM, 8), Numbered(VM, 9)]
    assert records.sessions("0" * 32) == []


def test_the_end_of_a_session(records: Records, store: MemoryStore) -> None:
    records.put_end(PLACE)
    records.put_end(PLACE)
    records.end(PLACE)
    assert records.ends(VM) == [PLACE]
    assert records.sessions(VM) == []
    key = end_key(*PLACE)
    store.objects[key] = encode(ObjectKind.END, key, REPOSITORY, b"x")
    with pytest.raises(IntegrityError):
        records.end(PLACE)
