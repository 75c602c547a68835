"""`sfasync info`"""

from __future__ import annotations

import subprocess
from pathlib import Path

from ...support.command import sfasync
from ...support.servers import Server, nbd_server, nbdkit, qemu_nbd

MiB = 1 << 20


def test_facts_for_people(server: Server) -> None:
    ended = sfasync("info", server.uri)
    assert (ended.status, ended.err) == (0, "")
    for text in ('export="":', f"size: {16 * MiB + 512} (16 MiB)", "read_only: no", "base:allocation"):
        assert text in ended.out


def test_facts_for_programs(server: Server) -> None:
    result = sfasync("info", server.uri, "--json").last
    assert (result["command"], result["size"], result["read_only"]) == ("info", 16 * MiB + 512, False)
    assert result["contexts"] == ["base:allocation"]
    assert result["uri"] == server.uri


def test_block_sizes_and_a_read_only_export(disk: Path) -> None:
    policy = ("blocksize-minimum=512", "blocksize-preferred=4096", "blocksize-maximum=65536")
    with nbdkit("--readonly", "file", disk, *policy, filters=("blocksize-policy",)) as server:
        result = sfasync("info", server.uri, "--json").last
    assert result["read_only"] is True
    assert [result[f"{name}_block"] for name in ("minimum", "preferred", "maximum")] == [512, 4096, 65536]


def test_bitmaps_are_listed(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
    subprocess.run(["qemu-img", "bitmap", "--add", image, "changes"], check=True)
    with qemu_nbd(image, "--bitmap=changes", fmt="qcow2") as server:
        result = sfasync("info", server.uri, "--json").last
    assert "qemu:dirty-bitmap:changes" in result["contexts"]


def test_a_list_of_exports(disk: Path, tmp_path: Path) -> None:
    directory = tmp_path / "disks"
    directory.mkdir()
    for name, size in (("one", MiB), ("two words", 2 * MiB)):
        with (directory / name).open("wb") as file:
            file.truncate(size)
    with nbdkit("file", f"dir={directory}") as server:
        events = sfasync("info", server.uri, "--list", "--json").events
        people = sfasync("info", server.uri, "--list")
    assert {event["export"]: event["size"] for event in events[:-1]} == {"one": MiB, "two words": 2 * MiB}
    assert events[-1]["count"] == 2
    assert people.out.count("export=") == 2


def test_the_uri_of_a_listed_export_leads_to_it(disk: Path) -> None:
    with nbd_server(disk, export="a/b") as server:
        listed = sfasync("info", server.uri, "--list", "--json").events[0]
        assert sfasync("info", listed["uri"], "--json").last["size"] == 16 * MiB + 512


def test_a_map(server: Server) -> None:
    events = sfasync("info", server.uri, "--map", "--json").events
    extents, result = events[:-1], events[-1]
    assert result["count"] == len(extents) >= 3
    position = 0
    for extent in extents:
        assert extent["offset"] == position
        position += extent["length"]
    assert position == 16 * MiB + 512
    assert {extent["zero"] for extent in extents} == {True, False}


def test_a_map_for_people(server: Server) -> None:
    lines = sfasync("info", server.uri, "--map").out.splitlines()
    assert lines[0].split()[0] == "0"
    assert {line.split()[2] for line in lines} == {"data", "hole,zero"}


def test_tls(disk: Path, certificates: Path) -> None:
    with nbdkit("file", disk, tls=certificates) as server:
        assert sfasync("info", server.uri, "--json").last["tls"] is True


def test_an_old_server_tells_what_it_can(disk: Path) -> None:
    with nbdkit("--mask-handshake=0", "file", disk) as server:
        assert sfasync("info", server.uri, "--json").last["size"] == 16 * MiB + 512


def test_no_such_export(disk: Path) -> None:
    with nbd_server(disk, export="known") as server:
        ended = sfasync("info", server.uri.replace("known", "unknown"), "--json")
    assert (ended.status, ended.last["code"]) == (20, "export")
    assert len(ended.err.splitlines()) == 1


def test_nobody_listens() -> None:
    ended = sfasync("info", "nbd+unix:///?socket=/nonexistent/socket", "--json")
    assert (ended.status, ended.last["code"]) == (20, "connect")
    assert "/nonexistent/socket" in ended.err
