"""The test support itself: every server serves, by libnbd's word, and ends."""

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from .support.certificates import make_certificates
from .support.servers import Server, nbd_server, nbdkit, qemu_nbd, require, storage_daemon

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * SIZE)
    return path


def start(kind: str, image: Path, tls: Path | None) -> AbstractContextManager[Server]:
    match kind:
        case "nbdkit":
            return nbdkit("file", image, tls=tls)
        case "nbdkit-tcp":
            return nbdkit("file", image, tls=tls, tcp=True)
        case "qemu-nbd":
            return qemu_nbd(image, tls=tls, export="a disk")
        case "qemu-nbd-tcp":
            return qemu_nbd(image, tls=tls, tcp=True)
        case "nbd-server":
            return nbd_server(image, tls=tls)
        case _:
            node = f"driver=file,node-name=file0,filename={image}"
            return storage_daemon("--blockdev", node, "--export", "nbd,id=e,node-name=file0,name=disk", tls=tls)


KINDS = ("nbdkit", "nbdkit-tcp", "qemu-nbd", "qemu-nbd-tcp", "nbd-server", "qemu-storage-daemon")


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", KINDS)
def test_server(kind: str, secure: bool, image: Path, certificates: Path) -> None:
    require("nbdinfo")
    with start(kind, image, certificates if secure else None) as server:
        for _ in range(2):
            found = subprocess.run(["nbdinfo", "--size", server.uri], capture_output=True, text=True, timeout=20)
            assert (found.stdout.strip(), found.stderr) == (str(SIZE), ""), server.log.read_text()
        assert kind.removesuffix("-tcp").startswith(Path(f"/proc/{server.pid}/comm").read_text().strip())
        server.stop()
        # A daemon that init has not reaped yet has no program any more.
        assert not os.path.exists(f"/proc/{server.pid}/exe")
        server.stop()


def test_server_that_cannot_start() -> None:
    with pytest.raises(RuntimeError, match="no-such-plugin"), nbdkit("no-such-plugin"):
        pass


def test_expired_certificate(tmp_path: Path) -> None:
    require("openssl")
    directory = make_certificates(tmp_path / "certificates", expired=True)
    command = ["openssl", "verify", "-CAfile", str(directory / "ca-cert.pem")]
    client = subprocess.run([*command, str(directory / "client-cert.pem")], capture_output=True, text=True)
    assert client.returncode == 0
    server = subprocess.run([*command, str(directory / "server-cert.pem")], capture_output=True, text=True)
    assert "expired" in server.stderr


HANGING = """
import asyncio, pytest, uvloop

async def idle():
    await asyncio.get_running_loop().create_future()

async def busy():
    def again():
        loop.call_soon(again, sum(range(1000)))
    loop = asyncio.get_running_loop()
    loop.call_soon(again)
    await idle()

async def deaf():
    try:
        await idle()
    finally:
        await idle()

@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("hang", [idle, busy, deaf])
def test_that_hangs(hang, factory):
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(hang())

@pytest.fixture
def stuck():
    yield
    asyncio.run(idle())

def test_that_fails_and_hangs(stuck):
    pytest.fail()

def test_that_comes_next():
    pass
"""


def test_a_test_that_hangs_fails_in_either_loop_and_the_next_one_runs(tmp_path: Path) -> None:
    (tmp_path / "test_hanging.py").write_text(HANGING)
    (tmp_path / "conftest.py").write_text("from tests.support import timeouts\ntimeouts.GRACE = 0.5\n")
    options = [
        "-q",
        "-p",
        "tests.support.timeouts",
        "--timeout=0.5",
        f"--rootdir={tmp_path}",
        f"--config-file={os.devnull}",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, tmp_path],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1, run.stdout
    assert "7 failed, 1 passed, 1 error" in run.stdout
    assert run.stdout.count("TimedOut: the test took more than 0.5 s") >= 7
