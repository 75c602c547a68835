"""What the numbers say: medians, spread and ratios, as records, as text and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from ...units import MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of one program.

    Attributes:
        row, work: Of the contest.
        program: Its name.
        pair: Which round, from 1.
        wall, user, system: Seconds; CPU of the process and its children.
        rss: Peak memory in bytes, of the largest process.
        facts: What else was found.
    """

    row: str
    work: str
    program: str
    pair: int
    wall: float
    user: float
    system: float
    rss: int
    facts: dict[str, float | str] = field(default_factory=dict)


class Spread(NamedTuple):
    """A median with the least and the greatest value."""

    median: float
    least: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All runs of one program in a contest.

    Attributes:
        row, work, program: As of `Run`.
        pairs: How many rounds.
        wall: Seconds.
        cpu: Seconds, user and system.
        rss: Peak memory in bytes: the greatest of all runs.
        ratio: Its wall time by that of the first program, ours, in the same round: above 1 ours is faster. None for the
            first itself.
        facts: Medians of numbers; of words the one that comes most often.
    """

    row: str
    work: str
    program: str
    pairs: int
    wall: Spread
    cpu: Spread
    rss: int
    ratio: Spread | None
    facts: dict[str, float | str]

    def record(self) -> dict[str, object]:
        """As a JSON object."""
        spreads = {name: None if value is None else value._asdict() for name, value in self._spreads().items()}
        return {**{field.name: getattr(self, field.name) for field in fields(self)}, **spreads}

    def _spreads(self) -> dict[str, Spread | None]:
        return {"wall": self.wall, "cpu": self.cpu, "ratio": self.ratio}


def summarize(runs: Sequence[Run]) -> list[Summary]:
    """The programs of one contest, in the order of their first runs; the first is what the others are compared with."""
    programs = list(dict.fromkeys(run.program for run in runs))
    ours = {run.pair: run.wall for run in runs if run.program == programs[0]}
    return [_summary([run for run in runs if run.program == program], ours) for program in programs]


def _summary(own: Sequence[Run], ours: Mapping[int, float]) -> Summary:
    ratios = [run.wall / ours[run.pair] for run in own]
    return Summary(
        row=own[0].row,
        work=own[0].work,
        program=own[0].program,
        pairs=len(own),
        wall=_spread([run.wall for run in own]),
        cpu=_spread([run.user + run.system for run in own]),
        rss=max(run.rss for run in own),
        ratio=_spread(ratios) if set(ratios) != {1.0} else None,
        facts={name: _middle([run.facts[name] for run in own]) for name in own[0].facts},
    )


def text(summaries: Sequence[Summary]) -> Iterator[str]:
    """The programs of one contest as lines for a terminal."""
    head = f"{'':16}{'wall s':>8} {'least..most':>15} {'CPU s':>8} {'peak MiB':>9} {'ratio':>6} {'least..most':>13}"
    yield head
    for row in summaries:
        ratio = f"{row.ratio.median:>6.2f} {_range(row.ratio):>13}" if row.ratio is not None else " " * 20
        numbers = f"{row.wall.median:>8.2f} {_range(row.wall):>15} {row.cpu.median:>8.2f} {row.rss / MiB:>9.0f}"
        yield f"  {row.program:14}{numbers} {ratio}  {_facts(row)}".rstrip()


def markdown(summaries: Sequence[Summary], machine: Mapping[str, object]) -> Iterator[str]:
    """All contests as one table for a document, and on what they were measured."""
    yield ", ".join(f"{name} {value}" for name, value in machine.items())
    yield ""
    yield "| row | work | program | wall s (least-most) | CPU s | peak MiB | ratio (least-most) | more |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in summaries:
        ratio = f"{row.ratio.median:.2f} ({_range(row.ratio, '-')})" if row.ratio is not None else ""
        wall = f"{row.wall.median:.2f} ({_range(row.wall, '-')})"
        numbers = f"{wall} | {row.cpu.median:.2f} | {row.rss / MiB:.0f} | {ratio}"
        yield f"| {row.row} | {row.work} | {row.program} | {numbers} | {_facts(row)} |"


def _facts(row: Summary) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.facts.items())


def _range(spread: Spread, between: str = "..") -> str:
    return f"{spread.least:.2f}{between}{spread.most:.2f}"


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def _middle(values: Sequence[float | str]) -> float | str:
    """Of numbers the median, of words the one that comes most often."""
    numbers = [value for value in values if not isinstance(value, str)]
    return round(statistics.median(numbers), 2) if numbers else statistics.mode(values)
