"""Runs contests: ``python -m bench [--size 4G] [--rounds 5] [CONTEST...]``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from sfasync import __version__
from sfasync.units import format_size, parse_size

from .contests import CONTESTS, NEEDS, Contest
from .data import make_image
from .report import summarize, table

HERE = Path(__file__).parent
MEASURE = HERE / "measure.py"


def main() -> int:
    """Run what the command line asks for; the exit code."""
    arguments = _arguments()
    contests = arguments.contests or list(CONTESTS)
    needed = sorted({"nbdkit"}.union(*(NEEDS[name] for name in contests)))
    missing = [name for name in needed if shutil.which(name) is None]
    if missing:
        print(f"bench: {', '.join(missing)} not installed; run scripts/system-packages bench", file=sys.stderr)
        return 2
    output = arguments.output or HERE / "results" / f"{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    output.parent.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="sfasync-bench-", dir=arguments.directory) as directory,
        output.open("x") as results,
    ):
        _record(results, machine())
        image = Path(directory, "disk.raw")
        make_image(image, arguments.size)
        for name in contests:
            place = Path(directory, name)
            place.mkdir()
            with CONTESTS[name](image, place) as contest:
                _hold(name, contest, arguments, place, results)
            shutil.rmtree(place)
    print(f"\n{output}")
    return 0


def machine() -> dict[str, object]:
    """What the numbers depend on."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ":")
    return {
        "event": "machine",
        "time": time.time(),
        "cpu": cpu.partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sfasync": __version__,
        "commit": _first_line("git", "-C", str(HERE), "describe", "--always", "--dirty"),
        "nbdkit": _first_line("nbdkit", "--version"),
        "nbdcopy": _first_line("nbdcopy", "--version"),
        "restic": _first_line("restic", "version"),
    }


def _hold(name: str, contest: Contest, arguments: argparse.Namespace, place: Path, results: TextIO) -> None:
    """Run all programs in turn, the first round uncounted, and report."""
    print(f"\n{name}, {format_size(arguments.size)}, {arguments.rounds} rounds ({contest.caveats})")
    runs = []
    for turn in range(arguments.rounds + 1):
        entrants = list(contest.entrants.items())
        for program, entrant in entrants if turn % 2 else reversed(entrants):
            entrant.prepare()
            taken = _measured(entrant.command, contest.environment, place / "log")
            run = {"contest": name, "program": program, "round": turn, "bytes": arguments.size, **taken}
            if turn > 0:
                runs.append(run)
                _record(results, {"event": "run", **run})
    order = list(contest.entrants)
    summaries = sorted(summarize(name, runs), key=lambda summary: order.index(str(summary["program"])))
    for summary in summaries:
        _record(results, summary)
    print("\n".join(table(summaries)), flush=True)


def _measured(command: Sequence[str], environment: Mapping[str, str], log: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-S", str(MEASURE), str(log), *command],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
    )
    taken: dict[str, float] = json.loads(done.stdout)
    if taken.pop("exit") != 0:
        raise SystemExit(f"bench: {' '.join(command)} failed: {log.read_text(errors='replace').strip()}")
    return taken


def _record(results: TextIO, record: Mapping[str, object]) -> None:
    results.write(json.dumps(record) + "\n")
    results.flush()


def _first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    printed = subprocess.run(command, capture_output=True, text=True).stdout
    return printed.strip().partition("\n")[0]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measure sfasync against nbdcopy and restic.")
    parser.add_argument("contests", nargs="*", choices=[[], *CONTESTS], metavar="CONTEST", help=", ".join(CONTESTS))
    parser.add_argument("--size", type=parse_size, default="1G", help="of the disk (1G)")
    parser.add_argument("--rounds", type=int, default=5, help="counted runs of each program (5)")
    parser.add_argument("--directory", type=Path, help="where disk and repositories go (the temporary directory)")
    parser.add_argument("--output", type=Path, help="file for the JSON lines (bench/results/TIME.jsonl)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
