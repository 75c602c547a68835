"""The ratios as a picture: SVG without a library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from .report import Spread, Summary

_LABEL, _WIDTH, _LINE = 470, 960, 22
_LEAST, _MOST = 0.25, 32.0
_OURS, _THEIRS, _INK, _FAINT = "#1f6f4a", "#b4552d", "#222", "#ccc"


def svg(summaries: Sequence[Summary]) -> Iterator[str]:
    """A bar for each program that ours was compared with: how many times its wall time ours is, on a log scale."""
    rows = [(row, row.ratio) for row in summaries if row.ratio is not None]
    height = _LINE * (len(rows) + 3)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif"'
        f' font-size="12" fill="{_INK}">'
    )
    yield f'<rect width="{_WIDTH}" height="{height}" fill="white"/>'
    yield from _scale(height)
    for number, (row, ratio) in enumerate(rows, 2):
        yield from _bar(row, ratio, number * _LINE)
    yield "</svg>"


def _scale(height: int) -> Iterator[str]:
    yield _text(_LABEL, _LINE - 6, "wall time against sfasync's: to the right of 1 sfasync is faster")
    for power in range(round(math.log2(_LEAST)), round(math.log2(_MOST)) + 1):
        x = _x(2.0**power)
        colour = _INK if power == 0 else _FAINT
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{2 * _LINE}" y2="{height - _LINE}" stroke="{colour}"/>'
        yield _text(x, 2 * _LINE - 4, f"{2.0**power:g}", anchor="middle")


def _bar(row: Summary, ratio: Spread, y: float) -> Iterator[str]:
    first, last = sorted((_x(1.0), _x(ratio.median)))
    middle = y + _LINE / 2
    colour = _OURS if ratio.median >= 1 else _THEIRS
    yield _text(_LABEL - 8, middle + 4, f"{row.row} {row.work}: {row.program}", anchor="end")
    yield f'<rect x="{first:.1f}" y="{y + 5}" width="{last - first:.1f}" height="{_LINE - 10}" fill="{colour}"/>'
    ends = f'x1="{_x(ratio.least):.1f}" x2="{_x(ratio.most):.1f}" y1="{middle}" y2="{middle}"'
    yield f'<line {ends} stroke="{_INK}" stroke-width="1.5"/>'


def _x(ratio: float) -> float:
    position = math.log2(min(max(ratio, _LEAST), _MOST) / _LEAST) / math.log2(_MOST / _LEAST)
    return _LABEL + position * (_WIDTH - _LABEL - 20)


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
