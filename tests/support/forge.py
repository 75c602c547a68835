"""Objects of a repository as somebody writes them who knows the format, and means harm: their digests are right."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfasync.store.index import encode_index
from sfasync.store.names import backup_key, index_key, pack_key, vm_name
from sfasync.store.objects import DIGEST_SIZE, ObjectKind, encode, encode_head, frame_digest
from sfasync.store.packs import Blob, Pack, PackClass
from sfasync.store.seal import BlobKind
from sfasync.store.tree import disk_digest

_SESSION = b"0" * 32 + b"." + b"0" * 15 + b"1"


class Forge:
    """Writes to the repository in a directory, past everything that keeps it consistent."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.repository = (place / "config").read_bytes()[20:36]

    def put(self, kind: ObjectKind, key: str, payload: bytes, *, over: tuple[int, bytes] | None = None) -> None:
        """Write an object; `over` puts other bytes at an offset of it."""
        body = bytearray(encode(kind, key, self.repository, payload)[:-DIGEST_SIZE])
        if over is not None:
            body[over[0] : over[0] + len(over[1])] = over[1]
        path = self.place / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(body + frame_digest().update(bytes(body)).digest())

    def payload(self, key: str) -> bytes:
        """The payload of an object that is there."""
        data = (self.place / key).read_bytes()
        return data[46 + len(key) : -DIGEST_SIZE]

    def manifest(self, vm: str, seq: int, **changes: Any) -> None:
        """Change fields of a manifest; those of its disks by the field ``disks``."""
        key = backup_key(vm_name(self.repository, vm), seq)
        record = json.loads(self.payload(key)) | changes
        payload = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        self.put(ObjectKind.MANIFEST, key, payload)

    def disk(self, vm: str, seq: int, **changes: Any) -> None:
        """Change fields of the first disk of a manifest; its tree digest follows size and root."""
        disk = json.loads(self.payload(backup_key(vm_name(self.repository, vm), seq)))["disks"][0] | changes
        disk["tree"] = disk_digest(disk["size"] % 2**64, bytes.fromhex(disk["root"])).hex()
        self.manifest(vm, seq, disks=[disk])

    def pack(self, class_: PackClass, blobs: Sequence[tuple[BlobKind, bytes, int, bytes]]) -> Pack:
        """Write a pack of blobs: (kind, name, raw length, sealed bytes)."""
        pack = frame_digest().update(repr(blobs).encode()).digest(16)
        data = encode_head(ObjectKind.PACK, pack_key(pack), self.repository)
        data += struct.pack("<I16sH", class_, bytes(16), 0) + struct.pack("<H", len(_SESSION)) + _SESSION
        placed = []
        for kind, name, raw, sealed in blobs:
            placed.append(Blob(kind, name, raw, len(data), len(sealed)))
            data += sealed
        trailer = len(data)
        data += b"".join(struct.pack("<32sIIII", b.name, b.kind, b.raw, b.offset, b.length) for b in placed)
        size = len(data) + 20 + DIGEST_SIZE
        data += struct.pack("<QIQ", trailer, len(placed), size)
        digest = frame_digest().update(data).digest()
        path = self.place / pack_key(pack)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data + digest)
        return Pack(pack, digest, size, class_, placed)

    def index(self, *packs: Pack) -> None:
        """Write an index object of packs that are there, or are not."""
        index = frame_digest().update(repr(packs).encode()).digest(16)
        self.put(ObjectKind.INDEX, index_key(index), encode_index(packs))
