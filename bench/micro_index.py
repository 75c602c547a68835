"""Writing an index object, taking it into the cache, looking blobs up: ``python -m bench.micro_index``."""

from __future__ import annotations

from functools import partial
from itertools import count, cycle, islice

from sfasync.store.cache import IndexCache
from sfasync.store.index import IndexReader, encode_index
from sfasync.store.packs import Blob, Pack, PackClass
from sfasync.store.seal import BlobKind
from sfasync.store.tree import Geometry, page_digest
from sfasync.units import MiB, TiB

from .data import noise
from .timing import report

_PACKS, _BLOBS = 64, 256


def packs() -> list[Pack]:
    """Packs with as many blobs as one index object covers."""
    names = noise(32 * _PACKS * _BLOBS)
    blobs = [[_blob(names, pack, blob) for blob in range(_BLOBS)] for pack in range(_PACKS)]
    return [Pack(bytes([n]) * 16, bytes(32), 32 * MiB, PackClass.DATA, content) for n, content in enumerate(blobs)]


def _blob(names: bytes, pack: int, blob: int) -> Blob:
    start = 32 * (pack * _BLOBS + blob)
    return Blob(BlobKind.CHUNK, names[start : start + 32], MiB, 4096 + blob * 1000, 1000)


def take_in(cache: IndexCache, numbers: count[int], payload: bytes) -> None:
    """One more index object in the cache."""
    cache.add(next(numbers).to_bytes(16, "big"), IndexReader(memoryview(payload), "index"))


def main() -> None:
    """Measure an index object of 16,384 blobs."""
    covered = packs()
    payload = encode_index(covered)
    report("encode", partial(encode_index, covered), count=1)
    cache = IndexCache(None, bytes(16))
    report("take in", partial(take_in, cache, count(), payload), count=1)
    cache.set_usable(pack.id for pack in covered)
    known = cycle([(blob.name, MiB) for pack in covered for blob in pack.blobs])
    unknown = cycle([(noise(32, seed), MiB) for seed in range(1000)])
    report("find a blob", lambda: cache.usable(BlobKind.CHUNK, [next(known)]), count=5000)
    report("miss a blob", lambda: cache.usable(BlobKind.CHUNK, [next(unknown)]), count=5000)
    report("miss 16 blobs", lambda: cache.usable(BlobKind.CHUNK, list(islice(unknown, 16))), count=500)
    cache.close()
    report("page digest, full", partial(page_digest, noise(32 * 128)), count=500)
    report("page digest, one child", partial(page_digest, noise(32) + bytes(32 * 127)), count=500)
    report("depth of a disk", lambda: Geometry(10 * TiB, MiB).depth, count=5000)


if __name__ == "__main__":
    main()
