"""`sfasync diff`"""

from __future__ import annotations

from pathlib import Path

import pytest

from ...support.command import sfasync
from ...support.servers import nbdkit

MiB = 1 << 20


@pytest.fixture
def changed(backup: str, disk: Path) -> str:
    """The id of a second backup, of a disk that is larger and has other bytes in two places."""
    with disk.open("r+b") as file:
        file.truncate(18 * MiB)
        for offset in (0, 5 * MiB - 1):
            file.seek(offset)
            file.write(b"changed")
    with nbdkit("file", disk) as server:
        ended = sfasync("backup", "vm", "--disk", f"vda={server.uri}", "--disk", f"vdb={server.uri}", "--json")
    identity: str = ended.last["id"]
    return identity


def test_for_programs(backup: str, changed: str) -> None:
    *ranges, last = sfasync("diff", backup, "vm@latest", "--disk", "vda", "--json").events
    assert [(one["disk"], one["kind"], one["offset"], one["length"]) for one in ranges] == [
        ("vda", "changed", 0, MiB),
        ("vda", "changed", 4 * MiB, 2 * MiB),
        ("vda", "added", 16 * MiB + 512, 2 * MiB - 512),
    ]
    assert (last["first"], last["second"], last["equal"]) == (backup, changed, False)
    assert last["disks"] == [
        {"id": "vda", "ranges": 3, "changed": 3 * MiB, "added": 2 * MiB - 512, "removed": 0},
    ]
    last = sfasync("diff", changed, backup, "--disk", "vdb", "--json").last
    assert last["disks"] == [{"id": "vdb", "ranges": 1, "changed": 0, "added": 0, "removed": 18 * MiB}]


def test_for_people(backup: str, changed: str) -> None:
    ended = sfasync("diff", backup[:8], changed[:8])
    assert (ended.status, ended.err) == (0, "")
    *lines, vda, vdb = ended.out.splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["vda", "changed", "0", "1048576"],
        ["vda", "changed", "4194304", "2097152"],
    ]
    assert vda == "disk vda: 3 MiB changed, 2 MiB added in 3 ranges"
    assert vdb == "disk vdb: 18 MiB added in 1 range"
    assert sfasync("diff", backup, backup).out == "no differences\n"


def test_wrong_input(backup: str) -> None:
    ended = sfasync("diff", backup, backup, "--disk", "vdz", "--json")
    assert (ended.status, ended.last["code"], ended.last["disk"]) == (2, "no-such-backup", "vdz")
    assert sfasync("diff", backup).status == 2
    assert sfasync("diff", backup, "none@latest").status == 2
