"""The benchmarks measure what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.data import make_image
from bench.report import summarize, table

from ..support.servers import require

MIB = 1 << 20
MEASURE = Path(__file__).parents[2] / "bench" / "measure.py"


def measured(log: Path, *command: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-S", MEASURE, log, *command], capture_output=True, check=True, timeout=60)
    taken: dict[str, float] = json.loads(done.stdout)
    return taken


def test_measures_a_command_and_its_children(tmp_path: Path) -> None:
    burn = "x = bytearray(64 << 20); [i * i for i in range(3_000_000)]; print('said')"
    taken = measured(tmp_path / "log", "sh", "-c", f'"{sys.executable}" -c "{burn}"; exit 7')
    assert taken["exit"] == 7
    assert taken["wall"] >= taken["user"] > 0
    assert taken["rss"] > 64 * MIB
    assert (tmp_path / "log").read_text() == "said\n"


def test_small_commands_look_small(tmp_path: Path) -> None:
    assert measured(tmp_path / "log", "true")["rss"] < 32 * MIB


def test_data_is_the_same_every_time_and_sparse(tmp_path: Path) -> None:
    size = 10 * MIB + 512
    for name in ("a", "b"):
        make_image(tmp_path / name, size)
    content = (tmp_path / "a").read_bytes()
    assert len(content) == size
    assert content == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_blocks * 512 < 9 * MIB


def test_report() -> None:
    runs: list[dict[str, float | str]] = [
        {"program": program, "wall": wall, "user": 1.0, "sys": 0.5, "rss": 40 * MIB, "bytes": 1 << 30}
        for program, walls in (("ours", (2.0, 1.0, 4.0)), ("theirs", (6.0, 4.0, 5.0)))
        for wall in walls
    ]
    ours, theirs = summarize("copy", runs)
    assert (ours["wall"], ours["wall_least"], ours["wall_most"], ours["cpu_per_gib"]) == (2.0, 1.0, 4.0, 1.5)
    heading, first, second = table([ours, theirs])
    assert "ratio" in heading
    assert first.split() == ["ours", "2.00", "s", "1.00..4.00", "1.00", "1.50", "40", "0.50"]
    assert second.split() == ["theirs", "5.00", "s", "4.00..6.00", "2.50", "1.50", "40", "0.20"]


def test_a_contest_writes_json_lines(tmp_path: Path) -> None:
    for program in ("nbdkit", "nbdcopy"):
        require(program)
    output = tmp_path / "results" / "small.jsonl"
    command = [sys.executable, "-m", "bench", "copy", "--size", "2M", "--rounds", "1", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["event"] for record in records] == ["machine", "run", "run", "summary", "summary"]
    assert {record["program"] for record in records[1:]} == {"sfasync", "nbdcopy"}
