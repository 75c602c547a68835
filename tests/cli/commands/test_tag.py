"""`sfasync tag`"""

from __future__ import annotations

import pytest

from ...support.command import sfasync


def test_tags_and_a_note(backup: str) -> None:
    ended = sfasync(
        "tag", backup[:8], "--add", "gold", "--add", "keep", "--remove", "first", "--note", "before the move"
    )
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == f"backup {backup[:12]} of vm: tags gold, keep; note: before the move\n"
    last = sfasync("tag", "vm@latest", "--remove", "keep", "--json").last
    assert last == {
        "event": "result",
        "ok": True,
        "command": "tag",
        "id": backup,
        "vm": "vm",
        "tags": ["gold"],
        "note": "before the move",
    }
    event = sfasync("list", "--tag", "gold", "--json").events[0]
    assert (event["id"], event["tags"], event["note"]) == (backup, ["gold"], "before the move")
    shown = sfasync("show", backup).out
    assert "tags:     gold\n" in shown
    assert "note:     before the move\n" in shown
    assert sfasync("tag", backup, "--note", "", "--remove", "gold", "--quiet").out == ""
    assert sfasync("show", backup, "--json").last["note"] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to change"),
        (["--add", ""], "tag ''"),
        (["--note", "a\nb"], "one line"),
        (["--add", "a", "--remove", "a"], "added and removed"),
    ],
)
def test_wrong_input(backup: str, arguments: list[str], message: str) -> None:
    ended = sfasync("tag", backup, *arguments)
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1


def test_no_such_backup(backup: str) -> None:
    ended = sfasync("tag", "none@latest", "--add", "x", "--json")
    assert (ended.status, ended.last["code"]) == (2, "no-such-backup")
