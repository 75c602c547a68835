"""One copy from a source to a target, without a repository."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from .errors import UsageError
from .extents import align_down, pieces
from .interfaces import Sink, Source
from .models import CopyResult, Extent, Limits
from .pipeline import transfer
from .progress import Reporter
from .resources import Resources
from .units import KiB, MiB

_REQUEST_SIZE = MiB  # less CPU for each GiB than 256 or 512 KiB (docs/protocol.md, "Where the bytes go")
_MAXIMUM = 32 * MiB  # what every server takes, as nbdcopy's limit


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOptions:
    """How a copy is made; names as of nbdcopy.

    Attributes:
        extents: Ask the source what is zero; without it everything is read.
        flush: Make the target durable before the copy counts as done.
        connections: Connections to each side; None for the engine's limit.
        requests: Requests in flight on each connection; None for the engine's limit.
        request_size: Bytes of a request, a power of two from 4 KiB to 32 MiB; None for the default.
        destination_is_zero: The target reads as zeros already: zeros are not written.
        synchronous: One request at a time.
    """

    extents: bool = True
    flush: bool = True
    connections: int | None = None
    requests: int | None = None
    request_size: int | None = None
    destination_is_zero: bool = False
    synchronous: bool = False

    def __post_init__(self) -> None:
        for name, value, high in (("connections", self.connections, 16), ("requests", self.requests, 256)):
            if value is not None and not 1 <= value <= high:
                raise UsageError(f"{name} must be 1 to {high}, not {value}")
        size = self.request_size
        if size is not None and (not 4 * KiB <= size <= _MAXIMUM or size & (size - 1)):
            raise UsageError(f"request size must be a power of two from 4096 to {_MAXIMUM}, not {size}")


async def copy(
    source: Source,
    target: Sink,
    options: CopyOptions,
    resources: Resources,
    reporter: Reporter,
) -> CopyResult:
    """Copy all bytes of a source; a larger target keeps its tail.

    Args:
        source: Read.
        target: Written; at least as large.
        options: How.
        resources: Shared with the engine's other jobs.
        reporter: Told how far it is.

    Raises:
        SfasyncError: The first failure; the target has partial content.
    """
    began = time.monotonic()
    meter = reporter.meter("", source.size)
    reporter.enter("running")
    size = source.size
    alignment = max(source.block_size, target.block_size)
    piece = max(alignment, min(options.request_size or _REQUEST_SIZE, align_down(resources.pool.budget, alignment)))
    extents = source.extents() if options.extents else _all_data(size)
    async with aclosing(pieces(extents, size=size, piece=piece, alignment=alignment)) as plan:
        sink = _ZerosAreThere(target) if options.destination_is_zero else target
        lanes = _lanes(options, resources.limits)
        await transfer(plan, resources.throttled(source), sink, pool=resources.pool, lanes=lanes, meter=meter)
    reporter.enter("committing")
    durable = await target.flush() if options.flush else False
    return CopyResult(
        size=size,
        bytes_read=meter.read,
        bytes_zero=meter.zero,
        durable=durable,
        seconds=time.monotonic() - began,
    )


def _lanes(options: CopyOptions, limits: Limits) -> int:
    if options.synchronous:
        return 1
    return (options.connections or limits.connections) * (options.requests or limits.requests)


async def _all_data(size: int) -> AsyncIterator[Extent]:
    if size:
        yield Extent(0, size)


class _ZerosAreThere:
    """A target that reads as zeros where nothing was written."""

    def __init__(self, target: Sink) -> None:
        self._target = target
        self.size = target.size
        self.block_size = target.block_size
        self.write = target.write
        self.flush = target.flush

    async def zero(self, offset: int, length: int) -> None:
        """Nothing to do."""
