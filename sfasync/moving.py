"""Moves a disk by a plan of stretches: threads as far as they come, the pipeline for the rest, in turns.

Threads are quick where both ends answer at once and nothing fails (`carrying`); the pipeline knows of waits and faults
(`pipeline`). What threads give back is the pipeline's, until they are tried again (`recess`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from .carrying import carriers
from .extents import PieceLength, Step, again
from .interfaces import Sink, Source
from .pipeline import transfer
from .progress import Meter
from .recess import Plan, Recess
from .resources import Resources
from .tuning import Tuner


async def move(
    steps: AsyncIterator[Step],
    source: Source,
    target: Sink,
    *,
    resources: Resources,
    shaped: Sink | None = None,
    block: int = 0,
    connections: int,
    batch: bool = False,
    carried: int,
    piped: PieceLength,
    lanes: int | Tuner,
    meter: Meter,
) -> int:
    """Carry out a plan of DATA and ZERO.

    Args:
        steps: What to do, in stretches; closed by the caller.
        source: Read.
        target: Written.
        resources: Shared with the engine's other jobs.
        shaped: The target as zeros in data are to be treated, which threads do by `block`; None for the target itself.
        block: As of `SparseSink`.
        connections, batch: As of `carriers`.
        carried: Bytes that a thread moves at once.
        piped: How long steps of the pipeline are.
        lanes: As of `transfer`.
        meter: Counts what is done.

    Returns:
        How many threads there were to the end; 0 where the pipeline had the last of it.

    Raises:
        SfasyncError: As of `transfer`.
    """
    sink = shaped or target
    plan = Plan(steps)
    recess = Recess()
    count = 0
    while not plan.ended:
        # Its block ends before the pipeline begins, which needs the connections of the threads.
        async with carriers(
            source, target, crew=resources.crew, connections=connections, block=block, batch=batch, meter=meter
        ) as threads:
            were = threads.count
            left = await threads.carry(plan, sink, piece=carried, pool=resources.pool)
            count = threads.count
        if threads.far and isinstance(lanes, Tuner):
            lanes.leap(time.perf_counter())
        recess.begin(carried=were > 0)
        rest = again(left, plan, piece=piped, enough=recess.over)
        await transfer(rest, source, sink, pool=resources.pool, lanes=lanes, meter=meter)
    return count
