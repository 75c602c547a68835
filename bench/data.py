"""Seeded disk contents."""

from __future__ import annotations

import random
from pathlib import Path

MIB = 1 << 20


def make_image(path: Path, size: int) -> None:
    """Write a raw image: of each ten MiB five cannot be compressed, three are text, two are holes."""
    words = [f"{random.Random(n).getrandbits(40):x}" for n in range(5000)]
    with path.open("wb") as image:
        image.truncate(size)
        for offset in range(0, size, MIB):
            source = random.Random(offset)
            kind = (offset // MIB) % 10
            if kind < 5:
                piece = source.randbytes(MIB)
            elif kind < 8:
                piece = " ".join(source.choices(words, k=MIB // 10)).encode()
            else:
                continue
            image.seek(offset)
            image.write(piece[: min(MIB, size - offset)])
