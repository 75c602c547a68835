"""`sfasync copy`"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from ...support.command import finish, sfasync, start
from ...support.servers import Server, nbdkit

MiB = 1 << 20


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
    ["--memory", "16M"],
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_options(server: Server, disk: Path, tmp_path: Path, options: list[str]) -> None:
    target = tmp_path / "copy.raw"
    result = sfasync("copy", server.uri, target, *options, "--json").last
    assert target.read_bytes() == disk.read_bytes()
    assert (result["bytes_zero"] == 0) == ("--no-extents" in options)
    assert result["durable"] == ("--no-flush" not in options)


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
