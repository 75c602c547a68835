"""Records have one spelling, and manifests one meaning."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from sfasync.errors import IntegrityError, UsageError
from sfasync.models import AuditRecord, Checkpoint, DiskRecord, DiskStatistics, FileRecord, Manifest
from sfasync.store.codec import (
    MAX_RECORD,
    AnnotationRecord,
    Configuration,
    SessionRecord,
    VoidRecord,
    as_stored,
    check_manifest,
    decode_again,
    decode_configuration,
    decode_record,
    encode_record,
    features,
)
from sfasync.store.objects import AUDITS

KEY = "domains/default/backups/00/01"

DISK = DiskRecord(
    id="vda",
    size=5,
    root="0" * 64,
    tree="a" * 64,
    mode="full",
    reasons=("first-backup",),
    checkpoint=Checkpoint("c1", "disk-1", 5),
    statistics=DiskStatistics(bytes_read=5, seconds={"seal": 0.25, "read": 1.5}),
)
MANIFEST = Manifest(
    id="ab" * 16,
    repository="cd" * 16,
    seq=7,
    vm="web-01",
    vm_name="Wéb 01",
    time=1.5,
    parent="ef" * 16,
    platform="plain",
    version="0.1",
    snapshot="s",
    tags=("daily",),
    disks=(DISK, replace(DISK, id="vdb", checkpoint=None)),
    files=(FileRecord(name="config.json", size=3, digest="b" * 64),),
    seconds=2.0,
)
AUDITED = replace(MANIFEST, disks=(replace(DISK, audit=AuditRecord(seed=1, position=2, chunks=3)), MANIFEST.disks[1]))


def test_only_what_tells_of_audits_needs_the_feature() -> None:
    """So that others read the rest."""
    suspect = AnnotationRecord(backup="00" * 16, created=1.0, suspect=("vda",))
    for record, tells in (
        (MANIFEST, False),
        (AUDITED, True),
        (structs.replace(suspect, suspect=()), False),
        (suspect, True),
        (VoidRecord(reason="fenced", created=1.0), False),
    ):
        payload = encode_record(record)
        assert features(record) == (AUDITS if tells else 0)
        assert (b'"audit":' in payload or b'"suspect":' in payload) == tells
    assert encode_record(AUDITED).count(b'"audit":') == 2


def test_what_is_encoded_is_decoded() -> None:
    for record in (
        MANIFEST,
        Configuration(format=1, id="00" * 16, chunk_size=2**20, created=1.0),
        SessionRecord(host="h", pid=1, created=1.0, parent=None, roots=("0" * 64,), resumes=(7,)),
        VoidRecord(reason="fenced", created=1.0),
        AUDITED,
        AnnotationRecord(backup="00" * 16, created=1.0, add=("a",)),
        AnnotationRecord(backup="00" * 16, created=1.0, suspect=("vda",)),
    ):
        payload = encode_record(record)
        assert decode_record(payload, type(record), KEY) == decode_again(payload, type(record), KEY) == record
    with pytest.raises(IntegrityError, match="not a record of its kind"):
        decode_again(b"{", Manifest, KEY)
    check_manifest(MANIFEST, KEY)


def test_times_are_whole_milliseconds() -> None:
    assert b'"time":1500,' in encode_record(MANIFEST)
    assert as_stored(replace(MANIFEST, time=1795370719.21481)).time == 1795370719.215
    assert as_stored(replace(MANIFEST, seconds=0.00061)).seconds == 0.001
    assert as_stored(MANIFEST) == MANIFEST
    for milliseconds in (0, 1, 999, 1795370719215, 2**52 + 1):
        stored = as_stored(replace(MANIFEST, time=milliseconds / 1000))
        assert f'"time":{milliseconds},'.encode() in encode_record(stored)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"seq":7', b'"seq": 7'),
        (b'"seq":7', b'"seq":7.0'),
        (b'"seq":7', b'"seq":"7"'),
        (b'"seq":7', b'"seq":7,"seq":7'),
        (b'"seq":7', b'"seq":7,"unknown":1'),
        (b'"seq":7', b'"seq":7,"suspect":[]'),
        (b'{"checkpoint"', b'{"audit":null,"checkpoint"'),
        (b'"time":1500', b'"time":1500.0'),
        (b'"time":1500', b'"time":1.5e3'),
        (b'"time":1500', b'"time":1e999'),
        (b'"time":1500', b'"time":NaN'),
        (b'"time":1500', b'"time":90071992547409931'),
        (b'"vm":"web-01"', b'"vm":"\\u0077eb-01"'),
        (b'"vm":"web-01"', b'"vm":"\xff"'),
        (b'"tags":["daily"],', b""),
        (b"{", b" {"),
    ],
)
def test_other_spellings_are_refused(old: bytes, new: bytes) -> None:
    payload = encode_record(MANIFEST)
    assert old in payload
    with pytest.raises(IntegrityError) as caught:
        decode_record(payload.replace(old, new, 1), Manifest, KEY)
    assert caught.value.path == KEY
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
def test_garbage_gives_only_the_typed_error(garbage: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_record(garbage, Manifest, KEY)


@pytest.mark.parametrize("nested", [b"[" * 60000, b'{"disks":' * 6000, b'{"tags":[' + b"[" * 50000])
def test_deep_nesting_is_refused(nested: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_record(nested, Manifest, KEY)


def test_what_is_too_large_is_neither_written_nor_read() -> None:
    large = replace(MANIFEST, vm_name="x" * MAX_RECORD)
    with pytest.raises(UsageError, match="65536 are the most"):
        encode_record(large)
    small = encode_record(MANIFEST)
    with pytest.raises(IntegrityError):
        decode_record(small.replace(b"W\xc3\xa9b 01", b"x" * MAX_RECORD), Manifest, KEY)


def test_text_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        encode_record(replace(MANIFEST, vm_name="\ud800"))
    with pytest.raises(UsageError, match="cannot be written"):
        encode_record(replace(MANIFEST, time=float("nan")))


@pytest.mark.parametrize(
    "wrong",
    [
        replace(MANIFEST, id="AB" * 16),
        replace(MANIFEST, id="../../etc"),
        replace(MANIFEST, repository="0"),
        replace(MANIFEST, parent="x"),
        replace(MANIFEST, seq=0),
        replace(MANIFEST, seq=2**60),
        replace(MANIFEST, disks=(DISK, DISK)),
        replace(MANIFEST, files=MANIFEST.files * 2),
        replace(MANIFEST, disks=(replace(DISK, size=-1),)),
        replace(MANIFEST, disks=(replace(DISK, size=2**63),)),
        replace(MANIFEST, disks=(replace(DISK, root="0" * 63),)),
        replace(MANIFEST, disks=(replace(DISK, tree="g" * 64),)),
        replace(MANIFEST, disks=(replace(DISK, mode="other"),)),
        replace(MANIFEST, disks=(replace(DISK, audit=AuditRecord(seed=0, position=-1, chunks=0)),)),
        replace(MANIFEST, disks=(replace(DISK, checkpoint=Checkpoint("c", "d", -1)),)),
        replace(MANIFEST, files=(FileRecord(name="f", size=2**30, digest="b" * 64),)),
        replace(MANIFEST, files=(FileRecord(name="f", size=1, digest=""),)),
    ],
)
def test_values_out_of_range_are_refused(wrong: Manifest) -> None:
    with pytest.raises(IntegrityError):
        check_manifest(wrong, KEY)


def test_a_configuration_out_of_range_is_refused() -> None:
    good = Configuration(format=1, id="00" * 16, chunk_size=2**20, created=1.0)
    assert decode_configuration(encode_record(good), "config") == good
    for wrong in (
        structs.replace(good, format=2),
        structs.replace(good, id="x"),
        structs.replace(good, chunk_size=12345),
    ):
        with pytest.raises(IntegrityError):
            decode_configuration(encode_record(wrong), "config")
