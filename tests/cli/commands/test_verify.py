"""`sfasync verify`"""

from __future__ import annotations

from pathlib import Path

import pytest

from ...support.command import sfasync
from .conftest import damage


@pytest.mark.parametrize("data", [False, True])
def test_all_is_well(backup: str, data: bool) -> None:
    options = ["--data"] if data else []
    ended = sfasync("verify", *options)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("no problems in 1 backup")
    result = sfasync("verify", *options, "--json").last
    assert (result["command"], result["backups"], result["data"], result["leftovers"]) == ("verify", 1, data, 0)


def test_one_backup(backup: str) -> None:
    assert sfasync("verify", "vm@latest", "--data", "--json").last["backups"] == 1


def test_damage_for_people(backup: str, repository: Path) -> None:
    victim = damage(repository)
    ended = sfasync("verify", "--data")
    assert ended.status == 22
    assert victim.name in ended.out
    assert len(ended.err.splitlines()) == 1
    assert victim.name in ended.err


def test_damage_for_programs(backup: str, repository: Path) -> None:
    victim = damage(repository)
    ended = sfasync("verify", "--data", "--json")
    assert (ended.status, ended.last["code"]) == (22, "integrity")
    assert victim.name in ended.last["path"]
    problems = [event for event in ended.events if event["event"] == "problem"]
    assert any(victim.name in problem["object"] for problem in problems)
    assert any(backup in problem["backups"] for problem in problems)


def test_a_missing_file(backup: str, repository: Path) -> None:
    damage(repository).unlink()
    ended = sfasync("verify", "--json")
    assert ended.status == 22
    assert ended.last["exit"] == 22


def test_leftovers_are_counted_and_no_error(backup: str, repository: Path) -> None:
    (repository / "domains" / "default" / "packs" / "foreign.txt").write_text("not ours")
    result = sfasync("verify", "--data", "--json").last
    assert (result["ok"], result["leftovers"]) == (True, 1)
    assert "foreign.txt" in sfasync("verify", "-v").err


def test_no_such_backup(repository: Path) -> None:
    ended = sfasync("verify", "vm@latest", "--json")
    assert (ended.status, ended.last["code"]) == (2, "no-such-backup")


def test_parts(backup: str) -> None:
    first = sfasync("verify", "--percent", "50%", "--json").last
    assert (first["data"], first["warnings"]) == (True, [])
    sfasync("verify", "--percent", "50")
    assert sfasync("verify", "--json").last["all_read_since"] is not None
    assert sfasync("verify", "--older-than", "30d", "--json").last["bytes_read"] < 1 << 20
    assert "was last read: 20" in sfasync("verify", "-v").err


@pytest.mark.parametrize(
    "options",
    [
        ("--data", "--percent", "10"),
        ("--data", "--older-than", "30d"),
        ("--percent", "0"),
        ("--percent", "101"),
        ("--percent", "x"),
        ("--older-than", "yesterday"),
    ],
)
def test_contradictions(repository: Path, options: tuple[str, ...]) -> None:
    ended = sfasync("verify", *options)
    assert ended.status == 2
    assert len(ended.err.splitlines()) <= 2
