"""A repository's directory is moved away, unmounted or read-only, before or while a backup runs.

The backup ends with one clear line, nothing is created where the repository is not, and when it is back in its place
the next backup goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..support.power import Disk, disk
from ..support.servers import Server, nbdkit
from .site import Site

_NO_REPOSITORY, _STORAGE = 10, 21


@contextmanager
def slow(image: Path) -> Iterator[Server]:
    """A server that takes a second for each read: what follows the beginning of a session comes before its end."""
    with nbdkit("file", image, "--readonly", "rdelay=1", filters=("delay",)) as server:
        yield server


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Disk]:
    with disk(tmp_path, "ext4") as mounted:
        yield mounted


def one_line(site: Site) -> str:
    (line,) = site.said().splitlines()
    return line


def test_the_directory_is_replaced_during_a_backup(tmp_path: Path) -> None:
    site = Site(tmp_path, tmp_path / "repository")
    site.init()
    moved = tmp_path / "moved"
    with slow(site.image) as server:
        process = site.start_backup(server.uri)
        site.until_session(process)
        site.repository.rename(moved)
        site.repository.mkdir()
        assert process.wait(60) == _STORAGE
        assert "is another directory now" in one_line(site)
        assert site.back_up(server.uri) == _NO_REPOSITORY
    assert list(site.repository.iterdir()) == []
    site.repository.rmdir()
    moved.rename(site.repository)
    site.check(finished=False)


def test_the_file_system_is_unmounted_during_a_backup(tmp_path: Path, mounted: Disk) -> None:
    site = Site(tmp_path, mounted.mount)
    site.init()
    with slow(site.image) as server:
        process = site.start_backup(server.uri)
        site.until_session(process)
        mounted.detach()
        assert process.wait(60) == _STORAGE
        assert "is another directory now" in one_line(site)
        assert site.back_up(server.uri) == _NO_REPOSITORY
    assert list(mounted.mount.iterdir()) == []
    mounted.begin()
    site.check(finished=False)


def test_the_file_system_is_read_only(tmp_path: Path, mounted: Disk) -> None:
    site = Site(tmp_path, mounted.mount / "repository")
    site.init()
    with nbdkit("file", site.image, "--readonly") as server:
        assert site.back_up(server.uri) == 0
        site.check(finished=True)
        mounted.remount("ro")
        assert site.back_up(server.uri) == _STORAGE
        assert "Read-only file system" in one_line(site)
        there, verified = site.look()
        assert there == site.acknowledged.keys()
        assert verified.ok
    mounted.remount("rw")
    site.check(finished=False)
