"""`sfasync export`"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ...support.command import COMMAND, sfasync, start
from ...support.servers import require
from .conftest import damage


def test_a_raw_file(backup: str, disk: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.img"
    ended = sfasync("export", backup[:8], "--disk", "vda", target)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(f"exported disk vda of backup {backup[:12]} to {target}: 16 MiB, data ")
    assert target.read_bytes() == disk.read_bytes()
    assert target.stat().st_blocks * 512 < 8 << 20
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("name", "options"), [("out.qcow2", ()), ("out", ("--format", "qcow2"))])
def test_a_qcow2_file(backup: str, disk: Path, tmp_path: Path, name: str, options: tuple[str, ...]) -> None:
    for program in ("qemu-img", "qemu-nbd"):
        require(program)
    last = sfasync("export", "vm@latest", "--disk", "vda", tmp_path / name, *options, "--json").last
    assert (last["command"], last["id"], last["disk"]["id"]) == ("export", backup, "vda")
    assert last["disk"]["tree"] == sfasync("show", backup, "--json").last["disks"][0]["tree"]
    subprocess.run(
        ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", tmp_path / name, disk], check=True, capture_output=True
    )


def test_a_name_that_says_qcow2_may_be_raw(backup: str, disk: Path, tmp_path: Path) -> None:
    assert sfasync("export", backup, "--disk", "vda", tmp_path / "a.qcow2", "--format", "raw").status == 0
    assert (tmp_path / "a.qcow2").read_bytes() == disk.read_bytes()


def test_a_pipe(backup: str, disk: Path) -> None:
    ended = subprocess.run([*COMMAND, "export", backup, "--disk", "vda", "-"], capture_output=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout == disk.read_bytes()


def test_a_redirected_file_is_sparse(backup: str, disk: Path, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        process = start("export", backup, "--disk", "vda", "-", stdout=out)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert (tmp_path / "out").read_bytes() == disk.read_bytes()
    assert (tmp_path / "out").stat().st_blocks * 512 < 8 << 20


def test_a_reader_that_goes_away_is_an_error(backup: str) -> None:
    reader, writer = os.pipe()
    process = start("export", backup, "--disk", "vda", "-", stdout=writer)
    os.close(writer)
    taken = os.read(reader, 4096)
    os.close(reader)
    _, err = process.communicate(timeout=60)
    assert len(taken) == 4096
    assert process.returncode == 21
    assert len(err.splitlines()) == 1


def test_what_exists_is_refused(backup: str, disk: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("precious")
    ended = sfasync("export", backup, "--disk", "vda", target, "--json")
    assert (ended.status, ended.last["code"]) == (2, "target-refused")
    assert target.read_text() == "precious"
    assert sfasync("export", backup, "--disk", "vda", target, "--force").status == 0
    assert target.read_bytes() == disk.read_bytes()
    target.unlink()
    target.mkdir()
    ended = sfasync("export", backup, "--disk", "vda", target, "--force", "--json")
    assert (ended.status, ended.last["code"]) == (2, "target-refused")
    assert "is not a file" in ended.err
    assert list(tmp_path.glob(".sfasync-*")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vm@latest", "out"], "--disk"),
        (["vm@latest", "--disk", "vdz", "out"], "has no disk 'vdz'"),
        (["none@latest", "--disk", "vda", "out"], "no backup of VM none"),
        (["vm@latest", "--disk", "vda", "-", "--format", "qcow2"], "raw only"),
        (["vm@latest", "--disk", "vda", "-", "--json"], "--json"),
        (["vm@latest", "--disk", "vda", "nbd://localhost/x"], "restore writes to disks"),
        (["vm@latest", "--disk", "vda", "null:"], "restore writes to disks"),
        (["vm@latest", "--disk", "vda", "out", "--format", "vmdk"], "--format"),
    ],
)
def test_wrong_input(backup: str, tmp_path: Path, arguments: list[str], message: str) -> None:
    process = start("export", *arguments, cwd=tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_not_there(backup: str, tmp_path: Path) -> None:
    target = tmp_path / "none" / "out"
    ended = sfasync("export", backup, "--disk", "vda", target, "--json")
    assert (ended.status, ended.last["code"]) == (21, "target")
    assert ended.last["message"] == f"cannot create {target}: there is no such directory"


@pytest.mark.parametrize("target", ["out", "-"])
def test_damage_is_found_and_nothing_wrong_is_written(
    backup: str, repository: Path, disk: Path, tmp_path: Path, target: str
) -> None:
    damage(repository)
    ended = subprocess.run(
        [*COMMAND, "export", backup, "--disk", "vda", target], cwd=tmp_path, capture_output=True, timeout=60
    )
    assert ended.returncode == 22
    assert b"damaged" in ended.stderr
    assert disk.read_bytes().startswith(ended.stdout)
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".sfasync-*")) == []
