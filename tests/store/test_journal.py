"""Journals: what is written down reads back, whatever else is in the object is refused, and their number is bounded."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.errors import IntegrityError, SfasyncError, StateError, StorageError
from sfasync.models import Checkpoint, Frozen
from sfasync.store import journal as module
from sfasync.store.journal import (
    MAX_JOURNAL,
    DiskNotes,
    JournalDisk,
    JournalHeader,
    JournalWriter,
    Run,
    decode_journal,
    encode_journal,
    joined,
    pieces,
    read_journal,
    runs_of,
)
from sfasync.store.names import JOURNALS, JournalPlace, Numbered, journal_key, parse_journal, vm_name
from sfasync.store.objects import ObjectKind, encode
from sfasync.store.records import Records
from sfasync.store.tree import ZERO

from .memory import MemoryStore
from .support import CHUNK
from .test_locator import REPOSITORY

VM = vm_name(REPOSITORY, "web-01")
FROZEN = Frozen(snapshot="s1", checkpoint=Checkpoint("c", "disk", 5))
MANY = 10_000


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def header(*runs: int, size: int = MANY * CHUNK) -> JournalHeader:
    disks = tuple(
        JournalDisk(id=f"vd{number}", size=size, checkpoint=None, runs=count) for number, count in enumerate(runs)
    )
    return JournalHeader(vm="web-01", snapshot="s1", chunk_size=CHUNK, created=1.5, disks=disks)


def chunks_of(writer_store: MemoryStore, disk: str = "vda") -> dict[int, bytes]:
    """What all journals together say of a disk."""
    records = Records(writer_store, REPOSITORY)
    chunks: dict[int, bytes] = {}
    for place in records.journals():
        journal = read_journal(records, place)
        for described, runs in zip(journal.header.disks, journal.disks, strict=True):
            for run in runs if described.id == disk else ():
                for number in range(run.chunks):
                    start = 0 if run.position is None else run.position + 32 * number
                    found = ZERO if run.position is None else bytes(journal.payload[start : start + 32])
                    chunks[run.first + number] = found
    return chunks


# --- the format ------------------------------------------------------------------------------------------------------


def test_names() -> None:
    place = JournalPlace(VM, 7, 9)
    key = journal_key(*place)
    assert key == f"domains/default/journals/{VM}.0000000000000007.0000000000000009"
    assert parse_journal(key) == place
    for other in (key + "0", key[:-1], key.replace("7", "0"), key.upper(), key.replace(".", "/")):
        assert parse_journal(other) is None


def test_what_is_written_reads_back() -> None:
    runs = [Run(0, 2, digest(1) + digest(2)), Run(2, 5000), Run(9999, 1, digest(3)), Run(7, 1, digest(4))]
    found = decode_journal(memoryview(encode_journal(header(3, 1), runs)), "key")
    assert found.header == header(3, 1)
    assert [[(run.first, run.chunks) for run in disk] for disk in found.disks] == [
        [(0, 2), (2, 5000), (9999, 1)],
        [(7, 1)],
    ]
    position = found.disks[0][0].position
    assert position is not None
    assert found.payload[position : position + 64] == digest(1) + digest(2)
    assert found.disks[0][1].position is None


@pytest.mark.parametrize(
    "runs",
    [
        [Run(1, 1), Run(0, 1)],
        [Run(0, 2), Run(1, 1)],
        [Run(0, 0), Run(1, 1)],
        [Run(0, 1), Run(MANY, 1)],
        [Run(0, 1), Run(1, MANY)],
        [Run(0, 1)],
        [Run(0, 1), Run(1, 1), Run(2, 1)],
        [Run(0, 1), Run(1, 2, digest(1))],
    ],
)
def test_runs_that_contradict_the_header_are_refused(runs: list[Run]) -> None:
    with pytest.raises(IntegrityError, match="contradicts itself"):
        decode_journal(memoryview(encode_journal(header(2), runs)), "key")


@given(st.data())
def test_nothing_but_a_journal_is_taken_for_one(data: st.DataObject) -> None:
    payload = bytearray(encode_journal(header(2), [Run(0, 2, digest(1) + digest(2)), Run(2, 5)]))
    position = data.draw(st.integers(0, len(payload) - 1))
    if data.draw(st.booleans()):
        del payload[position:]
    else:
        payload[position] ^= data.draw(st.integers(1, 255))
    try:
        found = decode_journal(memoryview(payload), "key")
    except IntegrityError:
        return
    for disk, runs in zip(found.header.disks, found.disks, strict=True):
        for run in runs:
            assert 0 < run.chunks <= -(-disk.size // found.header.chunk_size) - run.first
            assert run.position is None or run.position + 32 * run.chunks <= len(payload)


def test_a_journal_of_another_vm_is_refused() -> None:
    store = MemoryStore()
    place = JournalPlace(vm_name(REPOSITORY, "web-02"), 1, 1)
    key = journal_key(*place)
    store.put(key, encode(ObjectKind.JOURNAL, key, REPOSITORY, encode_journal(header(), [])))
    with pytest.raises(IntegrityError, match="belongs elsewhere"):
        read_journal(Records(store, REPOSITORY), place)


# --- runs ------------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.integers(0, 200), st.sampled_from([ZERO, digest(1), digest(2)])))
def test_runs_are_the_chunks_in_order(chunks: dict[int, bytes]) -> None:
    runs = runs_of(chunks.items())
    spread = {
        run.first + number: run.digests[32 * number : 32 * number + 32] if run.digests else ZERO
        for run in runs
        for number in range(run.chunks)
    }
    assert spread == chunks
    assert list(spread) == sorted(spread)
    for one, other in pairwise(runs):
        assert one.end < other.first or bool(one.digests) != bool(other.digests), "neighbours of one kind are one"
    assert joined(runs) == runs


def test_runs_are_cut_into_full_journals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FULL", 1000)
    runs = {
        "a": [Run(0, 100, b"".join(map(digest, range(1, 101)))), Run(100, 2**33)],
        "b": [Run(5, 40, b"".join(map(digest, range(1, 41))))],
    }
    cut = list(pieces(runs, lambda disk: 10))
    for piece in cut:
        assert sum(16 + len(run.digests) for its_runs in piece.values() for run in its_runs) <= 1000
    for piece in cut[:-1]:
        assert sum(16 + len(run.digests) for its_runs in piece.values() for run in its_runs) > 900
    for disk, whole in runs.items():
        again = [run for piece in cut for run in piece.get(disk, ())]
        assert b"".join(run.digests for run in again) == b"".join(run.digests for run in whole)
        assert sum(run.chunks for run in again) == sum(run.chunks for run in whole)
        assert all(run.chunks < 2**32 for run in again)


def test_a_header_has_room_for_its_disks() -> None:
    runs = {str(number): [Run(0, 1)] for number in range(100)}
    cut = list(pieces(runs, lambda disk: 4000))
    assert [len(piece) for piece in cut] == [8] * 12 + [4]


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def writer_of(store: MemoryStore, durable: set[bytes] | None = None) -> JournalWriter:
    return JournalWriter(
        Records(store, REPOSITORY),
        Numbered(VM, 3),
        vm="web-01",
        chunk_size=CHUNK,
        is_durable=lambda name, length: durable is None or name in durable,
    )


def test_only_what_is_durable_is_noted(store: MemoryStore) -> None:
    durable: set[bytes] = set()
    writer = writer_of(store, durable)
    notes = writer.disk("vda", 4 * CHUNK, FROZEN)
    for index in range(4):
        notes.add(index, digest(index + 1))
    writer.write()
    assert store.objects == {}
    durable |= {digest(2), digest(3)}
    writer.write()
    assert chunks_of(store) == {1: digest(2), 2: digest(3)}
    durable |= {digest(1), digest(4)}
    writer.write()
    assert chunks_of(store) == {index: digest(index + 1) for index in range(4)}
    writer.write()
    assert len(store.objects) == 1


def test_the_number_of_journals_follows_the_data(store: MemoryStore) -> None:
    """8192 digests are two full journals; they are written in 300 steps."""
    writer = writer_of(store)
    disks = {name: writer.disk(name, MANY * CHUNK, FROZEN) for name in ("vda", "vdb")}
    order = random.Random(1).sample(range(4096), 4096)
    for step in range(300):
        for index in order[step * 14 : step * 14 + 14]:
            disks["vda"].add(index, digest(index + 1))
            disks["vdb"].add(index, digest(index + 2) if index % 2 else ZERO)
        writer.write()
    assert len(store.list(JOURNALS)) <= 3
    assert all(len(content) < MAX_JOURNAL for content in store.objects.values())
    assert chunks_of(store) == {index: digest(index + 1) for index in range(4096)}
    assert chunks_of(store, "vdb") == {index: digest(index + 2) if index % 2 else ZERO for index in range(4096)}


def test_zeros_take_no_room(store: MemoryStore) -> None:
    writer = writer_of(store)
    notes = writer.disk("vda", 50_000 * CHUNK, FROZEN)
    for start in range(0, 50_000, 5000):
        for index in range(start, start + 5000):
            notes.add(index, ZERO)
        writer.write()
    assert sum(map(len, store.objects.values())) < 500


def test_what_cannot_be_written_is_the_last_that_is_tried(store: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    def full(operation: str, key: str) -> None:
        raise StorageError("the disk is full")

    writer = writer_of(store)
    notes = writer.disk("vda", 4 * CHUNK, FROZEN)
    notes.add(0, digest(1))
    store.before = full
    writer.write()
    store.before = lambda operation, key: None
    notes.add(1, digest(2))
    writer.write()
    assert store.objects == {}
    assert [record.message for record in caplog.records] == [
        "what this backup finishes is not noted any more, it could not be resumed: the disk is full"
    ]


def test_a_journal_that_cannot_be_removed_does_no_harm(store: MemoryStore) -> None:
    def sticky(operation: str, key: str) -> None:
        if operation == "delete":
            raise StorageError("no")

    writer = writer_of(store)
    notes = writer.disk("vda", 4 * CHUNK, FROZEN)
    store.before = sticky
    for index in range(4):
        notes.add(index, digest(index + 1))
        writer.write()
    assert len(store.objects) == 4
    assert chunks_of(store) == {index: digest(index + 1) for index in range(4)}


def test_disks_of_one_session_are_of_one_snapshot(store: MemoryStore) -> None:
    writer = writer_of(store)
    writer.disk("vda", CHUNK, FROZEN)
    with pytest.raises(StateError, match="another snapshot"):
        writer.disk("vdb", CHUNK, Frozen(snapshot="s2"))


def test_notes_may_come_while_some_are_taken() -> None:
    notes = DiskNotes("vda", 4 * CHUNK, FROZEN)

    def is_durable(index: int, name: bytes) -> bool:
        if index == 0:
            notes.add(1, digest(2))
        return index == 0

    notes.add(0, digest(1))
    assert notes.take(is_durable) == [Run(0, 1, digest(1))]
    assert notes.take(lambda index, name: True) == [Run(1, 1, digest(2))]


def test_every_flip_in_a_journal_is_found(store: MemoryStore) -> None:
    writer = writer_of(store)
    writer.disk("vda", 4 * CHUNK, FROZEN).add(0, digest(1))
    writer.write()
    ((key, content),) = store.objects.items()
    place = parse_journal(key)
    assert place is not None
    for position in range(len(content)):
        store.objects[key] = content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        with pytest.raises(SfasyncError) as caught:
            read_journal(Records(store, REPOSITORY), place)
        assert caught.value.exit_code in (10, 22)
