"""What the numbers say: medians, spread and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

GIB = 1 << 30


def summarize(contest: str, runs: Sequence[Mapping[str, float | str]]) -> Iterator[dict[str, float | str]]:
    """One record for each program of a contest: medians, and the spread of the wall time (least and most)."""
    for program in dict.fromkeys(str(run["program"]) for run in runs):
        own = [run for run in runs if run["program"] == program]
        wall = _column(own, "wall")
        size = _column(own, "bytes")[0]
        cpu = [user + system for user, system in zip(_column(own, "user"), _column(own, "sys"), strict=True)]
        yield {
            "event": "summary",
            "contest": contest,
            "program": program,
            "runs": len(own),
            "wall": statistics.median(wall),
            "wall_least": min(wall),
            "wall_most": max(wall),
            "cpu": statistics.median(cpu),
            "cpu_per_gib": statistics.median(cpu) / (size / GIB),
            "rss": max(_column(own, "rss")),
            "bytes": size,
        }


def table(summaries: Iterable[Mapping[str, float | str]]) -> Iterator[str]:
    """The summaries of one contest as lines; ratios are to the first program."""
    yield f"  {'':10} {'wall':>8} {'least..most':>15} {'ratio':>6} {'CPU s/GiB':>10} {'peak MiB':>9} {'GiB/s':>6}"
    first: float | None = None
    for row in summaries:
        wall = float(row["wall"])
        first = first or wall
        spread = f"{float(row['wall_least']):.2f}..{float(row['wall_most']):.2f}"
        memory = float(row["rss"]) / (1 << 20)
        rate = float(row["bytes"]) / GIB / wall
        cpu = float(row["cpu_per_gib"])
        yield (
            f"  {row['program']:10} {wall:>6.2f} s {spread:>15} {wall / first:>6.2f}"
            f" {cpu:>10.2f} {memory:>9.0f} {rate:>6.2f}"
        )


def _column(runs: Sequence[Mapping[str, float | str]], name: str) -> list[float]:
    return [float(run[name]) for run in runs]
