"""The shapes that rows, the measuring and the report share."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...programs import find_tool, run_tool

SFASYNC = (sys.executable, "-P", "-c", "from sfasync.__main__ import main; main()")
"""Our command as its installed script starts it; -P keeps the current directory out of the module path."""

Facts = Mapping[str, float | str]


async def nothing() -> None:
    """For a command that needs no preparation."""


async def synced() -> None:
    """For a command that writes: what another left to be written is not its to wait for."""
    await run_tool("sync")


def no_facts(_log: Path) -> Facts:
    """For a command of which only the resources are of interest."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """One program in a contest.

    Attributes:
        name: As in the table.
        command: What is measured.
        prepare: Done before each run, not measured.
        facts: Called after each run with what it printed: more to record of it.
    """

    name: str
    command: Sequence[str | Path]
    prepare: Callable[[], Awaitable[None]] = nothing
    facts: Callable[[Path], Facts] = no_facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Programs that do the same job.

    Attributes:
        work: What they do.
        size: Bytes that are moved, for rates.
        entrants: The programs, ours first.
        environment: Variables for all of them.
    """

    work: str
    size: int
    entrants: Sequence[Entrant]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a row has to work with.

    Attributes:
        directory: Its own, on the disk that is measured.
        shared: For data that other rows need as well.
        sockets: A directory whose path is short enough for sockets (unix(7)).
        size: Bytes of its disk.
    """

    directory: Path
    shared: Path
    sockets: Path
    size: int

    @staticmethod
    def with_peers(ours: Entrant, peers: Mapping[str, Entrant]) -> list[Entrant]:
        """Our program, and those others whose tool is installed."""
        return [ours, *(entrant for tool, entrant in peers.items() if find_tool(tool) is not None)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table of what is measured.

    Attributes:
        id: ``S1``.
        caveats: What to know before comparing.
        hold: Gives contests, each while its servers run.
        size: Bytes of its disk, unless another size is wanted.
        scales: Whether another size can be wanted.
        tools: Programs it cannot do without, and the Debian packages that bring them.
        peers: Programs that we are compared with, and their packages; those that are missing are left out.
    """

    id: str
    caveats: str
    hold: Callable[[Place], AsyncGenerator[Contest, None]]
    size: int
    scales: bool = True
    tools: Mapping[str, str] = field(default_factory=dict)
    peers: Mapping[str, str] = field(default_factory=dict)


def result_of(log: Path) -> dict[str, object]:
    """The result that our command printed with ``--json``."""
    result: dict[str, object] = json.loads(log.read_text().splitlines()[-1])
    return result


def limited_by(log: Path) -> Facts:
    """What our backup says that limited it."""
    return {"limited by": str(result_of(log)["limited_by"])}


def bytes_below(directory: Path) -> int:
    """Bytes in all files below a directory."""
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())
