"""`sfasync bench`: measures this machine, and the other tools that are on it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import click

from ...units import MiB
from .. import options
from ..output import Output
from ..runner import perform


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What the command line asks for."""

    rows: tuple[str, ...]
    pairs: int
    size: int | None
    directory: Path | None
    results: Path


@click.command("bench")
@click.argument("rows", nargs=-1, metavar="[ROW]...")
@click.option(
    "--pairs", type=click.IntRange(1, 1000), metavar="N", default=7, show_default=True, help="Counted rounds of each."
)
@click.option("--size", type=options.size, metavar="SIZE", help="Of the disks, 1M or more, instead of each row's own.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where disks and repositories go, on the file system to measure; the temporary directory if not given.",
)
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    metavar="NAME",
    help="NAME.jsonl gets each run, NAME.md the table, NAME.svg a plot; sfasync-bench-TIME if not given.",
)
@options.common
def command(
    output: Output, rows: tuple[str, ...], pairs: int, size: int | None, directory: Path | None, results: Path | None
) -> int:
    """Measure sfasync against nbdcopy, restic, borg and qemu-img, as far as they are installed.

    Makes its own data and servers. Rows: S1 to S4 and S9 copies, S5 to S7 backup and restore, S10 memory, S11 several
    disks, S12 scattered data, S14 start-up, S15 incremental; all of them if none is named, which takes an hour or two,
    12 GiB of disk and 6 GiB of memory. Every figure is the median of whole processes, run in turn.
    """
    if size is not None and size < MiB:
        raise click.UsageError("--size must be 1M or more")
    wish = _Wish(
        rows=rows,
        pairs=pairs,
        size=size,
        directory=directory,
        results=results or Path(time.strftime("sfasync-bench-%Y%m%d-%H%M%S")),
    )
    return perform(output, lambda: _bench(output, wish))


async def _bench(output: Output, wish: _Wish) -> int:
    from ...errors import UsageError, printable
    from ..bench.rows import ROWS
    from ..bench.run import Bench

    unknown = [row for row in wish.rows if row not in ROWS]
    if unknown:
        raise UsageError(f"there is no row {printable(unknown[0])}; there are {', '.join(ROWS)}")
    bench = Bench(output, wish.results, pairs=wish.pairs, size=wish.size, directory=wish.directory)
    began = time.monotonic()
    missing = await bench.run([ROWS[row] for row in dict.fromkeys(wish.rows or ROWS)])
    output.result(
        "bench",
        {"results": str(wish.results), "missing": missing, "seconds": round(time.monotonic() - began, 3)},
    )
    return 0
