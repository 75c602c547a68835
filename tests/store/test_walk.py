"""From manifests down to chunks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from sfasync.models import Manifest, Problem
from sfasync.store.cache import Location
from sfasync.store.findings import Findings
from sfasync.store.locator import Locator
from sfasync.store.names import INDEX
from sfasync.store.repository import Repository
from sfasync.store.seal import BlobKind
from sfasync.store.walk import BackupWalk, Stopped

from .support import CHUNK, back_up, noise


class Walk:
    """A walk of its own through a repository, and what it asked for."""

    def __init__(self, repository: Repository, is_good: Callable[[Location], bool] = lambda location: True) -> None:
        records = repository._records
        self.asked: list[Location] = []
        self.findings = Findings()
        self.stopped = threading.Event()
        self._locator = Locator(records.store, records.repository, private=True)
        self._locator.sync()
        self._is_good = is_good
        self.walk = BackupWalk(
            records.repository,
            repository.chunk_size,
            locator=self._locator,
            blobs=type(repository._blobs)(records.store, self._locator),
            is_good=self._look,
            findings=self.findings,
            stopped=self.stopped,
        )

    def _look(self, location: Location) -> bool:
        self.asked.append(location)
        return self._is_good(location)

    def check(self, *manifests: Manifest) -> tuple[Problem, ...]:
        try:
            for manifest in manifests:
                self.walk.check(manifest)
        finally:
            self._locator.close()
        return self.findings.problems()


@pytest.fixture
async def manifest(repository: Repository) -> Manifest:
    return await back_up(repository, "web-01", {"vda": noise(200 * CHUNK), "vdb": bytes(CHUNK)})


async def test_everything_is_asked_for_once(repository: Repository, manifest: Manifest) -> None:
    walk = Walk(repository)
    assert walk.check(manifest, replace(manifest, id="2" * 32)) == ()
    assert len(walk.asked) == walk.walk.blobs == 200 + 3
    assert walk.findings.bytes_read == 202 * 32


async def test_what_is_not_sound_is_asked_for_again_by_everybody(repository: Repository, manifest: Manifest) -> None:
    digest = repository.open_disk(manifest, "vda")._tree.digest(0, 150)
    (bad,) = repository._locator.locations(BlobKind.CHUNK, digest, CHUNK)
    walk = Walk(repository, lambda location: location != bad)
    walk.check(manifest, replace(manifest, id="2" * 32))
    assert walk.asked.count(bad) == 2
    assert len(walk.asked) == 200 + 3 + 72 + 2  # the second time only below the page with the bad chunk


async def test_what_no_index_knows_is_told(repository: Repository, manifest: Manifest) -> None:
    lost = replace(manifest.disks[0], root="ab" * 32)
    (tree, index) = Walk(repository).check(replace(manifest, disks=(lost,)))
    assert (index.object, index.backups) == (INDEX, (manifest.id,))
    assert "tree digest" in tree.problem


async def test_it_ends_when_nobody_wants_to_know_any_more(repository: Repository, manifest: Manifest) -> None:
    walk = Walk(repository)
    walk.stopped.set()
    with pytest.raises(Stopped):
        walk.check(manifest)
