"""Image files under construction: hidden, private, and gone when something fails."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfasync.endpoints import Endpoints
from sfasync.errors import StorageError, TargetRefusedError, UsageError
from sfasync.models import Limits, Retry, Timeouts
from sfasync.targets import FORMATS, check_format, file_name, file_target
from sfasync.workers import Workers
from tests.support import servers

SIZE = 1 << 20


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers(2)
    yield workers
    workers.close()


@pytest.fixture
def endpoints(workers: Workers) -> Endpoints:
    return Endpoints(Limits(), Timeouts(), workers, Retry())


async def make(
    endpoints: Endpoints, workers: Workers, path: Path, *, image_format: str = "raw", force: bool = False
) -> None:
    """An image with data at its beginning."""
    target = file_target(endpoints, path, size=SIZE, image_format=image_format, force=force, workers=workers)
    async with target as opened:
        await opened.sink.write(0, b"x" * 4096)
        await opened.sink.flush()
        assert opened.name == str(path)
        assert path.exists() == force, "a file appears when it is complete"


@pytest.mark.parametrize("image_format", FORMATS)
async def test_files_are_for_their_owner_alone(
    tmp_path: Path, endpoints: Endpoints, workers: Workers, image_format: str
) -> None:
    path = tmp_path / f"disk.{image_format}"
    await make(endpoints, workers, path, image_format=image_format)
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("directory", ["a:b", "-x", "json:{}", "x,size=1"])
async def test_a_directory_is_no_protocol_and_no_option(
    tmp_path: Path, endpoints: Endpoints, workers: Workers, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(directory).mkdir()
    await make(endpoints, workers, Path(directory, "disk.qcow2"), image_format="qcow2")


@pytest.mark.parametrize("image_format", FORMATS)
async def test_where_nothing_can_be_created_that_is_what_is_told(
    endpoints: Endpoints, workers: Workers, image_format: str
) -> None:
    with pytest.raises(StorageError, match="No such file or directory"):
        await make(endpoints, workers, Path("/proc") / f"disk.{image_format}", image_format=image_format)


@pytest.mark.parametrize("image_format", FORMATS)
async def test_a_failure_leaves_nothing(
    tmp_path: Path, endpoints: Endpoints, workers: Workers, image_format: str
) -> None:
    target = file_target(
        endpoints, tmp_path / "disk", size=SIZE, image_format=image_format, force=False, workers=workers
    )
    with pytest.raises(ZeroDivisionError):
        async with target:
            raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


async def test_a_name_that_is_taken_meanwhile_is_left_alone(
    tmp_path: Path, endpoints: Endpoints, workers: Workers
) -> None:
    path = tmp_path / "disk.raw"
    with pytest.raises(TargetRefusedError, match="exists"):
        async with file_target(endpoints, path, size=SIZE, image_format="raw", force=False, workers=workers):
            path.write_text("mine")
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == [path.name]
    with pytest.raises(TargetRefusedError, match="--force"):
        await make(endpoints, workers, path)
    await make(endpoints, workers, path, force=True)
    assert path.stat().st_size == SIZE


async def test_the_longest_name(tmp_path: Path, endpoints: Endpoints, workers: Workers) -> None:
    await make(endpoints, workers, tmp_path / file_name("d" * 251, "raw"))


@pytest.mark.parametrize(
    ("disk", "image_format", "message"),
    [
        (".", "raw", "cannot be restored to a file"),
        ("..", "qcow2", "cannot be restored to a file"),
        ("d" * 252, "raw", "too long"),
        ("ü" * 50, "raw", "too long"),
    ],
)
def test_names_that_no_file_can_have(disk: str, image_format: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        file_name(disk, image_format)


def test_formats_that_no_file_can_have() -> None:
    for image_format in FORMATS:
        check_format(image_format)
    with pytest.raises(UsageError, match="none of raw, qcow2"):
        check_format("vmdk")


async def test_what_a_killed_restore_left_is_removed(tmp_path: Path, endpoints: Endpoints, workers: Workers) -> None:
    left = [hidden(tmp_path, number) for number in range(5)]
    foreign = tmp_path / ".sfasync-notes.part"
    for path in (*left, foreign):
        path.write_bytes(bytes(SIZE))
        os.utime(path, (0, 0))
    abandoned, recent, link, served, locked = left
    os.utime(recent)
    link.unlink()
    link.symlink_to(foreign)
    with servers.qemu_nbd(served), locked.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        await make(endpoints, workers, tmp_path / "disk.raw")
    assert not abandoned.exists()
    assert sorted(tmp_path.iterdir()) == sorted([recent, link, served, locked, foreign, tmp_path / "disk.raw"])


def hidden(directory: Path, number: int) -> Path:
    return directory / f".sfasync-{number:016x}.part"
