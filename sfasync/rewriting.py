"""Makes what was written to a disk durable, also when its connection was lost on the way.

A server that acknowledged writes and went away before a flush may have forgotten them (docs/protocol.md, "Lost
connections"). Whoever writes has the bytes still, or can read them again: so they are written again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from .errors import WritesLostError
from .interfaces import Sink

log = logging.getLogger("sfasync")


async def make_durable(sink: Sink, rewrite: Callable[[int, int], Awaitable[None]], *, attempts: int) -> bool:
    """Flush, and write again what was lost before that.

    Args:
        sink: What was written to.
        rewrite: Writes the bytes from the first to before the second offset again, and perhaps some around them.
        attempts: Flushes at most.

    Returns:
        Whether everything is durable; False if the sink cannot promise that.

    Raises:
        WritesLostError: Connections were lost each time.
        SfasyncError: Whatever the sink or `rewrite` raises.
    """
    for _ in range(attempts - 1):
        try:
            return await sink.flush()
        except WritesLostError as error:
            log.warning("%s", error)
            for start, end in error.ranges:
                await rewrite(start, end)
    return await sink.flush()
