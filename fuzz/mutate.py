"""Damage to a valid conversation: the kinds of it that parsers are known to stumble over."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Final

_NUMBERS: Final = {
    ">H": [0, 1, 2, 0x7FFF, 0x8000, 0x8001, 0xFFFF],
    ">I": [0, 1, 511, 512, 4096, 4097, 1 << 16, (1 << 16) + 1, 1 << 31, 2**32 - 1, 0x668E33EF, 0x67446698],
    ">Q": [0, 1, 511, 1 << 20, 1 << 32, (1 << 63) - 1, 1 << 63, 2**64 - 1],
}
"""Values at which something changes: limits, signs, magic numbers."""


def damaged(stream: bytes, other: bytes, chance: random.Random) -> bytes:
    """A conversation with one to four damages, some of them pieces of another conversation."""
    data = bytearray(stream)
    for _ in range(chance.randint(1, 4)):
        if not data:
            break
        chance.choice(_DAMAGES)(data, other, chance)
    return bytes(data)


def _flip(data: bytearray, _: bytes, chance: random.Random) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _number(data: bytearray, _: bytes, chance: random.Random) -> None:
    form = chance.choice(list(_NUMBERS))
    field = struct.pack(form, chance.choice(_NUMBERS[form]))
    at = chance.randrange(len(data))
    data[at : at + len(field)] = field


def _noise(data: bytearray, _: bytes, chance: random.Random) -> None:
    at = chance.randrange(len(data) + 1)
    data[at:at] = chance.randbytes(chance.randint(1, 40))


def _cut(data: bytearray, _: bytes, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _lose(data: bytearray, _: bytes, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.randint(1, 40)]


def _repeat(data: bytearray, _: bytes, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    piece = data[at : at + chance.randint(1, 80)]
    data[at:at] = piece * chance.choice([1, 1, 2, 100])


def _graft(data: bytearray, other: bytes, chance: random.Random) -> None:
    start = chance.randrange(len(other))
    at = chance.randrange(len(data) + 1)
    data[at:at] = other[start : start + chance.randint(1, 200)]


_DAMAGES: Final[list[Callable[[bytearray, bytes, random.Random], None]]] = [
    _flip,
    _number,
    _number,
    _noise,
    _cut,
    _lose,
    _repeat,
    _graft,
]
