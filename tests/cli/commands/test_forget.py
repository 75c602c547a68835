"""`sfasync forget`"""

from __future__ import annotations

from ...support.command import sfasync
from ...support.servers import Server


def test_for_people(backup: str) -> None:
    ended = sfasync("forget", backup[:8], "--dry-run")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(f"would forget backup {backup[:12]} of vm from 2")
    ended = sfasync("forget", backup[:8], "--reason", "a test")
    assert (ended.status, ended.err) == (0, "")
    told, hint = ended.out.splitlines()
    assert told.startswith(f"forgot backup {backup[:12]} of vm from 2")
    assert hint == "their space comes back with the next prune"
    assert sfasync("list").out == "no backups\n"
    assert sfasync("verify", "--data").status == 0


def test_for_programs(backup: str, server: Server) -> None:
    other = sfasync("backup", "vm", "--disk", f"vda={server.uri}", "--json").last["id"]
    *events, last = sfasync("forget", "vm@latest", backup, "--dry-run", "--json").events
    assert [event["id"] for event in events] == [other, backup]
    assert (last["count"], last["dry_run"]) == (2, True)
    assert sfasync("list", "--json").last["count"] == 2
    last = sfasync("forget", other, backup, "--json").last
    assert (last["count"], last["dry_run"]) == (2, False)
    assert sfasync("list", "--json").last["count"] == 0
    assert sfasync("backup", "vm", "--disk", f"vda={server.uri}", "--json").last["parent"] is None
    assert sfasync("list", "--json").events[0]["seq"] == 3


def test_all_are_checked_first(backup: str) -> None:
    ended = sfasync("forget", backup, "0000", "--json")
    assert (ended.status, ended.last["code"]) == (2, "no-such-backup")
    assert sfasync("list", "--json").last["count"] == 1
    assert sfasync("forget").status == 2
    assert sfasync("forget", backup, "--reason", "a\nb").status == 2
