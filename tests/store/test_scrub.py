"""Packs against the index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from sfasync.errors import StorageError
from sfasync.store.cache import Location
from sfasync.store.findings import Findings
from sfasync.store.index import IndexPack
from sfasync.store.locator import Locator
from sfasync.store.names import pack_key
from sfasync.store.packs import Pack
from sfasync.store.scrub import Scrubber

from .memory import MemoryStore
from .test_blobs import write
from .test_locator import REPOSITORY, put_index


@dataclass(frozen=True)
class Case:
    store: MemoryStore
    pack: Pack
    findings: Findings
    scrubber: Scrubber

    @property
    def key(self) -> str:
        return pack_key(self.pack.id)

    @property
    def known(self) -> IndexPack:
        (known,) = self.scrubber.packs()
        return known

    def good(self) -> list[bool]:
        """Whether each blob of the pack can be relied on."""
        locations = (
            Location(self.pack.id, ordinal, blob.offset, blob.length) for ordinal, blob in enumerate(self.pack.blobs)
        )
        return [self.scrubber.is_good(location) for location in locations]

    def check(self) -> list[str]:
        """Check everything; the objects named."""
        self.scrubber.check_presence(self.known)
        if self.scrubber.is_there(self.known):
            self.scrubber.check_bytes(self.known)
        return [problem.object for problem in self.findings.problems()]


@pytest.fixture
def case() -> Iterator[Case]:
    store = MemoryStore()
    pack = write(store, 1)
    put_index(store, [pack])
    locator = Locator(store, REPOSITORY, private=True)
    locator.sync()
    findings = Findings()
    yield Case(store, pack, findings, Scrubber(store, REPOSITORY, locator.cache, findings))
    locator.close()


def test_a_good_pack(case: Case) -> None:
    assert case.check() == []
    assert case.good() == [True] * 4
    assert (case.findings.blobs, case.findings.bytes_read) == (4, case.pack.size)


def test_a_bad_blob_is_told_alone(case: Case) -> None:
    data = bytearray(case.store.objects[case.key])
    data[case.pack.blobs[1].offset] ^= 1
    case.store.objects[case.key] = bytes(data)
    assert case.check() == [case.key]
    assert case.good() == [True, False, True, True]


def test_a_bad_trailer_leaves_the_blobs_good(case: Case) -> None:
    data = bytearray(case.store.objects[case.key])
    data[-60] ^= 1
    case.store.objects[case.key] = bytes(data)
    assert case.check() == [case.key]
    assert case.good() == [True] * 4


def test_a_short_pack_has_the_blobs_that_it_has(case: Case) -> None:
    end = case.pack.blobs[1].offset + case.pack.blobs[1].length
    case.store.objects[case.key] = case.store.objects[case.key][:end]
    assert set(case.check()) == {case.key}
    assert case.good() == [True, True, False, False]


def test_a_missing_pack_has_none(case: Case) -> None:
    case.store.delete(case.key)
    assert case.check() == [case.key]
    assert case.good() == [False] * 4


def test_a_pack_that_cannot_be_read_is_damage_not_an_exception(case: Case) -> None:
    def fail(operation: str, key: str) -> None:
        if operation == "read":
            raise StorageError("Input/output error")

    case.store.before = fail
    assert set(case.check()) == {case.key}
    assert case.good() == [False] * 4


def test_a_whole_pack_that_is_not_the_one_indexed(case: Case) -> None:
    other = MemoryStore()
    write(other, 1)
    case.store.objects[case.key] = other.objects[case.key].replace(b"\x01\x00s", b"\x01\x00t")
    assert case.check() == [case.key]
    assert case.good() == [True] * 4


def test_a_pack_in_no_index(case: Case) -> None:
    pack = write(case.store, 2)
    key = pack_key(pack.id)
    case.scrubber.check_unindexed(pack.id)
    assert case.findings.problems() == ()
    data = bytearray(case.store.objects[key])
    data[len(data) // 2] ^= 1
    case.store.objects[key] = bytes(data)
    case.scrubber.check_unindexed(pack.id)
    assert [problem.object for problem in case.findings.problems()] == [key]
