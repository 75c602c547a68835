"""How the system schedules a thread that moves bytes between peers on the same machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def as_batch() -> Iterator[None]:
    """This thread takes no processor from another one by waking up, for the time of the block (sched(7), SCHED_BATCH).

    A server wakes who receives with the first bytes that it sends. If that ended its time on the processor, they
    would change places for each part of an answer; so it goes on until it has to wait, and there is more to receive.

    A thread that somebody has scheduled in another way stays so, and so does each where the system refuses.
    """
    changed = _change(os.SCHED_OTHER, os.SCHED_BATCH)
    try:
        yield
    finally:
        if changed:
            _change(os.SCHED_BATCH, os.SCHED_OTHER)


def _change(usual: int, policy: int) -> bool:
    """Change the policy of this thread, if it is the usual one; whether that was done."""
    try:
        if os.sched_getscheduler(0) != usual:
            return False
        os.sched_setscheduler(0, policy, os.sched_param(0))
    except OSError:
        return False
    return True
