"""`sfasync list`"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...support.command import finish, sfasync, start
from ...support.servers import Server, nbdkit


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


def test_nothing_is_unfinished(backup: str) -> None:
    ended = sfasync("list", "--unfinished")
    assert (ended.status, ended.out, ended.err) == (0, "no unfinished backups\n", "")
    assert sfasync("list", "--unfinished", "--json").last["count"] == 0


def test_what_a_stopped_backup_had_finished(repository: Path, disk: Path) -> None:
    spot = 9 * (1 << 20)
    read = f"[ $4 -lt {spot} ] || sleep 100; dd if={disk} iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none"
    with nbdkit("eval", f"get_size=stat -c %s {disk}", f"pread={read}") as server:
        process = start("backup", "vm", "--disk", f"vda={server.uri}", "--snapshot-id", "s1")
        while not (running := sfasync("list", "--unfinished", "--json").events[:-1]):
            assert process.poll() is None
        process.terminate()
        assert finish(process).status == 143
    (stopped,) = sfasync("list", "--unfinished", "--json").events[:-1]
    assert (running[0]["running"], stopped["running"]) == (True, False)
    assert (stopped["vm"], stopped["snapshot"], stopped["disks"]) == ("vm", "s1", ["vda"])
    assert 0 < running[0]["bytes_journaled"] <= stopped["bytes_journaled"] <= spot
    assert stopped["age"] < 60
    heading, row = sfasync("list", "--unfinished").out.splitlines()
    assert heading.split()[:3] == ["VM", "STARTED", "DISKS"]
    assert re.fullmatch(r"vm +[-\d]+ [:\d]+ +vda +\d MiB +[\d.]+ s ago +s1 +stopped", row)
    assert sfasync("list", "--unfinished", "--vm", "other", "--json").last["count"] == 0
    with nbdkit("file", disk) as server:
        ended = sfasync("backup", "vm", "--disk", f"vda={server.uri}", "--snapshot-id", "s1")
    assert re.match(r"backup [0-9a-f]{12} of vm: read [\d.]+ MiB, resumed [\d.]+ MiB, new ", ended.out)


def test_filters_that_the_unfinished_do_not_have(repository: Path) -> None:
    for options in (("--tag", "t"), ("--since", "1h")):
        ended = sfasync("list", "--unfinished", *options)
        assert ended.status == 2
        assert "--unfinished goes with --vm alone" in ended.err
