"""`sfasync copy`"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, cast

import pytest

from ...support.command import finish, sfasync, start
from ...support.servers import Server, nbdkit

MiB = 1 << 20


def binary(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """As `start`, for a command whose standard output is no text."""
    process: Any = start(*arguments, text=False)
    return cast("subprocess.Popen[bytes]", process)


def test_from_an_export_to_a_file(server: Server, disk: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.raw"
    ended = sfasync("copy", server.uri, target)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("copied 16 MiB: read ")
    assert target.read_bytes() == disk.read_bytes()
    assert target.stat().st_blocks * 512 < 7 * MiB, "zeros are not allocated"


def test_from_a_file_to_an_export(disk: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(b"\xff" * (20 * MiB))
    with nbdkit("file", target) as server:
        result = sfasync("copy", disk, server.uri, "--json").last
    assert (result["command"], result["size"], result["durable"]) == ("copy", 16 * MiB + 512, True)
    assert target.read_bytes()[: 16 * MiB + 512] == disk.read_bytes()


OPTIONS = [
    ["--no-extents"],
    ["--no-flush"],
    ["--flush"],
    ["--connections", "1"],
    ["--requests", "1"],
    ["--request-size", "64K"],
    ["--destination-is-zero"],
    ["--synchronous"],
    ["--sparse", "0"],
    ["-C", "2", "-R", "4", "-S", "4K"],
    ["--target-is-zero"],
    ["--memory", "16M"],
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_options(server: Server, disk: Path, tmp_path: Path, options: list[str]) -> None:
    target = tmp_path / "copy.raw"
    result = sfasync("copy", server.uri, target, *options, "--json").last
    assert target.read_bytes() == disk.read_bytes()
    assert (result["bytes_zero"] == 0) == ("--no-extents" in options)
    assert result["durable"] == ("--no-flush" not in options)


def test_a_pipe_takes_the_disk(server: Server, disk: Path) -> None:
    process = binary("copy", server.uri, "-")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert out == disk.read_bytes(), "and nothing but the disk"


def test_a_pipe_brings_the_disk(disk: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    with disk.open("rb") as file, subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE) as cat:
        ended = finish(start("copy", "-", target, "--json", stdin=cat.stdout))
    assert (ended.last["size"], ended.last["durable"]) == (16 * MiB + 512, True)
    assert target.read_bytes() == disk.read_bytes()
    assert target.stat().st_blocks * 512 < 7 * MiB, "zeros are found, and not allocated"


def test_a_pipe_that_brings_more_than_there_is_room_for(disk: Path) -> None:
    with nbdkit("memory", "4M") as small, subprocess.Popen(["cat", disk], stdout=subprocess.PIPE) as cat:
        ended = finish(start("copy", "-", small.uri, "--json", stdin=cat.stdout))
        assert cat.stdout is not None
        cat.stdout.close()
    assert (ended.status, ended.last["code"]) == (21, "no-space")
    assert len(ended.err.splitlines()) == 1


def test_redirected_files_are_files(server: Server, disk: Path, tmp_path: Path) -> None:
    target, back = tmp_path / "target.raw", tmp_path / "back.raw"
    with target.open("wb") as file:
        assert finish(start("copy", server.uri, "-", stdout=file)).status == 0
    assert target.read_bytes() == disk.read_bytes()
    assert target.stat().st_blocks * 512 < 7 * MiB, "sparse"
    with target.open("rb") as file:
        result = finish(start("copy", "-", back, "--json", stdin=file)).last
    assert result["bytes_zero"] > 0, "holes are known without reading"
    assert back.read_bytes() == disk.read_bytes()


def test_a_file_is_read_and_written_from_where_it_stands(disk: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(b"before")
    with disk.open("rb", buffering=0) as source, target.open("ab") as end:
        source.seek(16 * MiB - 1000)
        assert finish(start("copy", "-", "-", stdin=source, stdout=end)).status == 0
    assert target.read_bytes() == b"before" + disk.read_bytes()[16 * MiB - 1000 :]


def test_the_disk_and_json_do_not_share_standard_output(disk: Path) -> None:
    ended = sfasync("copy", disk, "-", "--json")
    assert (ended.status, ended.last["code"]) == (2, "usage")


def test_a_reader_that_has_enough(disk: Path) -> None:
    process = binary("copy", disk, "-")
    assert process.stdout is not None
    process.stdout.read(512)
    process.stdout.close()
    assert process.stderr is not None
    assert b"Broken pipe" in process.stderr.read()
    assert process.wait(10) == 21
    process.stderr.close()


def test_a_reader_that_stops_does_not_hold_up_a_signal(disk: Path) -> None:
    process = binary("copy", disk, "-")
    assert process.stdout is not None
    process.stdout.read(512)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    assert time.monotonic() - began < 3
    process.communicate()


@pytest.mark.parametrize("ends", [("-", "null:"), ("null:", "-")], ids=" ".join)
def test_a_terminal_is_no_disk(ends: tuple[str, str]) -> None:
    outer, terminal = os.openpty()
    try:
        ended = finish(start("copy", *ends, stdin=terminal, stdout=terminal))
    finally:
        os.close(outer)
        os.close(terminal)
    assert ended.status == 2


def test_to_nowhere(server: Server) -> None:
    assert sfasync("copy", server.uri, "null:", "--no-extents", "--json").last["bytes_read"] == 16 * MiB + 512


def test_a_file_is_overwritten(server: Server, disk: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.raw"
    target.write_bytes(b"\xff" * (32 * MiB))
    assert sfasync("copy", server.uri, target).status == 0
    assert target.read_bytes()[: 16 * MiB + 512] == disk.read_bytes()


def test_a_file_onto_itself_is_refused(disk: Path) -> None:
    before = disk.read_bytes()
    ended = sfasync("copy", disk, disk, "--json")
    assert ended.status == 2
    assert ended.last["exit"] == 2
    assert disk.read_bytes() == before


def test_a_target_without_flush_is_told(disk: Path) -> None:
    scripts = ("get_size=echo 32M", "pread=head -c $3 /dev/zero", "pwrite=cat >/dev/null", "can_write=exit 0")
    with nbdkit("eval", *scripts) as server:  # no `flush`, so none is offered
        ended = sfasync("copy", disk, server.uri, "--json")
    assert (ended.status, ended.last["durable"]) == (0, False)
    assert "warning" in ended.err


@pytest.mark.parametrize(
    ("source", "status"), [("missing.raw", 20), ("nbd+unix:///?socket=missing.sock", 20), (".", 20)]
)
def test_a_source_that_is_not_there(tmp_path: Path, source: str, status: int) -> None:
    ended = finish(start("copy", source, "null:", "--json", cwd=tmp_path))
    assert ended.status == status, ended.err
    assert ended.last["exit"] == status
    assert len(ended.err.splitlines()) == 1


def test_a_target_that_cannot_be_written(disk: Path, tmp_path: Path) -> None:
    ended = sfasync("copy", disk, tmp_path / "no" / "such" / "directory", "--json")
    assert ended.status == 21
    assert len(ended.err.splitlines()) == 1


def test_a_target_that_is_too_small(disk: Path) -> None:
    with nbdkit("memory", "1M") as small:
        ended = sfasync("copy", disk, small.uri, "--json")
    assert (ended.status, ended.last["code"]) == (2, "target-refused")


def test_a_signal(slow_server: Server, tmp_path: Path) -> None:
    process = start("copy", slow_server.uri, tmp_path / "copy.raw", "--json")
    assert process.stdout is not None
    process.stdout.readline()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    ended = finish(process)
    assert time.monotonic() - began < 5
    assert ended.status == 143


def test_nobody_reads_the_result(server: Server) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start("copy", server.uri, "null:", stdout=writer)
    os.close(writer)
    assert finish(process).status == 0
