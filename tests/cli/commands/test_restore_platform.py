"""`sfasync restore` to the VM of a platform, on a qemu-storage-daemon."""

from __future__ import annotations

from pathlib import Path

from ...support.command import Ended, sfasync
from ...support.configured import content, write, write_configuration
from ...support.qemu import daemon

MiB = 1 << 20


def test_a_vm_gets_its_disks_back(tmp_path: Path) -> None:
    with daemon({"vda": 8 * MiB, "vdb": 2 * MiB}) as machine:
        file = write_configuration(tmp_path / "sfasync.toml", web=machine)
        with file.open("a") as more:
            more.write('[repositories.default]\npath = "repository"\n')

        def call(*arguments: str) -> Ended:
            return sfasync(*arguments, "--config", file, "--json")

        write(machine, "vda", MiB, MiB)
        assert call("init").status == 0
        backup = call("backup", "web", "--platform", "lab").last
        before = [content(machine, disk) for disk in ("vda", "vdb")]
        write(machine, "vda", 3 * MiB, 512)
        write(machine, "vdb", 0, 512)

        one = call("restore", backup["id"], "--platform", "lab", "--disk", "vdb", "--verify-after").last
        assert [(disk["id"], disk["verified"]) for disk in one["disks"]] == [("vdb", True)]
        assert (one["vm"], one["restored_vm"]) == ("web", "web")
        assert [content(machine, disk) == was for disk, was in zip(("vda", "vdb"), before, strict=True)] == [
            False,
            True,
        ]
        both = call("restore", "web@latest", "--platform", "lab", "--vm", "web", "--differential").last
        assert [content(machine, disk) for disk in ("vda", "vdb")] == before
        assert [(disk["mode"], disk["reason"]) for disk in both["disks"]] == [("differential", None)] * 2
        assert both["disks"][0]["bytes_written"] + both["disks"][0]["bytes_zero"] < 8 * MiB

        refused = call("restore", backup["id"], "--platform", "lab", "--new-name", "web-02")
        assert (refused.status, refused.last["code"]) == (2, "usage")


def test_a_missing_repository_comes_before_the_platform(tmp_path: Path) -> None:
    file = tmp_path / "sfasync.toml"
    file.write_text('[platforms.lab]\ntype = "qemu"\nvms = {}\n')
    ended = sfasync("restore", "x@latest", "--platform", "lab", "--config", file, "--repo", tmp_path / "r", "--json")
    assert (ended.status, ended.last["code"]) == (10, "repository")
