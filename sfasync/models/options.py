"""What an engine may use, when it gives up, and what it tries again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..errors import UsageError
from ..units import KiB, MiB, Size
from .checks import within

MOST_CONNECTIONS: Final = 16
"""Connections to one disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an engine may use; one set is shared by all its jobs.

    Attributes:
        memory: Bytes for block data in flight: buffers, sealing and unsealing. At least 16 MiB.
        requests: Requests in flight on one connection, 1 to 256.
        connections: Connections to one disk, 1 to 16; more than one only where the server promises multi-conn.
        disks: Disks moved at the same time, over all jobs of the engine.
        rate: Bytes read from sources in a second, over all jobs; None for no limit.
    """

    memory: Size = 64 * MiB
    requests: int = 16
    connections: int = 4
    disks: int = 8
    rate: Size | None = None

    def __post_init__(self) -> None:
        within("memory", self.memory, 16 * MiB, None)
        within("requests", self.requests, 1, 256)
        within("connections", self.connections, 1, MOST_CONNECTIONS)
        within("disks", self.disks, 1, 1024)
        if self.rate is not None:
            within("rate", self.rate, 64 * KiB, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds after which the transport gives up.

    Attributes:
        connect: From the first packet until the export is open: name resolution, TCP, TLS and NBD handshake together.
        stall: With requests in flight, the time in which some byte must come or leave.
        request: The time in which one request must be answered.
        close: For the soft disconnect; after it the connection is aborted.
    """

    connect: float = 10.0
    stall: float = 30.0
    request: float = 120.0
    close: float = 1.0

    def __post_init__(self) -> None:
        for name in ("connect", "stall", "request", "close"):
            if getattr(self, name) <= 0:
                raise UsageError(f"timeout {name!r} must be more than 0 seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How faults of connections and servers are met. Only work that may be repeated is.

    Attributes:
        attempts: How often one request is sent, as long as the server fails it or the connection is lost over it, 1 to
            100. With 1, a request is never repeated. Connections that are lost together count once.
        outage: Seconds in which a lost connection must be replaced; 0 to let what used it fail.
        connect: Seconds to go on trying when nobody answers at the first connect; 0 to try once.
        delay: Longest pause in seconds before the first repetition; it doubles with each.
        max_delay: Longest pause in seconds.
        jitter: Share of each pause that is left to chance, 0 to 1.
    """

    attempts: int = 5
    outage: float = 60.0
    connect: float = 0.0
    delay: float = 0.1
    max_delay: float = 5.0
    jitter: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= 100:
            raise UsageError(f"retry 'attempts' must be 1 to 100, not {self.attempts}")
        for name in ("outage", "connect", "delay", "max_delay"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):  # false for what is not a number, too
                raise UsageError(f"retry {name!r} must be a number of seconds, 0 or more, not {value}")
        if not 0 <= self.jitter <= 1:
            raise UsageError(f"retry 'jitter' must be 0 to 1, not {self.jitter}")


NO_RETRY = Retry(attempts=1, outage=0.0)
"""Nothing is repeated and no connection is replaced."""
