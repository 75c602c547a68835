"""Two commits against each other in one run: ``python -m bench.compare BASE [ROW...] [--pairs N] [--size SIZE]``.

Rows are those of `sfasync bench`, and the micro benches ``seal``, ``pack``, ``index`` and ``receive``. What is in this
checkout, committed or not, is measured against BASE in a worktree of its own, in alternating order on the same data. A
ratio above 1: this checkout is faster.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from sfasync.cli.bench.contest import Contest, Entrant, Place, Row
from sfasync.cli.bench.rows import ROWS
from sfasync.cli.bench.run import Bench
from sfasync.cli.output import Output
from sfasync.units import parse_size

HERE = Path(__file__).parents[1]
MICRO = ("seal", "pack", "index", "receive")


def main() -> None:
    """Compare, and leave the results where they are wanted."""
    arguments = _arguments()
    kept = arguments.results or HERE / "bench" / "results" / time.strftime("compare-%Y%m%d-%H%M%S")
    kept.parent.mkdir(exist_ok=True)
    with _worktree(arguments.base) as base:
        rows = [_versus(_row(name), arguments.base, base) for name in arguments.rows]
        bench = Bench(Output(), kept, pairs=arguments.pairs, size=arguments.size, directory=None)
        asyncio.run(bench.run(rows))


def _row(name: str) -> Row:
    if name in ROWS:
        return ROWS[name]
    return Row(id=name, hold=partial(_micro, name), size=0, scales=False, caveats="a micro bench as a whole process")


async def _micro(name: str, _place: Place) -> AsyncGenerator[Contest, None]:
    command = (sys.executable, "-P", "-m", f"bench.micro_{name}")
    yield Contest(work=name, size=0, entrants=[Entrant(name=name, command=command)])


def _versus(row: Row, name: str, base: Path) -> Row:
    """The row with two entrants: what is ours in it, from here and from the base."""

    async def hold(place: Place) -> AsyncGenerator[Contest, None]:
        async with aclosing(row.hold(place)) as contests:
            async for contest in contests:
                ours = contest.entrants[0]
                yield replace(contest, entrants=[_from(HERE, "here", ours), _from(base, name, ours)])

    return replace(row, hold=hold, peers={})


def _from(tree: Path, name: str, entrant: Entrant) -> Entrant:
    # A bench that the base does not have yet is taken from here.
    return replace(entrant, name=name, command=("env", f"PYTHONPATH={tree}:{HERE}", *entrant.command))


@contextmanager
def _worktree(base: str) -> Iterator[Path]:
    """The tree of a commit, for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="bench-base-") as directory:
        tree = Path(directory, "tree")
        subprocess.run(["git", "-C", HERE, "worktree", "add", "--quiet", "--detach", tree, base], check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "-C", HERE, "worktree", "remove", "--force", tree], check=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.compare", description="Measure this checkout against another commit.")
    parser.add_argument("base", metavar="BASE", help="a commit")
    parser.add_argument("rows", nargs="*", metavar="ROW", default=["S1", "S5", *MICRO])
    parser.add_argument("--pairs", type=int, default=7, help="counted rounds of each (7)")
    parser.add_argument("--size", type=parse_size, help="of the disks, instead of each row's own")
    parser.add_argument("--results", type=Path, metavar="NAME", help="as of sfasync bench (bench/results/compare-TIME)")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.rows if name not in (*ROWS, *MICRO)]
    if unknown:
        parser.error(f"there is no row {unknown[0]}; there are {', '.join((*ROWS, *MICRO))}")
    return arguments


if __name__ == "__main__":
    main()
