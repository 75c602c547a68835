"""`sfasync info`"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ...support.command import sfasync
from ...support.servers import Server, nbd_server, nbdkit, qemu_nbd, require

KiB = 1 << 10
MiB = 1 << 20


def nbdinfo(*arguments: str) -> str:
    return subprocess.run(["nbdinfo", *arguments], check=True, capture_output=True, text=True).stdout


def test_facts_for_people(server: Server) -> None:
    ended = sfasync("info", server.uri)
    assert (ended.status, ended.err) == (0, "")
    for text in ('export="":', f"size: {16 * MiB + 512} (16 MiB)", "is_read_only: false", "base:allocation"):
        assert text in ended.out


def test_facts_for_programs(server: Server) -> None:
    result = sfasync("info", server.uri, "--json").last
    assert (result["command"], result["export-size"], result["is_read_only"]) == ("info", 16 * MiB + 512, False)
    assert result["contexts"] == ["base:allocation"]
    assert result["uri"] == server.uri


def test_block_sizes_and_a_read_only_export(disk: Path) -> None:
    policy = ("blocksize-minimum=512", "blocksize-preferred=4096", "blocksize-maximum=65536")
    with nbdkit("--readonly", "file", disk, *policy, filters=("blocksize-policy",)) as server:
        result = sfasync("info", server.uri, "--json").last
    assert result["is_read_only"] is True
    assert [result[f"block_size_{name}"] for name in ("minimum", "preferred", "maximum")] == [512, 4096, 65536]


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
    assert {event["export-name"]: event["export-size"] for event in events[:-1]} == {"one": MiB, "two words": 2 * MiB}
    assert events[-1]["count"] == 2
    assert people.out.count("export=") == 2


def test_the_uri_of_a_listed_export_leads_to_it(disk: Path) -> None:
    with nbd_server(disk, export="a/b") as server:
        listed = sfasync("info", server.uri, "--list", "--json").events[0]
        assert sfasync("info", listed["uri"], "--json").last["export-size"] == 16 * MiB + 512


def test_what_nbdinfo_says_is_said_too(server: Server, disk: Path) -> None:
    require("nbdinfo")
    theirs = json.loads(nbdinfo("--json", "--no-content", server.uri))
    (export,) = theirs["exports"]
    ours = sfasync("info", server.uri, "--json").last
    assert ours["TLS"] == theirs["TLS"]
    assert ours["structured"] == theirs["structured"]
    del export["export-size-str"]  # ours has a binary unit
    assert export.items() <= ours.items()


def test_the_size_alone(server: Server) -> None:
    assert sfasync("info", "--size", server.uri).out == f"{16 * MiB + 512}\n"
    assert sfasync("info", "--size", server.uri, "--json").last["export-size"] == 16 * MiB + 512


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
    assert {tuple(line.split()[2:]) for line in lines} == {("0", "data"), ("3", "hole,zero")}


def test_a_map_is_that_of_nbdinfo(server: Server) -> None:
    require("nbdinfo")
    theirs = json.loads(nbdinfo("--map", "--json", server.uri))
    ours = sfasync("info", server.uri, "--map", "--json").events[:-1]
    joined: list[dict[str, Any]] = []  # nbdinfo 1.14 leaves neighbours of one type apart
    for extent in theirs:
        if joined and joined[-1]["type"] == extent["type"]:
            joined[-1]["length"] += extent["length"]
        else:
            joined.append(extent)
    assert [{key: extent[key] for key in joined[0]} for extent in ours] == joined


def test_totals(server: Server) -> None:
    totals = sfasync("info", server.uri, "--map", "--totals", "--json").events[:-1]
    assert sum(total["size"] for total in totals) == 16 * MiB + 512
    assert [(total["type"], total["description"]) for total in totals] == [(0, "data"), (3, "hole,zero")]
    assert round(sum(total["percent"] for total in totals)) == 100
    people = sfasync("info", server.uri, "--map", "--totals").out.splitlines()
    assert people[0].split()[2:] == ["0", "data"]


def test_maps_of_qemu(tmp_path: Path) -> None:
    image, overlay = tmp_path / "disk.qcow2", tmp_path / "overlay.qcow2"
    commands: list[list[str | Path]] = [
        ["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"],
        ["qemu-io", "-c", "write 64k 64k", image],
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2", overlay],
        ["qemu-img", "bitmap", "--add", overlay, "changes"],
        ["qemu-io", "-c", "write 128k 128k", overlay],
    ]
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with qemu_nbd(overlay, "--bitmap=changes", "--allocation-depth", fmt="qcow2") as server:
        maps = {
            context: [
                (extent["offset"], extent["length"], extent["type"], extent["description"])
                for extent in sfasync("info", f"--map={context}", server.uri, "--json").events[:-1]
            ]
            for context in ("qemu:dirty-bitmap:changes", "qemu:allocation-depth")
        }
        unknown = sfasync("info", "--map=qemu:dirty-bitmap:none", server.uri, "--json")
    assert maps["qemu:dirty-bitmap:changes"] == [
        (0, 128 * KiB, 0, "clean"),
        (128 * KiB, 128 * KiB, 1, "dirty"),
        (256 * KiB, MiB - 256 * KiB, 0, "clean"),
    ]
    assert maps["qemu:allocation-depth"] == [
        (0, 64 * KiB, 0, "absent"),
        (64 * KiB, 64 * KiB, 2, "backing depth 2"),
        (128 * KiB, 128 * KiB, 1, "local"),
        (256 * KiB, MiB - 256 * KiB, 0, "absent"),
    ]
    assert (unknown.status, len(unknown.err.splitlines())) == (2, 1)
    assert "qemu:dirty-bitmap:changes" in unknown.err, "the contexts that there are"


def test_a_map_of_a_server_without_block_status(disk: Path) -> None:
    with nbdkit("--no-sr", "file", disk) as server:
        (extent, _) = sfasync("info", server.uri, "--map", "--json").events
    assert (extent["offset"], extent["length"], extent["type"]) == (0, 16 * MiB + 512, 0)


@pytest.mark.parametrize(
    "arguments", [("--list", "--map"), ("--size", "--map"), ("--totals",), ("--map=",)], ids=" ".join
)
def test_options_that_make_no_sense(server: Server, arguments: tuple[str, ...]) -> None:
    ended = sfasync("info", server.uri, *arguments)
    assert (ended.status, len(ended.err.splitlines())) == (2, 1)


def test_tls(disk: Path, certificates: Path) -> None:
    with nbdkit("file", disk, tls=certificates) as server:
        assert sfasync("info", server.uri, "--json").last["TLS"] is True


def test_an_old_server_tells_what_it_can(disk: Path) -> None:
    with nbdkit("--mask-handshake=0", "file", disk) as server:
        assert sfasync("info", server.uri, "--json").last["export-size"] == 16 * MiB + 512


def test_no_such_export(disk: Path) -> None:
    with nbd_server(disk, export="known") as server:
        ended = sfasync("info", server.uri.replace("known", "unknown"), "--json")
    assert (ended.status, ended.last["code"]) == (20, "export")
    assert len(ended.err.splitlines()) == 1


def test_nobody_listens() -> None:
    ended = sfasync("info", "nbd+unix:///?socket=/nonexistent/socket", "--json")
    assert (ended.status, ended.last["code"]) == (20, "connect")
    assert "/nonexistent/socket" in ended.err


@pytest.mark.parametrize("filters", [(), ("noextents",)])
def test_an_empty_export_is_shown(filters: tuple[str, ...]) -> None:
    """What there is to see of it; nothing else takes it for a disk."""
    with nbdkit("memory", "0", filters=filters) as server:
        result = sfasync("info", server.uri, "--json").last
        assert (result["export-size"], result["is_read_only"]) == (0, False)
        assert json.loads(nbdinfo("--json", server.uri))["exports"][0]["export-size"] == 0
        assert sfasync("info", "--size", server.uri).out == "0\n"
        assert sfasync("info", "--list", server.uri, "--json").last["count"] == 1
        assert sfasync("info", "--map", server.uri, "--json").last["count"] == 0
        assert sfasync("info", "--map", "--totals", server.uri, "--json").last["count"] == 0
