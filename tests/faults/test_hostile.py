"""A repository that somebody has prepared to do harm: commands end soon, in little memory, and write only where asked.

Digests are right wherever the one who prepares it can make them so. Each command is the real one, its memory what the
kernel says it had at most. It ends with 22 or 10, or does what it is there for where that does not need what is wrong.
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from sfasync.store.codec import MAX_RECORD
from sfasync.store.index import MAX_INDEX
from sfasync.store.names import BACKUPS, CONFIG, INDEX, PACKS, SESSIONS, backup_key, vm_name
from sfasync.store.objects import ObjectKind
from sfasync.store.packs import Blob, Pack, PackClass
from sfasync.store.seal import BlobKind
from sfasync.store.tree import FANOUT, page_digest

from ..support.forge import Forge
from ..support.servers import nbdkit
from .site import DISK, VM, Site

MIB = 1 << 20
SECONDS, MEMORY = 10.0, 256 * MIB

_DONE = frozenset({0})
_REFUSED = frozenset({10, 22})
_EITHER = _DONE | _REFUSED


@dataclass
class Trap:
    """A repository with one backup, and a place that must stay as it is."""

    site: Site
    outside: Path
    target: Path
    uri: str
    seconds: float = SECONDS
    worst_seconds: float = 0.0
    worst_memory: float = 0.0

    def __post_init__(self) -> None:
        self.place = self.site.repository
        self.forge = Forge(self.place)

    def only(self, part: str) -> Path:
        """The first object of a kind."""
        return min(path for path in (self.place / part).rglob("*") if path.is_file())

    def run(self, *arguments: str) -> int:
        """The exit status of a command, which must be quick and small, and say one line when it fails."""
        peak = self.outside.parent / "peak"
        peak.unlink(missing_ok=True)
        process = self.site.start(*arguments, program=("tests.support.peak", str(peak)))
        try:
            status = process.wait(6 * self.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"{arguments[0]} does not end")
        seconds, memory = (float(number) for number in peak.read_text().split())
        assert seconds < self.seconds, f"{arguments[0]} took {seconds:.1f} s of the processor"
        assert memory < MEMORY, f"{arguments[0]} took {memory / MIB:.0f} MiB"
        if status != 0:
            assert "Traceback" not in self.site.said()
            assert "internal error" not in self.site.said(), self.site.said()
        self.worst_seconds = max(self.worst_seconds, seconds)
        self.worst_memory = max(self.worst_memory, memory)
        return status

    def spring(self, verify: frozenset[int], restore: frozenset[int], backup: frozenset[int]) -> None:
        """Verify, list, restore and back up, and look at what is outside."""
        outside = _content(self.outside)
        for expected, *arguments in (
            (_EITHER, "verify"),
            (verify, "verify", "--data"),
            (_EITHER, "list"),
            (restore, "restore", f"{VM}@latest", "--to", str(self.target), "--force"),
            (backup, "backup", VM, "--disk", f"{DISK}={self.uri}"),
        ):
            status = self.run(*arguments)
            assert status in expected, f"{arguments}: {status}, {self.site.said()}"
            if arguments[0] == "restore":
                self._check_target(status)
        assert _content(self.outside) == outside, "something was written outside"

    def _check_target(self, status: int) -> None:
        """A restore leaves the whole disk, or nothing."""
        found = sorted(self.target.glob("**/*"))
        if status != 0:
            assert found == [], found
        for path in found:
            assert path.parent == self.target
            assert path.name == "disk.raw" or path.name.startswith("..%2F"), path


def _content(directory: Path) -> dict[str, bytes | int]:
    """Everything below a directory, and when it was changed last."""
    found: dict[str, bytes | int] = {}
    for path in (directory, *directory.rglob("*")):
        found[str(path)] = path.read_bytes() if path.is_file() else path.stat().st_mtime_ns
    return found


# --- something else in the place of an object -----------------------------------------------------------------------

_PARTS = {"configuration": CONFIG, "manifest": BACKUPS, "index": INDEX, "pack": PACKS}


def elsewhere(trap: Trap, part: str) -> None:
    """A symbolic link to an object that lies outside."""
    path = _object(trap, part)
    shutil.move(path, trap.outside / "moved")
    path.symlink_to(trap.outside / "moved")


def pipe(trap: Trap, part: str) -> None:
    path = _object(trap, part)
    path.unlink()
    os.mkfifo(path)


def device(trap: Trap, part: str) -> None:
    """/dev/zero, which can be read for ever."""
    if os.geteuid() != 0:
        pytest.skip("making a device needs root")
    path = _object(trap, part)
    path.unlink()
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))


def directory(trap: Trap, part: str) -> None:
    path = _object(trap, part)
    path.unlink()
    path.mkdir()


def _object(trap: Trap, part: str) -> Path:
    return trap.place / CONFIG if part == CONFIG else trap.only(part)


def linked_directory(trap: Trap, part: str) -> None:
    """A symbolic link in the place of a directory, to where all of its objects are."""
    path = trap.place / part.rstrip("/")
    path.mkdir(exist_ok=True)
    shutil.move(path, trap.outside / "moved")
    path.symlink_to(trap.outside / "moved")


# --- objects whose digests are right ---------------------------------------------------------------------------------


def _own_manifest(trap: Trap) -> str:
    return backup_key(vm_name(trap.forge.repository, VM), 1)


def deep_json(trap: Trap, depth: int) -> None:
    trap.forge.put(ObjectKind.MANIFEST, _own_manifest(trap), b"[" * depth)


def long_number(trap: Trap) -> None:
    payload = trap.forge.payload(_own_manifest(trap)).replace(b'"seq":1', b'"seq":' + b"9" * 60_000)
    trap.forge.put(ObjectKind.MANIFEST, _own_manifest(trap), payload)


def number_bomb(trap: Trap) -> None:
    payload = trap.forge.payload(_own_manifest(trap)).replace(b'"seq":1', b'"seq":1e999999999')
    trap.forge.put(ObjectKind.MANIFEST, _own_manifest(trap), payload)


def deep_configuration(trap: Trap) -> None:
    trap.forge.put(ObjectKind.CONFIG, CONFIG, b'{"id":' * 10_000)


def unknown_version(trap: Trap) -> None:
    key = _own_manifest(trap)
    trap.forge.put(ObjectKind.MANIFEST, key, trap.forge.payload(key), over=(8, struct.pack("<H", 2)))


def unknown_feature(trap: Trap) -> None:
    key = str(trap.only(INDEX).relative_to(trap.place))
    trap.forge.put(ObjectKind.INDEX, key, trap.forge.payload(key), over=(12, struct.pack("<I", 1 << 31)))


def newer_repository(trap: Trap) -> None:
    trap.forge.put(ObjectKind.CONFIG, CONFIG, trap.forge.payload(CONFIG), over=(8, struct.pack("<H", 2)))


def newer_for_writers(trap: Trap) -> None:
    trap.forge.put(ObjectKind.CONFIG, CONFIG, trap.forge.payload(CONFIG), over=(16, struct.pack("<I", 1)))


def foreign(trap: Trap, part: str) -> None:
    """An object of another repository, under the name that one of this has."""
    other = Site(trap.outside, trap.outside / "other", seed=2)
    other.init()
    assert other.back_up(trap.uri) == 0
    source = Trap(other, trap.outside, trap.target, trap.uri)
    shutil.copyfile(_object(source, part), _object(trap, part))


def endless_disk(trap: Trap) -> None:
    trap.forge.disk(VM, 1, size=2**63)


def small_disk(trap: Trap) -> None:
    """A disk that is shorter than its pages."""
    trap.forge.disk(VM, 1, size=5)


def name_of_a_path(trap: Trap) -> None:
    trap.forge.disk(VM, 1, id="../../../outside/disk")


def name_of_nothing(trap: Trap) -> None:
    trap.forge.disk(VM, 1, id="..")


def counted_wrong(trap: Trap) -> None:
    """An index object that says it has ten million rows."""
    key = str(trap.only(INDEX).relative_to(trap.place))
    payload = bytearray(trap.forge.payload(key))
    payload[4:8] = struct.pack("<I", 10**7)
    trap.forge.put(ObjectKind.INDEX, key, bytes(payload))


def wrong_fan_out(trap: Trap) -> None:
    key = str(trap.only(INDEX).relative_to(trap.place))
    payload = bytearray(trap.forge.payload(key))
    start = 12 + 60 * int.from_bytes(payload[:4], "little")
    payload[start : start + 1024] = b"\xff" * 1024
    trap.forge.put(ObjectKind.INDEX, key, bytes(payload))


def ten_million_rows(trap: Trap) -> None:
    """They take 560 MB; the file is sparse."""
    with trap.only(INDEX).open("r+b") as index:
        index.truncate(10**7 * 56)


def as_many_rows_as_may_be(trap: Trap) -> None:
    """An index object of the largest size, of one pack that is not there; each blob has another name."""
    count = (MAX_INDEX - 4096) // 56
    row = Blob(BlobKind.CHUNK, b"", 4096, 100, 4096)
    blobs = [row._replace(name=number.to_bytes(32, "big")) for number in range(count)]
    # ordinals may not be higher than 65,535
    packs = [
        Pack(bytes([9]) * 15 + bytes([n]), bytes(32), 4 * MIB, PackClass.DATA, blobs[n * 65536 : (n + 1) * 65536])
        for n in range(-(-count // 65536))
    ]
    trap.forge.index(*packs)


def crowded_pack(trap: Trap) -> None:
    """The same, but all rows say that they are the first of one small pack that is there."""
    count = (MAX_INDEX - 4096) // 56
    pack = trap.forge.pack(PackClass.DATA, [(BlobKind.CHUNK, bytes(31) + b"x", 16, b"0123456789abcdef")])
    fields = struct.pack("<16s32sQI", pack.id, pack.digest, pack.size, pack.class_)
    start = pack.blobs[0].offset
    rows = b"".join(number.to_bytes(32, "big") + struct.pack("<6I", 1, 16, 0, 0, start, 16) for number in range(count))
    payload = struct.pack("<III", 1, count, 0) + fields + struct.pack("<I", count) * 256 + rows
    trap.forge.put(ObjectKind.INDEX, f"{INDEX}{'ab' * 16}", payload)


def bomb(trap: Trap, frame: bytes, raw: int = MIB) -> None:
    """A chunk whose frame is not what the index says; it is all that the disk consists of."""
    name = b"\x01" * 32
    trap.forge.index(trap.forge.pack(PackClass.DATA, [(BlobKind.CHUNK, name, raw, frame)]))
    trap.forge.disk(VM, 1, size=raw, root=name.hex())


def _zeros(size: int, claimed: int | None) -> bytes:
    """A frame of zeros (RFC 8878): blocks of one repeated byte, and whatever content size."""
    block = (128 << 10 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (128 << 10 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    blocks = block * (size // (128 << 10) - 1) + last
    if claimed is None:
        return b"\x28\xb5\x2f\xfd\x00\x58" + blocks  # a window of 2 MiB, no content size
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", claimed) + blocks


def tall_tree(trap: Trap, leaf: bytes) -> None:
    """A disk of 2^62 bytes in which each page consists of one page, 128 times."""
    digest, pages = leaf, []
    for _ in range(6):
        page = digest * FANOUT
        digest = page_digest(page)
        pages.append((BlobKind.PAGE, digest, len(page), page))
    trap.forge.index(trap.forge.pack(PackClass.META, pages))
    trap.forge.disk(VM, 1, size=MIB * FANOUT**6, root=digest.hex())


def many_files(trap: Trap) -> None:
    """Ten thousand files that are not ours, everywhere."""
    for number in range(10_000):
        (trap.place / _PLACES[number % len(_PLACES)] / f"file {number}").touch()


_PLACES = ("domains/default/sessions", "domains/default/packs", "domains/default/index", "domains", "")


@dataclass(frozen=True)
class Case:
    """What is done to the repository, and how commands may end then."""

    prepare: Callable[[Trap], None]
    verify: frozenset[int] = _REFUSED
    restore: frozenset[int] = _REFUSED
    backup: frozenset[int] = _EITHER
    seconds: float = SECONDS

    def spring(self, trap: Trap) -> None:
        """Prepare the trap, and run into it."""
        self.prepare(trap)
        trap.seconds = self.seconds
        trap.spring(self.verify, self.restore, self.backup)


CASES = {
    f"{what.__name__}-{name}": Case(
        partial(what, part=part),
        restore=_EITHER if part == INDEX else _REFUSED,  # the cache knows what is in it
        backup=_REFUSED if part == CONFIG else _EITHER,
    )
    for what in (elsewhere, pipe, device)
    for name, part in _PARTS.items()
}
CASES["directory-configuration"] = Case(partial(directory, part=CONFIG), backup=_REFUSED)
CASES["directory-pack"] = Case(partial(directory, part=PACKS))  # elsewhere an empty one looks as if nothing was there
CASES |= {
    f"linked-{part.strip('/').rpartition('/')[2]}": Case(
        partial(linked_directory, part=part), _EITHER, restore, _REFUSED
    )
    for part, restore in (
        ("domains/", _REFUSED),
        (PACKS, _REFUSED),
        (INDEX, _EITHER),  # the cache knows it all
        (BACKUPS, _REFUSED),
        (SESSIONS, _DONE),
    )
}
CASES |= {
    "deep-json": Case(partial(deep_json, depth=100_000)),
    "deep-json-of-a-possible-size": Case(partial(deep_json, depth=MAX_RECORD - 1)),
    "long-number": Case(long_number),
    "number-bomb": Case(number_bomb),
    "deep-configuration": Case(deep_configuration, backup=_REFUSED),
    "unknown-version": Case(unknown_version),
    "unknown-feature": Case(unknown_feature, restore=_EITHER),
    "newer-repository": Case(newer_repository, backup=_REFUSED),
    "newer-for-writers": Case(newer_for_writers, _DONE, _DONE, _REFUSED),
    "foreign-manifest": Case(partial(foreign, part=BACKUPS)),
    "foreign-index": Case(partial(foreign, part=INDEX), restore=_EITHER),
    "foreign-pack": Case(partial(foreign, part=PACKS), restore=_EITHER),  # it has the same disk
    "endless-disk": Case(endless_disk),
    "small-disk": Case(small_disk),
    "name-of-a-path": Case(name_of_a_path, _DONE, _DONE, _DONE),
    "name-of-nothing": Case(name_of_nothing, _DONE, frozenset({2}), _DONE),
    "counted-wrong": Case(counted_wrong, restore=_EITHER),
    "wrong-fan-out": Case(wrong_fan_out, restore=_EITHER),
    "ten-million-rows": Case(ten_million_rows, restore=_EITHER),
    # the largest index there may be is read, in 4 s on an idle machine; what is in quarantine then is no news
    "as-many-rows-as-may-be": Case(as_many_rows_as_may_be, _EITHER, _DONE, _DONE, seconds=40.0),
    "crowded-pack": Case(crowded_pack, restore=_DONE, backup=_DONE),
    "bomb-of-64-GiB": Case(partial(bomb, frame=_zeros(MIB, 64 << 30))),
    "bomb-without-a-size": Case(partial(bomb, frame=_zeros(256 * MIB, None))),
    "bomb-that-lies": Case(partial(bomb, frame=_zeros(256 * MIB, MIB))),
    "bomb-in-a-window": Case(partial(bomb, frame=b"\x28\xb5\x2f\xfd\xc0\xa8" + struct.pack("<Q", MIB) + b"\1\0\0")),
    "tall-tree": Case(partial(tall_tree, leaf=b"\x02" * 32), restore=_REFUSED | {21}),  # no file can be so long
    "many-files": Case(many_files, _DONE, _DONE, _DONE),
}
FEW = ("pipe-manifest", "linked-packs", "tall-tree", "bomb-that-lies")


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    for name in ("outside", "target", "site"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside/witness").write_text("must not change")
    site = Site(tmp_path / "site", tmp_path / "repository")
    site.init()
    with nbdkit("file", site.image, "--readonly") as server:
        assert site.back_up(server.uri) == 0, site.said()
        yield Trap(site, tmp_path / "outside", tmp_path / "target", server.uri)


@pytest.mark.parametrize("name", FEW)
def test_a_few_traps(trap: Trap, name: str) -> None:
    CASES[name].spring(trap)


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CASES)
def test_every_trap(trap: Trap, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    CASES[name].spring(trap)
    with capsys.disabled():
        print(f" {trap.worst_seconds:.1f} s, {trap.worst_memory / MIB:.0f} MiB at most ", end="")
