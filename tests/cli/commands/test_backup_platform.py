"""`sfasync backup` of a platform's VMs, on qemu-storage-daemons."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from ...support.command import Ended, sfasync
from ...support.configured import write, write_configuration
from ...support.qemu import Machine, daemon

MiB = 1 << 20
SIZES = {"vda": 8 * MiB, "vdb": 4 * MiB}


@dataclass(frozen=True)
class Farm:
    """VMs of a platform, and an empty repository.

    Attributes:
        configuration: Describes both.
        web: The VM ``web-01``; there is ``web-02`` as well, and ``db``.
    """

    configuration: Path
    web: Machine

    def call(self, *arguments: str) -> Ended:
        return sfasync(*arguments, "--config", self.configuration, "--json")


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    with ExitStack() as stack:
        web, other, db = (stack.enter_context(daemon(sizes)) for sizes in (SIZES, {"vda": MiB}, {"vda": MiB}))
        file = write_configuration(tmp_path / "sfasync.toml", **{"web-01": web, "web-02": other, "db": db})
        with file.open("a") as more:
            more.write('[repositories.default]\npath = "repository"\n')
        farm = Farm(file, web)
        write(web, "vda", MiB, MiB)
        assert farm.call("init").status == 0
        yield farm


def test_one_vm(farm: Farm) -> None:
    first = farm.call("backup", "web-01", "--platform", "lab").last
    assert [(disk["id"], disk["mode"]) for disk in first["disks"]] == [("vda", "full"), ("vdb", "full")]
    write(farm.web, "vda", 5 * MiB, 512)
    second = farm.call("backup", "web-01", "--platform", "lab", "--mode", "incremental", "--audit", "off").last
    assert (second["parent"], second["vm"]) == (first["id"], "web-01")
    assert [disk["mode"] for disk in second["disks"]] == ["incremental", "incremental"]
    chosen = farm.call("backup", "web-01", "--platform", "lab", "--disk", "vdb").last
    assert [disk["id"] for disk in chosen["disks"]] == ["vdb"]


def test_several_vms(farm: Farm) -> None:
    everything = farm.call("backup", "--all", "--platform", "lab")
    *backups, result = [event for event in everything.events if event["event"] != "progress"]
    assert result == {"event": "result", "ok": True, "command": "backup", "count": 3}
    assert {(event["event"], event["ok"], event["vm_name"]) for event in backups} == {
        ("vm-backup", True, name) for name in ("db", "web-01", "web-02")
    }
    matched = farm.call("backup", "--match", "web-*", "--match", "nobody", "--platform", "lab")
    assert {event["vm"] for event in matched.events if event["event"] == "vm-backup"} == {"web-01", "web-02"}
    people = sfasync("backup", "--match", "db", "--platform", "lab", "--config", farm.configuration)
    assert people.out.splitlines()[-1] == "backed up 1 VM"
    assert " of db: read " in people.out
    assert farm.call("list").last["count"] == 6


def test_a_dry_run_tells_what_would_be_read(farm: Farm) -> None:
    before = farm.call("backup", "web-01", "--platform", "lab", "--dry-run").last
    assert [(disk["id"], disk["mode"]) for disk in before["disks"]] == [("vda", "full"), ("vdb", "full")]
    assert [disk["bytes_to_read"] for disk in before["disks"]] == [MiB, 0]
    assert (before["parent"], before["vm"], farm.call("list").last["count"]) == (None, "web-01", 0)
    first = farm.call("backup", "web-01", "--platform", "lab", "--audit", "off").last
    assert sum(disk["bytes_read"] for disk in first["disks"]) == MiB
    write(farm.web, "vda", 5 * MiB, 512)
    after = farm.call("backup", "web-01", "--platform", "lab", "--dry-run", "--audit", "off").last
    sums = [(disk["mode"], disk["bytes_to_read"] > 0, disk["bytes_unchanged"] > 0) for disk in after["disks"]]
    assert (after["parent"], sums[0]) == (first["id"], ("incremental", True, True))
    second = farm.call("backup", "web-01", "--platform", "lab", "--mode", "incremental", "--audit", "off").last
    for told, done in zip(after["disks"], second["disks"], strict=True):
        assert (told["mode"], told["bytes_to_read"]) == (done["mode"], done["bytes_read"])
    assert farm.call("cleanup").last["count"] == 0


def test_a_dry_run_of_several_vms(farm: Farm) -> None:
    *estimates, result = farm.call("backup", "--all", "--platform", "lab", "--dry-run").events
    assert {(event["event"], event["ok"], event["vm"]) for event in estimates} == {
        ("vm-estimate", True, name) for name in ("db", "web-01", "web-02")
    }
    assert (result["count"], result["dry_run"]) == (3, True)
    people = sfasync("backup", "web-01", "--platform", "lab", "--dry-run", "--config", farm.configuration).out
    assert people.splitlines()[0] == "a backup of web-01 would read 1 MiB of 12 MiB"
    ended = farm.call("backup", "web-01", "--platform", "lab", "--dry-run", "--mode", "incremental")
    assert (ended.status, ended.last["code"]) == (23, "cbt")


def test_a_vm_that_fails_keeps_nobody_from_the_others(farm: Farm) -> None:
    farm.web.server.stop()
    ended = farm.call("backup", "--all", "--platform", "lab")
    assert (ended.status, ended.last["code"]) == (20, "platform")
    assert ended.last["message"].startswith("1 of 3 VMs failed, first web-01: ")
    backups = {event["vm"]: event for event in ended.events if event["event"] == "vm-backup"}
    assert [backups[vm]["ok"] for vm in ("db", "web-01", "web-02")] == [True, False, True]
    assert (backups["web-01"]["exit"], backups["web-01"]["code"]) == (20, "platform")
    assert "web-01: " in ended.err


USAGE = {
    "web-01 --transport nbd": "no choice of transports",
    "web-01 --disk vdx": "vdx",
    "nobody": "no VM 'nobody'",
    "--match nobody": "no VM of the platform matches",
}


def test_usage(farm: Farm) -> None:
    for arguments, message in USAGE.items():
        ended = farm.call("backup", "--platform", "lab", *arguments.split())
        assert ended.status == 2, arguments
        assert message in ended.last["message"], arguments
    assert farm.call("list").last["count"] == 0


def test_a_missing_repository_comes_before_the_platform(farm: Farm, tmp_path: Path) -> None:
    ended = farm.call("backup", "nobody", "--platform", "lab", "--repo", str(tmp_path / "missing"))
    assert (ended.status, ended.last["code"]) == (10, "repository")
