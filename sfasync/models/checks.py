"""What no option, address or record may have, whoever makes it."""

from __future__ import annotations

from ..errors import UsageError


def check_id(what: str, text: str) -> None:
    """Refuse ids and tags that no file name, log line or manifest should have to carry.

    Raises:
        UsageError: Empty, longer than 255 bytes, or with control characters.
    """
    if not text or len(text.encode("utf-8", "surrogatepass")) > 255 or not text.isprintable():
        raise UsageError(f"{what} {text[:64]!r} must be 1 to 255 bytes of printable text")


def within(name: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high}"
        raise UsageError(f"limit {name!r} must be at least {low}{upper}, not {value}")
