"""What the first release has to show, as a user would see it: three disks of three servers, there and back.

A disk in the memory of nbdkit over TLS, a sparse qcow2 of 20 GiB behind qemu-nbd, and a file of 1 GiB and one sector
behind nbd-server.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sfasync.cli.bench import measure

from .support.servers import nbd_server, nbdkit, qemu_nbd, require

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

MEASURE = Path(measure.__file__)
PEAK = 200 * MIB

MEMORY_SIZE = 256 * MIB
QCOW2_SIZE = 20 * GIB
FILE_SIZE = GIB + 512


@dataclass(frozen=True)
class Site:
    """The servers, what they serve, and a repository.

    Attributes:
        directory: Where everything is.
        uris: By disk.
        images: The same content in files, with their formats, by disk.
        stats: What nbdkit counted, when it has ended.
        running: Ends the servers when it is closed.
    """

    directory: Path
    uris: dict[str, str]
    images: dict[str, tuple[Path, str]]
    stats: Path
    running: ExitStack

    def run(self, *arguments: str) -> tuple[dict[str, Any], int]:
        """The last object that a successful command prints, and its peak memory in bytes."""
        log = self.directory / "log"
        log.unlink(missing_ok=True)
        own = {
            "SFASYNC_REPOSITORY": str(self.directory / "repository"),
            "XDG_CACHE_HOME": str(self.directory / "cache"),
        }
        command = [sys.executable, "-m", "sfasync", arguments[0], "--json", *arguments[1:]]
        measured = subprocess.run(
            [sys.executable, "-S", str(MEASURE), str(log), *command],
            env=os.environ | own,
            capture_output=True,
            timeout=100,
        )
        taken = json.loads(measured.stdout)
        assert taken["exit"] == 0, log.read_text()
        result: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
        assert result["ok"] is True
        return result, taken["rss"]

    def back_up(self) -> tuple[dict[str, Any], int]:
        disks = [argument for disk, uri in self.uris.items() for argument in ("--disk", f"{disk}={uri}")]
        return self.run("backup", "web-01", *disks)


@pytest.fixture
def site(tmp_path: Path, certificates: Path) -> Iterator[Site]:
    require("qemu-img")
    source = random.Random(5)
    memory, file, qcow2 = tmp_path / "memory.raw", tmp_path / "file.raw", tmp_path / "disk.qcow2"
    sparse(memory, MEMORY_SIZE, {MIB: source.randbytes(3 * MIB), 100 * MIB + 512: source.randbytes(8 * MIB)})
    sparse(file, FILE_SIZE, {0: source.randbytes(2 * MIB), 512 * MIB: source.randbytes(5 * MIB), GIB: b"z" * 512})
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", qcow2, str(QCOW2_SIZE)], check=True)
    stats = tmp_path / "stats"
    with ExitStack() as running:
        options = ("memory", str(MEMORY_SIZE), f"statsfile={stats}")
        uris = {
            "a": running.enter_context(nbdkit(*options, tls=certificates, tcp=True, filters=("stats",))).uri,
            "b": running.enter_context(qemu_nbd(qcow2, fmt="qcow2")).uri,
            "c": running.enter_context(nbd_server(file)).uri,
        }
        site = Site(tmp_path, uris, {"a": (memory, "raw"), "b": (qcow2, "qcow2"), "c": (file, "raw")}, stats, running)
        site.run("init")
        site.run("copy", str(memory), uris["a"])
        part = sparse(tmp_path / "part.raw", 40 * MIB, {0: source.randbytes(30 * MIB)})
        site.run("copy", str(part), uris["b"])
        yield site


def sparse(path: Path, size: int, content: dict[int, bytes]) -> Path:
    """A file with some content in it and holes between."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in content.items():
            file.seek(offset)
            file.write(data)
    return path


def equal(one: Path, other: Path, other_format: str) -> bool:
    """Whether two images have the same content, by qemu-img, which may look beside a server."""
    command = ["qemu-img", "compare", "-U", "-f", "raw", "-F", other_format, str(one), str(other)]
    return subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0


def allocated(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_blocks * 512 for file in files)


def test_three_disks_there_and_back(site: Site) -> None:
    first, backup_memory = site.back_up()
    sizes = {"a": MEMORY_SIZE, "b": QCOW2_SIZE, "c": FILE_SIZE}
    assert {disk["id"]: disk["size"] for disk in first["disks"]} == sizes
    read = {disk["id"]: disk["bytes_read"] for disk in first["disks"]}
    assert read["a"] <= 24 * MIB
    assert read["b"] <= 32 * MIB
    assert allocated(site.directory / "repository") < 60 * MIB

    before = allocated(site.directory / "repository")
    second, _ = site.back_up()
    assert sum(disk["bytes_stored"] for disk in second["disks"]) < MIB
    assert allocated(site.directory / "repository") - before < MIB
    assert [disk["tree"] for disk in second["disks"]] == [disk["tree"] for disk in first["disks"]]

    verified, verify_memory = site.run("verify", "--data")
    assert verified["backups"] == 2

    target = site.directory / "restored"
    _, restore_memory = site.run("restore", first["id"], "--to", str(target), "--verify-after")
    for disk, (image, image_format) in site.images.items():
        assert equal(target / f"{disk}.raw", image, image_format), disk
        assert (target / f"{disk}.raw").stat().st_size == sizes[disk]
    assert allocated(target / "b.raw") <= 32 * MIB
    assert allocated(target / "c.raw") <= 12 * MIB

    for memory in (backup_memory, verify_memory, restore_memory):
        assert memory < PEAK

    site.running.close()
    counted = re.search(r"^read: \d+ ops, .*?, ([\d.]+) (\w+), ", site.stats.read_text(), re.MULTILINE)
    assert counted is not None, site.stats.read_text()
    unit = {"bytes": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}[counted[2]]
    assert float(counted[1]) * unit <= 50 * MIB, "two backups of 12 MiB of data read more than they should"


def test_back_to_a_server(site: Site) -> None:
    backup, _ = site.back_up()
    with nbdkit("memory", str(MEMORY_SIZE + MIB)) as larger, nbdkit("memory", "512K") as smaller:
        site.run("restore", backup["id"], "--to-disk", f"a={larger.uri}")
        site.run("copy", larger.uri, str(site.directory / "back.raw"))
        os.truncate(site.directory / "back.raw", MEMORY_SIZE)
        assert equal(site.directory / "back.raw", *site.images["a"])
        refused = subprocess.run(
            [sys.executable, "-m", "sfasync", "restore", backup["id"], "--to-disk", f"a={smaller.uri}"],
            env=os.environ | {"SFASYNC_REPOSITORY": str(site.directory / "repository")},
            capture_output=True,
            text=True,
        )
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
