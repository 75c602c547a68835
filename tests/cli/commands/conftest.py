"""What the tests of the commands share: a repository, a disk, and a server for it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ...support.command import sfasync
from ...support.servers import Server, nbdkit

MiB = 1 << 20


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository, which commands find in their environment."""
    path = tmp_path / "repository"
    assert sfasync("init", "--repo", path).status == 0
    monkeypatch.setenv("SFASYNC_REPOSITORY", str(path))
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk of 16 MiB and a sector with 5 MiB of data in it."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(16 * MiB + 512)
        for offset, length in ((0, 3 * MiB), (9 * MiB + 4096, 2 * MiB - 512)):
            file.seek(offset)
            file.write(random.Random(offset).randbytes(length))
    return path


@pytest.fixture
def server(disk: Path) -> Iterator[Server]:
    """An nbdkit that serves the disk, writable."""
    with nbdkit("file", disk) as running:
        yield running


@pytest.fixture
def slow_server() -> Iterator[Server]:
    """An nbdkit that takes half a minute to hand out a disk, but begins at once."""
    with nbdkit("pattern", "128M", "rate=32M", filters=("rate",)) as running:  # bits in a second
        yield running


@pytest.fixture
def backup(repository: Path, server: Server) -> str:
    """The id of a backup of the disk, as `vda` of `vm`."""
    ended = sfasync("backup", "vm", "--disk", f"vda={server.uri}", "--tag", "first", "--json")
    identity: str = ended.last["id"]
    return identity


def damage(repository: Path) -> Path:
    """Flip a bit in the middle of the largest object of a repository."""
    victim = max((path for path in repository.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.chmod(0o600)
    victim.write_bytes(content)
    return victim
