"""`sfasync vms` on a qemu-storage-daemon."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ...support.command import sfasync
from ...support.configured import write_configuration
from ...support.qemu import daemon

MiB = 1 << 20


def test_vms(tmp_path: Path) -> None:
    with daemon({"vda": 4 * MiB, "vdb": 2 * MiB}, formats={"vdb": "raw"}) as machine:
        file = write_configuration(tmp_path / "sfasync.toml", web=machine)
        ended = sfasync("vms", "--platform", "lab", "--config", file, "--json")
        assert ended.status == 0, ended.err
        vm, result = ended.events
        assert vm["disks"] == [
            {"id": "vda", "size": 4 * MiB, "tracked": False},
            {"id": "vdb", "size": 2 * MiB, "tracked": False},
        ]
        assert (vm["platform"], vm["id"], vm["name"], vm["refusal"]) == ("lab", "web", "web", None)
        assert len(vm["warnings"]) == 1
        assert result == {"event": "result", "ok": True, "command": "vms", "count": 1}

        heading, row = sfasync("vms", "--config", file).out.splitlines()
        assert heading.split() == ["NAME", "ID", "STATE", "DISKS", "SIZE", "CHANGES", "BACKUP"]
        assert re.split(r"  +", row) == ["web", "served", "2", "6 MiB", "not tracked", "yes"]
        assert "its format (raw) keeps no bitmaps" in sfasync("vms", "--config", file, "-v").err


def test_a_vm_that_does_not_answer_is_listed_with_the_reason(tmp_path: Path) -> None:
    with daemon({"vda": MiB}) as machine:
        file = write_configuration(tmp_path / "sfasync.toml", web=machine)
    ended = sfasync("vms", "--config", file, "--json")
    assert (ended.status, ended.last["count"]) == (0, 1)
    assert ended.events[0]["refusal"]
    assert ended.events[0]["disks"] == []


def test_platforms_that_fail_keep_nobody_from_the_others(tmp_path: Path) -> None:
    with daemon({"vda": MiB}) as machine:
        file = write_configuration(tmp_path / "sfasync.toml", web=machine)
        with file.open("a") as more:
            more.write('[platforms.aaa]\ntype = "vmware"\n[platforms.zzz]\ntype = "qemu"\n')
        ended = sfasync("vms", "--config", file, "--json")
        assert (ended.status, ended.last["code"]) == (2, "configuration")
        assert [event["event"] for event in ended.events] == ["vm", "error"]
        assert "'vmware'; there are qemu" in ended.err
        assert "platforms.zzz.vms: this key is missing" in ended.err
        assert sfasync("vms", "--config", file, "--platform", "lab").status == 0


@pytest.mark.parametrize("command", ["vms", "cleanup"])
def test_without_platforms(command: str, tmp_path: Path) -> None:
    assert "there is no configuration file" in sfasync(command).err
    file = tmp_path / "sfasync.toml"
    file.touch()
    for arguments, message in (
        ([], "describes no platform"),
        (["--platform", "prod"], "no platform 'prod'"),
    ):
        ended = sfasync(command, "--config", file, *arguments, "--json")
        assert ended.status == 2
        assert message in ended.last["message"]


def test_completion_knows_platforms(tmp_path: Path) -> None:
    file = tmp_path / "sfasync.toml"
    file.write_text('[platforms.lab]\ntype = "qemu"\n[platforms.prod]\ntype = "qemu"\n')
    words = "sfasync vms --platform p"
    asked = {"_SFASYNC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "3", "SFASYNC_CONFIG": str(file)}
    assert sfasync(env=asked).out.splitlines() == ["plain,prod"]
