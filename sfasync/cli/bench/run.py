"""One `sfasync bench`: the rows one after the other, what is told of them, and the files that stay."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from ..._version import VERSION
from ...errors import UsageError
from ...files import storage_error
from ...programs import find_tool
from ...units import format_size
from ..output import Output
from .contest import Contest, Place, Row
from .measuring import hold, machine
from .plot import svg
from .report import Summary, markdown, summarize, text


class Bench:
    """Measures rows.

    Args:
        output: Told the tables.
        results: The files that stay are called so, with endings of their own.
        pairs: Counted rounds of each contest.
        size: Bytes of the disks; None for each row's own.
        directory: Where disks and repositories go; None for the temporary directory.
    """

    def __init__(self, output: Output, results: Path, *, pairs: int, size: int | None, directory: Path | None) -> None:
        self._output = output
        self._results = results
        self._pairs = pairs
        self._size = size
        self._directory = directory
        self._summaries: list[Summary] = []

    async def run(self, rows: Sequence[Row]) -> dict[str, str]:
        """Measure rows.

        Returns:
            Programs that are not installed, and the Debian packages that bring them.

        Raises:
            UsageError: None of the rows can be measured with the programs that there are.
            StorageError: The results, or the data to measure with, cannot be written.
            SourceError: A program that was measured, or a server, failed.
        """
        missing = _missing(rows)
        measured_on = machine(VERSION)
        possible = [row for row in rows if not row.tools.keys() & missing.keys()]
        if not possible:
            raise UsageError(f"nothing can be measured without {', '.join(missing)}; {_install(missing)}")
        with self._create(".jsonl") as log:
            _record(log, "machine", measured_on)
            try:
                await self._measure(possible, log)
            except OSError as error:
                where = self._directory or tempfile.gettempdir()
                raise storage_error(error, "measure in", str(where)) from error
        self._keep(".md", markdown(self._summaries, measured_on))
        self._keep(".svg", svg(self._summaries))
        for row in rows:
            if row not in possible:
                self._output.warning(f"{row.id} was not measured: {_install(_missing([row]))}")
        left_out = _missing(possible)
        if left_out:
            self._output.warning(f"not compared with {', '.join(left_out)}: {_install(left_out)}")
        self._output.remark(f"results: {self._results}.jsonl, .md and .svg")
        return missing

    async def _measure(self, rows: Iterable[Row], log: TextIO) -> None:
        with (
            tempfile.TemporaryDirectory(prefix="sfasync-bench-", dir=self._directory) as directory,
            tempfile.TemporaryDirectory(prefix="sfab-") as sockets,
        ):
            shared = Path(directory, "shared")
            shared.mkdir()
            for row in rows:
                size = self._size if self._size is not None and row.scales else row.size
                place = Place(directory=Path(directory, row.id), shared=shared, sockets=Path(sockets), size=size)
                place.directory.mkdir()
                async with aclosing(row.hold(place)) as contests:
                    async for contest in contests:
                        await self._hold(row, contest, log, Path(directory, "log"))
                shutil.rmtree(place.directory)

    async def _hold(self, row: Row, contest: Contest, results: TextIO, log: Path) -> None:
        size = f", {format_size(contest.size)}" if contest.size else ""
        self._output.remark(f"{row.id} {contest.work}{size} ({row.caveats}; load {os.getloadavg()[0]:.1f})")
        runs = []
        async with aclosing(hold(row.id, contest, pairs=self._pairs, log=log)) as measured:
            async for run in measured:
                runs.append(run)
                _record(results, "run", asdict(run))
        order = [entrant.name for entrant in contest.entrants]
        summaries = summarize(sorted(runs, key=lambda run: (run.pair, order.index(run.program))))
        self._summaries += summaries
        for line in text(summaries):
            self._output.line(line)
        for summary in summaries:
            _record(results, "summary", summary.record())
            self._output.event("summary", summary.record())

    def _keep(self, ending: str, lines: Iterable[str]) -> None:
        with self._create(ending) as file:
            file.write("\n".join(lines) + "\n")

    def _create(self, ending: str) -> TextIO:
        path = self._results.with_name(self._results.name + ending)
        try:
            return path.open("x")
        except OSError as error:
            raise storage_error(error, "create", str(path)) from error


def _missing(rows: Iterable[Row]) -> dict[str, str]:
    """Programs that rows need or are compared with, and that are not installed."""
    wanted = {name: package for row in rows for name, package in {**row.tools, **row.peers}.items()}
    return {name: package for name, package in wanted.items() if find_tool(name) is None}


def _install(missing: Mapping[str, str]) -> str:
    return f"on Debian: apt-get install {' '.join(sorted(set(missing.values())))}"


def _record(log: TextIO, event: str, fields: Mapping[str, object]) -> None:
    log.write(json.dumps({"event": event, **fields}) + "\n")
    log.flush()
