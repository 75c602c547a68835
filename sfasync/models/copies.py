"""What a caller gets for a copy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyResult:
    """A finished copy.

    Attributes:
        size: Bytes of the source.
        bytes_read: Data bytes read and written.
        bytes_zero: Bytes made zero without reading.
        durable: Whether the target promised that the bytes are on stable storage.
        requests: Requests of data that were under way at once in the end.
        request_size: Bytes of each.
        limited_by: What held the copy up more: `source` or `target`.
        seconds: Wall seconds.
    """

    size: int
    bytes_read: int
    bytes_zero: int
    durable: bool
    requests: int
    request_size: int
    limited_by: str
    seconds: float
