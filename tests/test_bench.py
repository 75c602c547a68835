"""The benchmarks of single parts, and of two commits, run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.timing import report

from .support.servers import require

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_report_is_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []
    report("case", lambda: calls.append(1), count=3, size=1 << 20)
    told = json.loads(capsys.readouterr().out)
    assert len(calls) == 21
    assert told["case"] == "case"
    assert 0 < told["least"] <= told["us"]
    assert told["MiB/s"] > 0


def test_packs(tmp_path: Path) -> None:
    cases = [json.loads(line)["case"] for line in run("bench.micro_pack", str(tmp_path)).splitlines()]
    assert cases == ["write and sync", "read a blob", "read and check all"]
    assert list(tmp_path.iterdir()) == []


def test_the_index() -> None:
    cases = [json.loads(line)["case"] for line in run("bench.micro_index").splitlines()]
    assert "find a blob" in cases


def test_two_commits(tmp_path: Path) -> None:
    require("nbdkit")
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    results = tmp_path / "results"
    told = run("bench.compare", "HEAD", "S4", "--size", "1M", "--pairs", "1", "--results", str(results))
    assert "here" in told
    assert "HEAD" in told
    assert len(Path(f"{results}.md").read_text().splitlines()) == 4 + 2
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "bench-base-" not in worktrees
