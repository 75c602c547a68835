"""What it takes to write packs and to read blobs from them: ``python -m bench.micro_pack [DIRECTORY]``."""

from __future__ import annotations

import secrets
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from sfasync.store.local import LocalStore
from sfasync.store.names import pack_key
from sfasync.store.packs import Pack, PackClass, PackReader, PackWriter
from sfasync.store.seal import BlobKind, Sealed

from .data import MIB, noise
from .timing import report

_REPOSITORY = bytes(16)
_BLOBS = 64  # of 512 KiB: a pack of 32 MiB


def write_pack(store: LocalStore, blob: bytes) -> Pack:
    """A durable pack with that blob in it again and again."""
    writer = PackWriter(store, secrets.token_bytes(16), _REPOSITORY, PackClass.DATA, "bench")
    for number in range(_BLOBS):
        writer.append(BlobKind.CHUNK, [Sealed(number.to_bytes(32, "big"), MIB, blob)])
    return writer.close()


def read_pack(store: LocalStore, pack: Pack) -> None:
    """All of a pack, checked."""
    for _ in PackReader(store, pack.id, _REPOSITORY).read_all():
        pass


def main() -> None:
    """Measure packs of 32 MiB in a directory of its own."""
    place = Path(tempfile.mkdtemp(prefix="bench-pack-", dir=sys.argv[1] if len(sys.argv) > 1 else None))
    store = LocalStore(place)
    try:
        blob = noise(MIB // 2)
        report("write and sync", partial(write_pack, store, blob), count=2, size=_BLOBS * len(blob))
        pack = write_pack(store, blob)
        buffer = memoryview(bytearray(len(blob)))
        at = pack.blobs[_BLOBS // 2].offset
        report("read a blob", partial(store.read_into, pack_key(pack.id), at, buffer), count=64, size=len(blob))
        report("read and check all", partial(read_pack, store, pack), count=2, size=_BLOBS * len(blob))
    finally:
        store.close()
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
