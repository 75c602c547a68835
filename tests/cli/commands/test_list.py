"""`sfasync list`"""

from __future__ import annotations

import os
from pathlib import Path

from ...support.command import finish, sfasync, start
from ...support.servers import Server


def listed(*args: str) -> list[str]:
    """Ids of the backups listed."""
    events = sfasync("list", "--json", *args).events
    assert events[-1]["count"] == len(events) - 1
    return [event["id"] for event in events[:-1]]


def test_an_empty_repository(repository: Path) -> None:
    ended = sfasync("list")
    assert (ended.status, ended.out, ended.err) == (0, "no backups\n", "")
    assert listed() == []


def test_a_table_for_people(backup: str) -> None:
    ended = sfasync("list")
    heading, row = ended.out.splitlines()
    assert (ended.status, ended.err) == (0, "")
    assert heading.split() == ["ID", "VM", "TIME", "DISKS", "SIZE", "MODE", "STORED", "TAGS"]
    assert row.startswith(backup[:12])
    assert row.endswith("first")


def test_objects_for_programs(backup: str) -> None:
    event, last = sfasync("list", "--json").events
    assert (event["event"], event["id"], event["vm"], event["tags"]) == ("backup", backup, "vm", ["first"])
    assert event["disks"][0]["id"] == "vda"
    assert last["count"] == 1


def test_a_selection(backup: str, server: Server) -> None:
    other = sfasync("backup", "other", "--disk", f"vda={server.uri}", "--tag", "weekly", "--json").last["id"]
    assert sorted(listed()) == sorted([backup, other])
    assert listed("--vm", "other") == [other]
    assert listed("--vm", "nobody") == []
    assert listed("--tag", "first") == [backup]
    assert listed("--tag", "weekly", "--vm", "vm") == []
    assert len(listed("--since", "1h")) == 2
    assert listed("--since", "2999-01-01") == []


def test_a_reader_that_has_gone_is_no_error(backup: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start("list", stdout=writer)
    os.close(writer)
    ended = finish(process)
    assert (ended.status, ended.err) == (0, "")
