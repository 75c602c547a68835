"""Copies to and from every server that we have, with all their oddities; byte-exact there and back.

Each test copies a file into an export and the export into another file, and compares the two.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import quote

import pytest

from sfasync import ConnectionLostError, CopyResult, Engine, ExportError, Limits, connect

from .support.images import allocated, same_content, sparse_image
from .support.servers import Server, nbd_server, nbdkit, qemu_nbd, storage_daemon

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30

SIZE = 5 * MiB + 512
DATA = ((0, 1 * MiB), (2 * MiB + 4 * KiB, 300 * KiB), (SIZE - 1000, 1000))


def copy(source: str | Path, target: str | Path, *, connections: int = 2) -> CopyResult:
    async def work() -> CopyResult:
        async with Engine(limits=Limits(connections=connections)) as engine:
            return await engine.copy(source, target)

    return asyncio.run(work())


def there_and_back(image: Path, uri: str, back: Path) -> tuple[CopyResult, CopyResult]:
    """Copy a file into an export, which must be as large, and read it back."""
    there = copy(image, uri)
    deadline = time.monotonic() + 10
    while True:
        try:
            read = copy(uri, back)
        except ConnectionLostError as error:
            # A server with a limit may not have seen the last client leave yet.
            if "greeting" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            assert same_content(image, back)
            return there, read


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return sparse_image(tmp_path / "image.raw", SIZE, data=DATA)


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """What a server serves: full of something else."""
    path = tmp_path / "served.raw"
    path.write_bytes(b"\xff" * SIZE)
    return path


# --- nbdkit ----------------------------------------------------------------------------------------------------------


NBDKITS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "default": ([], []),
    "no structured replies": (["--no-sr"], []),
    "no options but the export name": (["--mask-handshake=0"], []),
    "fixed newstyle without NO_ZEROES": (["--mask-handshake=1"], []),
    "block sizes": (
        ["blocksize-error-policy=error", "blocksize-minimum=512", "blocksize-preferred=4K", "blocksize-maximum=64K"],
        ["blocksize-policy"],
    ),
    "no extents": ([], ["noextents"]),
    "multi-conn taken back": (["multi-conn-mode=disable"], ["multi-conn"]),
    "multi-conn emulated": (["multi-conn-mode=emulate"], ["multi-conn"]),
    "multi-conn in spite of the plugin": (["multi-conn-mode=plugin"], ["multi-conn"]),
    "no FUA, no flush": (["fuamode=discard"], ["fua"]),
    "no FUA": ([], ["fua"]),
    "FUA emulated": (["fuamode=emulate"], ["fua"]),
    "FUA forced": (["fuamode=force"], ["fua"]),
    "no zeroes": ([], ["nozero"]),
    "zeroes emulated": (["zeromode=emulate"], ["nozero"]),
    "zeroes without trim": (["zeromode=notrim"], ["nozero"]),
    "no parallel requests": ([], ["noparallel"]),
    "one connection": (["limit=1"], ["limit"]),
}


EVERYTHING_IS_READ = {
    *("no structured replies", "no options but the export name", "no extents"),
    *("no zeroes", "zeroes emulated", "zeroes without trim"),  # the server's file got no holes
}


@pytest.mark.parametrize("name", NBDKITS)
def test_nbdkit(name: str, image: Path, served: Path, tmp_path: Path) -> None:
    arguments, filters = NBDKITS[name]
    options = [argument for argument in arguments if argument.startswith("--")]
    parameters = [argument for argument in arguments if not argument.startswith("--")]
    with nbdkit(*options, "file", served, *parameters, filters=filters) as server:
        written, read = there_and_back(image, server.uri, tmp_path / "back.raw")
    assert written.size == read.size == SIZE
    assert (read.bytes_zero > 0) == (name not in EVERYTHING_IS_READ), "what is zero is not read, where that is known"
    assert allocated(tmp_path / "back.raw") < 3 * MiB, "and becomes a hole in any case"


@pytest.mark.skipif(sys.version_info < (3, 13), reason="pre-shared keys need Python 3.13")
def test_nbdkit_with_a_pre_shared_key(image: Path, served: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.psk"
    keys.write_text("alice:" + "5a" * 32 + "\n")
    keys.chmod(0o600)
    with nbdkit("--tls=require", f"--tls-psk={keys}", "file", served) as server:
        uri = f"nbds+unix://alice@/?socket={server.socket}&tls-psk-file={keys}"
        there_and_back(image, uri, tmp_path / "back.raw")


# --- the others ------------------------------------------------------------------------------------------------------


def test_qemu_nbd_with_qcow2(image: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, str(SIZE)], check=True)
    subprocess.run(["qemu-img", "bitmap", "--add", disk, "changes"], check=True)
    with qemu_nbd(disk, "--bitmap=changes", "--allocation-depth", fmt="qcow2") as server:
        there_and_back(image, server.uri, tmp_path / "back.raw")

        async def dirty() -> list[tuple[int, int, int]]:
            context = "qemu:dirty-bitmap:changes"
            async with await connect(server.uri, contexts=(context,)) as export:
                return [found async for found in export.block_status(context, 0, export.size)]

        ranges = asyncio.run(dirty())
    assert sum(length for _, length, kind in ranges if kind) >= 1300 * KiB, "what was written is dirty"
    assert sum(length for _, length, _ in ranges) == SIZE
    assert allocated(disk) < 3 * MiB, "zeros take no clusters"


def test_qemu_nbd_with_raw(image: Path, served: Path, tmp_path: Path) -> None:
    with qemu_nbd(served) as server:
        there_and_back(image, server.uri, tmp_path / "back.raw")


def test_qemu_storage_daemon(image: Path, served: Path, tmp_path: Path) -> None:
    with storage_daemon(
        *("--blockdev", f"driver=file,node-name=disk,filename={served},discard=unmap"),
        *("--export", "nbd,id=export,node-name=disk,name=disk,writable=on"),
    ) as server:
        there_and_back(image, server.uri, tmp_path / "back.raw")


def test_nbd_server(image: Path, served: Path, tmp_path: Path) -> None:
    with nbd_server(served) as server:
        there_and_back(image, server.uri, tmp_path / "back.raw")


def test_from_one_server_to_another(image: Path, served: Path) -> None:
    with nbdkit("file", image) as source, nbd_server(served) as target:
        copy(source.uri, target.uri)
    assert same_content(image, served)


def test_a_size_that_is_no_multiple_of_the_block_size(image: Path) -> None:
    refused = pytest.raises(ExportError, match="no multiple of its minimum block size 4096")
    with nbdkit("file", image, "blocksize-minimum=4K", filters=("blocksize-policy",)) as server, refused:
        copy(server.uri, "null:")


# --- sizes -----------------------------------------------------------------------------------------------------------


SIZES = [1, 511, 512, 513, MiB - 1, MiB, MiB + 1, GiB + 512]


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: int, tmp_path: Path) -> None:
    image = sparse_image(tmp_path / "image.raw", size, data=((0, min(size, 70_000)), (size // 2, min(size, 600))))
    with nbdkit("memory", str(size)) as server:
        there_and_back(image, server.uri, tmp_path / "back.raw")


def test_an_empty_export_is_refused(tmp_path: Path) -> None:
    """A size of 0 is more often a server that does not know than a disk; a copy of it would look like a success."""
    with nbdkit("memory", "0") as server, pytest.raises(ExportError, match="has a size of 0 bytes"):
        copy(server.uri, tmp_path / "back.raw")
    assert not (tmp_path / "back.raw").exists()


def test_an_empty_file_is_copied(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert copy(tmp_path / "empty", tmp_path / "copy").size == 0
    assert (tmp_path / "copy").read_bytes() == b""


Serve = Callable[[Path], AbstractContextManager[Server]]


@pytest.mark.parametrize("serve", [qemu_nbd, nbd_server], ids=["qemu-nbd", "nbd-server"])
def test_a_size_that_a_server_rounds(serve: Serve, tmp_path: Path) -> None:
    image = sparse_image(tmp_path / "image.raw", MiB + 1, data=((MiB - 10, 11),))
    with serve(image) as server:
        size = copy(server.uri, tmp_path / "back.raw").size
    content = (tmp_path / "back.raw").read_bytes()
    assert len(content) == size
    assert content.rstrip(b"\0") == image.read_bytes()[:size].rstrip(b"\0")


# --- names -----------------------------------------------------------------------------------------------------------


NAMES = {
    "empty": "",
    "longest usual": "n" * 255,
    "longest allowed": "n" * 4096,
    "UTF-8": "диск-磁盘-💾",
    "newline": "one\ntwo",
    "parent directory": "../x",
    "what URIs use": "a b/c?d#e%f&g=h",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_nbdkit(name: str, tmp_path: Path) -> None:
    """The export contains its own name."""
    export = NAMES[name]
    scripts = (
        'open=printf %s "$3"',
        'get_size=printf "is:%s" "$2" | wc -c',
        'pread=printf "is:%s" "$2" | tail -c +"$(($4 + 1))" | head -c "$3"',
    )
    with nbdkit("eval", *scripts) as server:
        uri = f"nbd+unix:///{quote(export, safe='')}?socket={server.socket}"
        copy(uri, tmp_path / "back.raw", connections=1)
    assert (tmp_path / "back.raw").read_text() == f"is:{export}"


@pytest.mark.parametrize("name", sorted(NAMES.keys() - {"longest allowed"}))
def test_names_of_qemu_nbd(name: str, served: Path, tmp_path: Path) -> None:
    with qemu_nbd(served, export=NAMES[name]) as server:
        copy(server.uri, tmp_path / "back.raw")
    assert same_content(served, tmp_path / "back.raw")


@pytest.mark.parametrize("name", ["longest usual", "UTF-8", "parent directory"])
def test_names_of_nbd_server(name: str, served: Path, tmp_path: Path) -> None:
    with nbd_server(served, export=NAMES[name]) as server:
        copy(server.uri, tmp_path / "back.raw")
    assert same_content(served, tmp_path / "back.raw")
