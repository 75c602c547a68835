"""Bytes and seconds as people write them."""

import re
from typing import Annotated, Final, TypeAlias

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB
TiB = 1024 * GiB

SIZE: Final = "size"
Size: TypeAlias = Annotated[int, SIZE]
"""Bytes; in a configuration file they may be written as `parse_size` reads them."""

_SIZE = r"(\d{1,19}(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?"
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_size(text: str) -> int:
    """Bytes of a size such as ``4096``, ``64K``, ``1.5GiB``; every suffix is a power of 1024, as in qemu-img.

    Raises:
        ValueError: The text is not a size.
    """
    match = re.fullmatch(_SIZE, text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write for example 512K, 64M or 1.5G")
    number, suffix = match.groups()
    return int(float(number) * 1024 ** _POWERS[suffix.lower()])


def format_size(size: float) -> str:
    """A size for people: ``0 B``, ``512 KiB``, ``1.5 GiB``."""
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while abs(size) >= 1024 and len(units) > 1:
        size /= 1024
        del units[0]
    return f"{size:.1f}".removesuffix(".0") + f" {units[0]}"


def format_rate(bytes_per_second: float) -> str:
    """A rate for people: ``312.4 MiB/s``."""
    return f"{format_size(bytes_per_second)}/s"


def format_seconds(seconds: float) -> str:
    """A span for people: ``0.8 s``, ``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
