"""Holds contests: the programs in turn, each a process of its own that nothing else runs beside."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from ...errors import SourceError
from ...programs import last_line
from ...units import format_size
from .contest import Contest, Entrant
from .report import Run

_MEASURE = Path(__file__).with_name("measure.py")


async def hold(row: str, contest: Contest, *, pairs: int, log: Path) -> AsyncGenerator[Run, None]:
    """Run all programs of a contest in alternating order; a first round, in which caches fill, is not counted.

    Args:
        row: The row's id.
        contest: What to run.
        pairs: Rounds that count.
        log: File for what the programs print.

    Raises:
        SourceError: A program failed.
    """
    for pair in range(pairs + 1):
        for entrant in contest.entrants if pair % 2 else reversed(contest.entrants):
            await entrant.prepare()
            log.unlink(missing_ok=True)
            taken = await _measured(entrant, contest.environment, log)
            if pair > 0:
                yield Run(
                    row=row,
                    work=contest.work,
                    program=entrant.name,
                    pair=pair,
                    wall=taken["wall"],
                    user=taken["user"],
                    system=taken["sys"],
                    rss=int(taken["rss"]),
                    facts=dict(entrant.facts(log)),
                )


def machine(version: str) -> dict[str, object]:
    """What the numbers depend on, besides the tools."""
    release = os.uname()
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory": format_size(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "kernel": release.release,
        "python": sys.version.partition(" ")[0],
        "sfasync": version,
        "load before": round(os.getloadavg()[0], 2),
    }


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """That of this process, but that Python may keep what it compiled, as where packages are installed."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin", **more}


async def _measured(entrant: Entrant, environment: Mapping[str, str], log: Path) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-S",
        _MEASURE,
        log,
        *entrant.command,
        env=_environment(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        printed, _ = await process.communicate()
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever it had under way is in our temporary directory
        raise
    taken: dict[str, float] = json.loads(printed) if process.returncode == 0 else {"exit": 127}
    if taken["exit"] != 0:
        raise SourceError(f"{entrant.name} failed: {last_line(log.read_bytes() if log.exists() else b'')}")
    return taken


def _cpu() -> str:
    """The name of the processor."""
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def _lines(path: Path) -> Iterator[str]:
    with suppress(OSError):
        yield from path.read_text(errors="replace").splitlines()
