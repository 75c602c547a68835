"""`sfasync init`"""

from __future__ import annotations

from pathlib import Path

from ...support.command import sfasync


def test_makes_a_repository_that_is_empty(tmp_path: Path) -> None:
    ended = sfasync("init", "--repo", tmp_path / "r")
    assert (ended.status, ended.err) == (0, "")
    assert str(tmp_path / "r") in ended.out
    assert sfasync("list", "--repo", tmp_path / "r", "--json").last["count"] == 0


def test_tells_programs(tmp_path: Path) -> None:
    ended = sfasync("init", "--repo", tmp_path / "r", "--json")
    assert ended.last["command"] == "init"
    assert ended.last["repository"] == str(tmp_path / "r")


def test_says_nothing_when_quiet(tmp_path: Path) -> None:
    ended = sfasync("init", "--repo", tmp_path / "r", "--quiet")
    assert (ended.status, ended.out, ended.err) == (0, "", "")


def test_refuses_a_place_that_is_taken(repository: Path) -> None:
    ended = sfasync("init", "--json")
    assert ended.status == 2
    assert len(ended.err.splitlines()) == 1
    assert str(repository) in ended.last["message"]


def test_refuses_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ended = sfasync("init", "--repo", tmp_path / "file" / "r", "--json")
    assert ended.status in (2, 21)
    assert ended.last["code"] != "internal"
    assert len(ended.err.splitlines()) == 1
