"""How long a piece of code takes, by itself."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

_ROUNDS = 7


def report(name: str, work: Callable[[], object], *, count: int, size: int = 0) -> None:
    """Do the work in seven rounds and print a line of JSON: the median and the least time of a call.

    Args:
        name: Of the case.
        work: Called `count` times in each round.
        count: Calls in a round; what each takes is told.
        size: Bytes that a call deals with, to tell a rate as well.
    """
    taken = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for _ in range(count):
            work()
        taken.append((time.perf_counter() - began) / count)
    median = statistics.median(taken)
    line: dict[str, object] = {"case": name, "us": round(median * 1e6, 2), "least": round(min(taken) * 1e6, 2)}
    if size:
        line["MiB/s"] = round(size / (1 << 20) / median)
    print(json.dumps(line), flush=True)
