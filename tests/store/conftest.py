from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sfasync.store.repository import Repository
from sfasync.workers import Workers

from .support import CHUNK


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the repository is."""
    return tmp_path / "repository"


@pytest.fixture
async def repository(place: Path) -> AsyncIterator[Repository]:
    """A new repository with the smallest chunks."""
    async with await Repository.init(place, chunk_size=CHUNK) as opened:
        yield opened


@pytest.fixture
def closers() -> Iterator[Workers]:
    """Threads to close packs in."""
    workers = Workers(2, "closers")
    yield workers
    workers.close()
