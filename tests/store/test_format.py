"""A second reader, written from docs/format.md alone, reads what the first writer wrote."""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from blake3 import blake3

from sfasync import Engine
from sfasync.store.names import end_key, vm_name
from sfasync.store.objects import ObjectKind, encode
from sfasync.store.repository import Repository

from ..support.tracking import TrackingPlatform
from .support import CHUNK, back_up, noise, text

pytestmark = pytest.mark.one_loop  # what is looked at is files

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PAGE = Path(__file__).parents[2] / "docs/format.md"
ZERO = bytes(32)


def digest(context: str, *data: bytes) -> bytes:
    return blake3(b"".join(data), derive_key_context=context).digest()


def tree(leaves: list[bytes]) -> bytes:
    while len(leaves) > 1:
        pairs = [leaves[n : n + 2] for n in range(0, len(leaves), 2)]
        leaves = [pair[0] if len(pair) == 1 else node(*pair) for pair in pairs]
    return leaves[0] if leaves else ZERO


def node(left: bytes, right: bytes) -> bytes:
    return ZERO if left == right == ZERO else digest("sfasync 1 node", left, right)


def content(data: bytes) -> bytes:
    pieces = [data[n : n + 262144] for n in range(0, len(data), 262144)]
    return tree([digest("sfasync 1 leaf", piece) if any(piece) else ZERO for piece in pieces])


class Reader:
    """Sections 2 to 7."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repository = (root / "config").read_bytes()[20:36]
        config = json.loads(self.frame("config", 1))
        assert bytes.fromhex(config["id"]) == self.repository
        self.chunk_size = config["chunk_size"]
        self.index: dict[tuple[int, bytes, int], list[tuple[str, int, int]]] = {}
        for path in sorted((root / "domains/default/index").iterdir()):
            with suppress(AssertionError):  # damaged, and replaced by another one
                self.load_index(self.frame(f"domains/default/index/{path.name}", 3))

    def frame(self, name: str, kind: int) -> bytes:
        data = (self.root / name).read_bytes()
        assert digest("sfasync 1 frame", data[:-32]) == data[-32:]
        assert data[:8] == bytes.fromhex("895346410d0a1a0a")
        *fixed, read, write = struct.unpack_from("<HHII", data, 8)
        assert (fixed, read & ~1, write) == ([1, kind], 0, 0)
        assert data[20:36] == self.repository
        length = int.from_bytes(data[36:38], "little")
        assert data[38 : 38 + length].decode() == name
        payload = data[46 + length : -32]
        assert (b'"audit":' in payload or b'"suspect":' in payload) == bool(read)
        assert int.from_bytes(data[38 + length : 46 + length], "little") == len(payload)
        return payload

    def load_index(self, payload: bytes) -> None:
        packs, rows, superseded = struct.unpack_from("<III", payload)
        ids = [payload[12 + 60 * n : 28 + 60 * n].hex() for n in range(packs)]
        start = 12 + 60 * packs + 16 * superseded + 1024
        assert start + 56 * rows == len(payload)
        for name, kind, raw, pack, _, offset, length in struct.iter_unpack("<32sIIIIII", payload[start:]):
            self.index.setdefault((kind, name, raw), []).append((ids[pack], offset, length))

    def blob(self, kind: int, name: bytes, raw: int) -> bytes:
        if name == ZERO:
            return bytes(raw)
        for copy in self.index[kind, name, raw]:
            with suppress(AssertionError, OSError, zstd.ZstdError):
                return self.copy(kind, name, raw, *copy)
        raise AssertionError("no copy of it is good")

    def copy(self, kind: int, name: bytes, raw: int, pack: str, offset: int, length: int) -> bytes:
        sealed = (self.root / f"domains/default/packs/{pack[:2]}/{pack}").read_bytes()[offset : offset + length]
        data = sealed if length == raw else zstd.decompress(sealed)
        assert len(data) == raw
        assert (tree(split(data)) if kind == 2 else content(data)) == name
        return data

    def manifest(self, vm: str, seq: int) -> dict:  # type: ignore[type-arg]  # JSON
        key = digest("sfasync 1 vm name", self.repository)
        name = blake3(vm.encode(), key=key).digest()[:16].hex()
        payload = self.frame(f"domains/default/backups/{name}/{seq:016x}", 4)
        manifest = json.loads(payload)
        spelled = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert spelled.encode() == payload
        assert (manifest["vm"], manifest["seq"]) == (vm, seq)
        return dict(manifest)

    def said_of(self, manifest: dict) -> tuple[list[str], str, set[str]]:  # type: ignore[type-arg]  # JSON
        key = digest("sfasync 1 vm name", self.repository)
        name = "domains/default/annotations/" + blake3(manifest["vm"].encode(), key=key).digest()[:16].hex()
        tags, note, suspect = manifest["tags"], "", set()
        for path in sorted((self.root / name).glob(f"{manifest['seq']:016x}.*")):
            said = json.loads(self.frame(f"{name}/{path.name}", 8))
            assert said["backup"] == manifest["id"]
            tags = [tag for tag in tags if tag not in said["remove"]]
            tags += [tag for tag in said["add"] if tag not in tags]
            note = note if said["note"] is None else said["note"]
            suspect |= set(said.get("suspect", []))
        return tags, note, suspect

    def disk(self, record: dict) -> Iterator[bytes]:  # type: ignore[type-arg]  # JSON
        size, root = record["size"], bytes.fromhex(record["root"])
        assert digest("sfasync 1 disk", size.to_bytes(8, "little"), root).hex() == record["tree"]
        level = 0
        while self.nodes(size, level) > 1:
            level += 1
        yield from self.below(size, level, 0, root)

    def nodes(self, size: int, level: int) -> int:
        return int(-(-size // (self.chunk_size * 128**level)))

    def below(self, size: int, level: int, index: int, name: bytes) -> Iterator[bytes]:
        if level == 0:
            yield self.blob(1, name, min(self.chunk_size, size - index * self.chunk_size))
            return
        children = min(128, self.nodes(size, level - 1) - 128 * index)
        for number, child in enumerate(split(self.blob(2, name, 32 * children))):
            yield from self.below(size, level - 1, 128 * index + number, child)


def split(page: bytes) -> list[bytes]:
    return [page[n : n + 32] for n in range(0, len(page), 32)]


def check_pack(data: bytes) -> None:
    """Section 4: every byte of a pack is accounted for."""
    assert digest("sfasync 1 frame", data[:-32]) == data[-32:]
    trailer, rows, size = struct.unpack_from("<QIQ", data, len(data) - 52)
    assert size == len(data)
    position = 38 + int.from_bytes(data[36:38], "little")
    class_, key, key_length = struct.unpack_from("<I16sH", data, position)
    assert class_ in (1, 2)
    assert (key, key_length) == (bytes(16), 0)
    position += 22
    session = int.from_bytes(data[position : position + 2], "little")
    assert re.fullmatch(rb"[0-9a-f]{32}\.[0-9a-f]{16}", data[position + 2 : position + 2 + session])
    position += 2 + session
    for _, _, _, offset, length in struct.iter_unpack("<32sIIII", data[trailer : trailer + 48 * rows]):
        assert offset == position
        position += length
    assert position == trailer
    assert trailer + 48 * rows + 52 == len(data)


async def test_a_second_reader_reads_everything(repository: Repository, place: Path) -> None:
    chunk = repository.chunk_size
    contents = {
        "sparse": noise(chunk, 1) + bytes(140 * chunk) + text(3 * chunk, 2) + b"end",
        "small": b"small",
        "zero": bytes(5 * chunk),
        "empty": b"",
        "dévice ☃": text(130 * chunk),
    }
    for _ in range(2):
        await back_up(repository, "web-01", contents)
    reader = Reader(place)
    for seq in (1, 2):
        manifest = reader.manifest("web-01", seq)
        assert {disk["id"]: b"".join(reader.disk(disk)) for disk in manifest["disks"]} == contents
    for path in place.glob("domains/default/packs/*/*"):
        check_pack(path.read_bytes())


async def test_a_second_reader_reads_what_was_said_later(repository: Repository, place: Path) -> None:
    backup = await back_up(repository, "dévice", {"vda": b"x"})
    await repository.annotate(backup.id, add=["é", "b"], note="☃")
    await repository.annotate(backup.id, remove=["é"], add=["c"])
    reader = Reader(place)
    assert reader.said_of(reader.manifest("dévice", 1)) == (["b", "c"], "☃", set())


async def test_a_second_reader_reads_what_audits_left(repository: Repository, place: Path) -> None:
    platform = TrackingPlatform({"vda": noise(30 * CHUNK, 3), "vdb": b""})
    async with Engine(repository) as engine:
        await engine.backup_vm("web-01", platform=platform)
        for _ in range(2):
            last = await engine.backup_vm("web-01", platform=platform, audit=7)
    await repository.distrust(await repository.find(last.id), "vda")
    reader = Reader(place)
    full, *audited = (reader.manifest("web-01", seq) for seq in (1, 2, 3))
    assert [reader.said_of(backup)[2] for backup in (full, *audited)] == [set(), {"vda"}, {"vda"}]
    assert "audit" not in full["disks"][0]
    for times, backup in enumerate(audited, 1):
        vda, vdb = (disk["audit"] for disk in backup["disks"])
        assert (vda["chunks"], vda["position"], vdb) == (7, 7 * times, None)
        assert b"".join(reader.disk(backup["disks"][0])) == noise(30 * CHUNK, 3)


def test_the_examples_are_right() -> None:
    page = PAGE.read_text()
    repository = bytes(range(16))
    vm = vm_name(repository, "web-01")
    assert f"`{repository.hex()}`, VM `web-01` gives `{vm}`" in page
    end = encode(ObjectKind.END, end_key(vm, 1), repository, b"")
    dump = "".join(f"{n:04x}  {end[n : n + 16].hex(' ')}\n" for n in range(0, len(end), 16))
    assert dump in page
    a, b = b"\x01" * 262144, b"\x02" * 1000
    root = content(a + b)
    tree_digest = digest("sfasync 1 disk", len(a + b).to_bytes(8, "little"), root)
    for name, value in (("a    ", content(a)), ("b    ", content(b)), ("root ", root), ("tree ", tree_digest)):
        assert f"{name} {value.hex()}\n" in page
