"""`sfasync restore`"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ...support.command import finish, sfasync, start
from ...support.servers import Server, nbdkit
from .conftest import damage

MiB = 1 << 20


def test_to_files(backup: str, disk: Path, tmp_path: Path) -> None:
    ended = sfasync("restore", "vm@latest", "--to", tmp_path / "new" / "out")
    assert (ended.status, ended.err) == (0, "")
    restored = tmp_path / "new" / "out" / "vda.raw"
    assert str(restored) in ended.out
    assert restored.read_bytes() == disk.read_bytes()
    assert restored.stat().st_blocks * 512 < 7 * MiB, "zeros are not allocated"


def test_a_result_for_programs(backup: str, tmp_path: Path) -> None:
    result = sfasync("restore", backup[:8], "--to", tmp_path / "out", "--verify-after", "--json").last
    (disk,) = result["disks"]
    assert (result["command"], result["id"], result["vm"]) == ("restore", backup, "vm")
    assert (disk["id"], disk["size"], disk["verified"]) == ("vda", 16 * MiB + 512, True)
    assert disk["target"] == str(tmp_path / "out" / "vda.raw")


def test_to_qcow2(backup: str, disk: Path, tmp_path: Path) -> None:
    ended = sfasync("restore", backup, "--to", tmp_path / "out", "--format", "qcow2")
    assert (ended.status, ended.err) == (0, "")
    image = tmp_path / "out" / "vda.qcow2"
    compare = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(disk), str(image)]
    assert subprocess.run(compare, capture_output=True).returncode == 0


def test_to_a_disk(backup: str, disk: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(b"old" * (7 * MiB))
    with nbdkit("file", target) as server:
        ended = sfasync("restore", backup, "--to-disk", f"vda={server.uri}", "--verify-after")
    assert (ended.status, ended.err) == (0, "")
    content = disk.read_bytes()
    assert target.read_bytes()[: len(content)] == content
    assert target.read_bytes()[len(content) :] == (b"old" * (7 * MiB))[len(content) :], "the tail is kept"


def test_names_of_disks_are_no_paths(repository: Path, server: Server, disk: Path, tmp_path: Path) -> None:
    assert sfasync("backup", "vm", "--disk", f"../a b={server.uri}", "--disk", f"..={server.uri}").status == 0
    ended = sfasync("restore", "vm@latest", "--to", tmp_path / "out", "--disk", "../a b")
    assert ended.status == 0
    assert (tmp_path / "out" / "..%2Fa%20b.raw").read_bytes() == disk.read_bytes()
    assert sfasync("restore", "vm@latest", "--to", tmp_path / "out2", "--disk", "..").status == 2


def test_a_file_that_exists_is_refused(backup: str, disk: Path, tmp_path: Path) -> None:
    (tmp_path / "vda.raw").write_text("precious")
    ended = sfasync("restore", backup, "--to", tmp_path, "--json")
    assert (ended.status, ended.last["code"]) == (2, "target-refused")
    assert "--force" in ended.err
    assert (tmp_path / "vda.raw").read_text() == "precious"
    assert sfasync("restore", backup, "--to", tmp_path, "--force").status == 0
    assert (tmp_path / "vda.raw").read_bytes() == disk.read_bytes()


def test_a_target_that_is_too_small_is_refused(backup: str) -> None:
    with nbdkit("memory", "16M") as small:
        ended = sfasync("restore", backup, "--to-disk", f"vda={small.uri}", "--json")
    assert (ended.status, ended.last["code"]) == (2, "target-refused")


@pytest.mark.parametrize("reference", ["nobody@latest", "ffffffff", "vm", ""])
def test_no_such_backup(backup: str, tmp_path: Path, reference: str) -> None:
    ended = sfasync("restore", reference, "--to", tmp_path / "out", "--json")
    assert ended.status == 2
    assert ended.last["exit"] == 2
    assert not (tmp_path / "out").exists()


def test_no_such_disk(backup: str, tmp_path: Path) -> None:
    ended = sfasync("restore", backup, "--to", tmp_path / "out", "--disk", "vdz", "--json")
    assert (ended.status, ended.last["disk"]) == (2, "vdz")


def test_a_target_that_fails(backup: str) -> None:
    with nbdkit("memory", "32M", "error-pwrite-rate=100%", filters=("error",)) as broken:
        ended = sfasync("restore", backup, "--to-disk", f"vda={broken.uri}", "--json")
    assert (ended.status, ended.last["code"]) == (21, "target")
    assert len(ended.err.splitlines()) == 1


def test_damage_is_found_and_no_file_appears(backup: str, repository: Path, tmp_path: Path) -> None:
    damage(repository)
    ended = sfasync("restore", backup, "--to", tmp_path / "out", "--json")
    assert ended.status == 22
    assert ended.last["code"] == "integrity"
    assert len(ended.err.splitlines()) == 1
    assert os.listdir(tmp_path / "out") == []


def test_a_signal_leaves_no_file(backup: str, tmp_path: Path) -> None:
    with nbdkit("memory", "32M", "delay-write=1", "delay-zero=1", filters=("delay",)) as slow:
        process = start("restore", backup, "--to-disk", f"vda={slow.uri}", "--json")
        assert process.stdout is not None
        process.stdout.readline()  # it is under way
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        ended = finish(process)
    assert time.monotonic() - began < 5
    assert ended.status == 130
    assert ended.last["code"] == "interrupted"
