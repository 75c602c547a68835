"""`sfasync show`"""

from __future__ import annotations

from pathlib import Path

from ...support.command import sfasync


def test_everything_for_people(backup: str) -> None:
    ended = sfasync("show", "vm@latest")
    assert (ended.status, ended.err) == (0, "")
    for text in (backup, "vm", "vda", "16 MiB", "first-backup", "plain", "tree digest of vda: "):
        assert text in ended.out


def test_everything_for_programs(backup: str) -> None:
    result = sfasync("show", backup[:6], "--json").last
    assert (result["command"], result["id"], result["vm"]) == ("show", backup, "vm")
    assert (result["platform"], result["parent"], result["files"]) == ("plain", None, [])


def test_no_such_backup(repository: Path) -> None:
    ended = sfasync("show", "vm@latest", "--json")
    assert (ended.status, ended.last["code"]) == (2, "no-such-backup")
    assert len(ended.err.splitlines()) == 1
