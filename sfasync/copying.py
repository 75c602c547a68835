"""One copy from a source to a target, without a repository."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from .carrying import PIECE, STRETCH, stretches
from .errors import UsageError
from .extents import align_down, align_up, pieces
from .interfaces import Sink, Source
from .models import CopyResult, Extent, Limits
from .moving import move
from .pipeline import transfer
from .progress import Meter, Reporter
from .resources import Resources
from .rewriting import make_durable
from .sparse import LARGEST_BLOCK, SPARSE_BLOCK, SparseSink, ZeroedSink
from .tuning import LARGEST_STEP, Setting, Tuner
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
        requests: Requests in flight on each connection; None to find out, up to the engine's limit.
        request_size: Bytes of a request, a power of two from 4 KiB to 32 MiB; None to find out.
        destination_is_zero: The target reads as zeros already: zeros are not written.
        synchronous: One request at a time.
        sparse: Data that is zero in whole blocks of so many bytes (a power of two from 512 to 1 MiB) is made zero at
            the target, not written; 0 to write it.
    """

    extents: bool = True
    flush: bool = True
    connections: int | None = None
    requests: int | None = None
    request_size: int | None = None
    destination_is_zero: bool = False
    synchronous: bool = False
    sparse: int = SPARSE_BLOCK

    def __post_init__(self) -> None:
        for name, value, high in (("connections", self.connections, 16), ("requests", self.requests, 256)):
            if value is not None and not 1 <= value <= high:
                raise UsageError(f"{name} must be 1 to {high}, not {value}")
        size = self.request_size
        if size is not None and (not 4 * KiB <= size <= _MAXIMUM or size & (size - 1)):
            raise UsageError(f"request size must be a power of two from 4096 to {_MAXIMUM}, not {size}")
        if self.sparse and (not 512 <= self.sparse <= LARGEST_BLOCK or self.sparse & (self.sparse - 1)):
            raise UsageError(f"sparse must be 0 or a power of two from 512 to {LARGEST_BLOCK}, not {self.sparse}")


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
    tuner = tuned(options, resources, alignment)
    extents = source.extents() if options.extents else _all_data(0, size)
    sink = shaped(target, options)
    piece = piece_size(options, resources, alignment, usual=PIECE)
    connections = _carried_connections(options, resources.limits)
    length_at = stretches(size, crew=resources.crew, connections=connections, least=STRETCH)
    async with aclosing(
        pieces(extents, size=size, piece=lambda offset: max(length_at(offset), piece), alignment=alignment)
    ) as plan:
        count = await move(
            plan,
            resources.throttled(source),
            target,
            resources=resources,
            shaped=sink,
            block=zero_block(target, options),
            connections=connections,
            batch=True,
            carried=piece,
            piped=lambda _: tuner.setting.size,
            lanes=tuner,
            meter=meter,
        )
    setting = Setting(count, piece) if count else tuner.setting
    reporter.enter("committing")

    async def rewrite(start: int, end: int) -> None:
        start, end = align_down(start, alignment), min(align_up(end, alignment), size)
        told = source.extents(start, end - start) if options.extents else _all_data(start, end)
        plan = pieces(told, size=end, piece=tuner.setting.size, alignment=alignment, start=start)
        async with aclosing(plan):
            meter, lanes = Meter("", size), tuner.setting.window
            await transfer(plan, resources.throttled(source), sink, pool=resources.pool, lanes=lanes, meter=meter)

    durable = options.flush and await make_durable(target, rewrite, attempts=resources.retry.attempts)
    return CopyResult(
        size=size,
        bytes_read=meter.read,
        bytes_zero=meter.zero,
        durable=durable,
        requests=setting.window,
        request_size=setting.size,
        limited_by=limited_by(meter),
        seconds=time.monotonic() - began,
    )


def _carried_connections(options: CopyOptions, limits: Limits) -> int:
    """Connections for threads to carry with; none where somebody said how many requests there are to be."""
    if options.synchronous or options.requests is not None:
        return 0
    return options.connections or limits.connections


def tuned(options: CopyOptions, resources: Resources, alignment: int) -> Tuner:
    """Chooses what the options leave open, within the limits."""
    size = piece_size(options, resources, alignment)
    return Tuner(
        most=lane_count(options, resources.limits),
        size=size,
        largest=size if options.request_size or options.synchronous else LARGEST_STEP,
        memory=resources.pool.budget,
        pinned=options.requests is not None or options.synchronous,
    )


def piece_size(options: CopyOptions, resources: Resources, alignment: int, *, usual: int = _REQUEST_SIZE) -> int:
    """Bytes of one step of a copy, a multiple of `alignment`; `usual` where nobody asked for another size."""
    return max(alignment, min(options.request_size or usual, align_down(resources.pool.budget, alignment)))


def zero_block(target: Sink, options: CopyOptions) -> int:
    """Bytes of the blocks in which zeros count; 0 if they are written."""
    return max(options.sparse, target.block_size) if options.sparse else 0


def shaped(target: Sink, options: CopyOptions) -> Sink:
    """The target as the options want its zeros treated."""
    sink = ZeroedSink(target) if options.destination_is_zero else target
    return SparseSink(sink, zero_block(target, options)) if options.sparse else sink


def lane_count(options: CopyOptions, limits: Limits) -> int:
    """Steps under way at once."""
    if options.synchronous:
        return 1
    return (options.connections or limits.connections) * (options.requests or limits.requests)


def limited_by(meter: Meter) -> str:
    """The end of a copy that its steps waited for longer."""
    return "source" if meter.seconds["read"] >= meter.seconds["write"] else "target"


async def _all_data(start: int, end: int) -> AsyncIterator[Extent]:
    if start < end:
        yield Extent(start, end - start)
