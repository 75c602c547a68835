"""Objects in a directory: nothing half-done, nothing followed, nothing for others to read."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfasync.errors import IntegrityError, NoSpaceError, ObjectMissingError, StorageError
from sfasync.store import local
from sfasync.store.local import LocalStore
from sfasync.units import MiB

from ..contracts.object_store import ObjectStoreCase, ObjectStoreContract
from .support import files


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    opened = LocalStore(tmp_path)
    yield opened
    opened.close()
    opened.close()


class TestLocalStore(ObjectStoreContract):
    @pytest.fixture
    def case(self, tmp_path: Path, store: LocalStore) -> Iterator[ObjectStoreCase]:
        other = LocalStore(tmp_path)
        yield ObjectStoreCase(store, other)
        other.close()


class TestWithoutNamelessFiles(ObjectStoreContract):
    """As on file systems that have no O_TMPFILE."""

    @pytest.fixture
    def case(self, tmp_path: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStoreCase]:
        no_nameless_files(monkeypatch)
        other = LocalStore(tmp_path)
        yield ObjectStoreCase(store, other)
        other.close()
        left = [path for path in files(tmp_path) if local.is_temporary(path.name)]
        assert left == []

    def test_a_written_object_appears_whole_at_commit(self, case: ObjectStoreCase) -> None:
        writer = case.store.writer("w/one")
        writer.write(b"abcdef")
        (hidden,) = case.other.list("")
        assert local.is_temporary(hidden.rpartition("/")[2])
        writer.commit()
        assert case.other.list("") == ["w/one"]
        assert case.other.get("w/one", limit=9) == b"abcdef"


def no_nameless_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(directory: int) -> int:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(local, "open_nameless", refuse)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
@pytest.mark.parametrize("nameless", [True, False])
def test_only_the_owner_may_read_whatever_the_umask(
    tmp_path: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch, umask: int, nameless: bool
) -> None:
    if not nameless:
        no_nameless_files(monkeypatch)
    before = os.umask(umask)
    try:
        store.put("a/b/one", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a/b/one").stat().st_mode) == 0o600


def test_symbolic_links_are_not_followed(tmp_path: Path, store: LocalStore) -> None:
    outside = tmp_path.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_bytes(b"secret")
    (tmp_path / "file").symlink_to(outside / "secret")
    (tmp_path / "directory").symlink_to(outside)
    with pytest.raises(IntegrityError, match="not a regular file"):
        store.get("file", limit=99)
    with pytest.raises(IntegrityError, match="not a regular file"):
        store.get("directory/secret", limit=99)
    with pytest.raises(IntegrityError, match="does not lie in directories of the repository"):
        store.put("directory/new", b"x")
    with pytest.raises(IntegrityError, match="does not lie in directories of the repository"):
        store.list("directory/")
    assert not (outside / "new").exists()
    assert store.list("") == ["directory", "file"]


def test_what_is_no_file_is_refused_at_once(tmp_path: Path, store: LocalStore) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    for key in ("fifo", "directory"):
        with pytest.raises(IntegrityError, match="not a regular file"):
            store.get(key, limit=99)
        with pytest.raises(IntegrityError, match="not a regular file"):
            store.size(key)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(IntegrityError, match="not a regular file"):
        store.get("file/below", limit=99)


def test_a_stamp_changes_with_the_object(tmp_path: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("a", b"first")
    assert store.stamps("") == [("a", None)], "so new that another change might not show"
    monkeypatch.setattr(local, "_SETTLED", -(10**12))
    ((_, first),) = store.stamps("")
    assert store.stamps("") == [("a", first)]
    assert first is not None
    store.delete("a")
    store.put("a", b"other")
    assert store.stamps("") != [("a", first)]
    (tmp_path / "link").symlink_to("a")
    assert store.stamps("")[1] == ("link", None)


def test_foreign_names_are_listed(tmp_path: Path, store: LocalStore) -> None:
    (tmp_path / "Ünïcode").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")).write_bytes(b"")
    (tmp_path / "1/2/3/4/5/6/7").mkdir(parents=True)
    (tmp_path / "1/2/3/4/5/6/7/deep").write_bytes(b"")
    (tmp_path / "lost+found").mkdir(mode=0o000)
    assert store.list("") == ["1/2/3/4/5/6/", "Ünïcode", "\udcff\udcfe"]


def test_a_killed_writer_leaves_nothing_and_frees_its_hold(tmp_path: Path, store: LocalStore) -> None:
    program = """
import sys, pathlib
from sfasync.store.local import LocalStore
store = LocalStore(pathlib.Path(sys.argv[1]))
hold = store.hold("sessions/one", b"alive")
writer = store.writer("packs/one")
writer.write(bytes(1 << 20))
print("ready", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert store.held("sessions/one")
        os.kill(process.pid, signal.SIGKILL)
    assert not store.held("sessions/one")
    assert store.list("") == ["sessions/one"]


def test_a_full_file_system_is_told_apart(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: object, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NoSpaceError, match=r"cannot write .*/a/one: No space left on device") as caught:
        store.put("a/one", b"x")
    assert caught.value.path == "a/one"
    monkeypatch.undo()
    assert store.list("") == []


def test_a_failed_fsync_is_fatal_and_not_repeated(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("a/first", b"x")
    calls = []

    def fail(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        store.put("a/one", b"x")
    monkeypatch.undo()
    assert len(calls) == 1
    assert store.list("") == ["a/first"]


def test_a_close_that_fails_is_of_no_interest(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on network file systems, which tell of writes there; fsync has told of those that count."""
    close = os.close

    def fail(fd: int) -> None:
        is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        close(fd)
        if is_file:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "close", fail)
    dropped = store.writer("w/dropped")
    dropped.write(bytes(3 * MiB))  # past the page cache in part: two descriptors
    dropped.abort()
    kept = store.writer("w/kept")
    kept.write(bytes(3 * MiB))
    kept.commit()
    monkeypatch.undo()
    assert store.list("") == ["w/kept"]


def test_a_file_that_is_gone_is_told(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network file system whose server has removed it: not even its size can be asked for."""

    def stale(*_: object) -> int:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    writer = store.writer("w/one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", stale)
        patch.setattr(os, "fstat", stale)
        with pytest.raises(StorageError, match=os.strerror(errno.ESTALE)):
            writer.write(bytes(3 * MiB))
    writer.abort()
    assert store.list("") == []


def test_everything_is_synced_before_the_next_step(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    for name in ("mkdir", "fsync", "link"):
        original = getattr(os, name)

        def record(*args: object, name: str = name, original: object = original, **kwargs: object) -> object:
            steps.append(
                f"{name} {os.path.basename(os.readlink(f'/proc/self/fd/{args[0]}'))}" if name == "fsync" else name
            )
            return original(*args, **kwargs)  # type: ignore[operator]  # os functions of several shapes

        monkeypatch.setattr(os, name, record)
    store.put("a/b/one", b"x")
    monkeypatch.undo()
    kinds = [step.split()[0] for step in steps]
    assert kinds == ["mkdir", "fsync", "mkdir", "fsync", "fsync", "link", "fsync"]
    assert steps[3] == "fsync a"
    assert steps[-1] == "fsync b"


def test_reading_needs_no_right_to_write(tmp_path: Path, store: LocalStore) -> None:
    store.put("a/one", b"x")
    with pytest.raises(ObjectMissingError):
        store.get("a/two", limit=1)
    for path in (tmp_path / "a", tmp_path):
        path.chmod(0o500)
    try:
        assert store.get("a/one", limit=1) == b"x"
        assert store.list("") == ["a/one"]
    finally:
        for path in (tmp_path, tmp_path / "a"):
            path.chmod(0o700)


def test_a_directory_that_vanished_is_made_again(tmp_path: Path, store: LocalStore) -> None:
    store.put("a/b/one", b"x")
    store.delete("a/b/one")
    (tmp_path / "a/b").rmdir()
    store.put("a/b/two", b"x")
    assert store.list("") == ["a/b/two"]


def test_nothing_is_created_when_the_path_leads_elsewhere(tmp_path: Path) -> None:
    place, moved = tmp_path / "place", tmp_path / "moved"
    place.mkdir()
    store = LocalStore(place)
    try:
        store.put("a/one", b"x")
        place.rename(moved)
        with pytest.raises(StorageError, match=r"cannot find .*/place: No such file or directory"):
            store.put("a/two", b"x")
        place.mkdir()
        with pytest.raises(StorageError, match="/place is another directory now; mount or move back the one it was"):
            store.put("a/two", b"x")
        assert store.get("a/one", limit=1) == b"x", "what is being read can be read to its end"
        assert files(place) == []
        place.rmdir()
        moved.rename(place)
        store.put("a/two", b"x")
        assert store.list("") == ["a/one", "a/two"]
    finally:
        store.close()
