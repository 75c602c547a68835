"""qcow2 images written through a private qemu-nbd, which never outlives its job."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import uvloop

from sfasync import qcow2
from sfasync.errors import ConnectionLostError, TargetError, UsageError
from sfasync.models import Retry, Timeouts
from sfasync.qcow2 import new_qcow2
from sfasync.transport.export import Export

from .support.servers import require

SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty file, as a caller makes it."""
    require("qemu-nbd")
    path = tmp_path / "disk.qcow2"
    path.touch(0o600)
    return path


def image(path: Path, size: int = SIZE) -> AbstractAsyncContextManager[Export]:
    return new_qcow2(path, size=size, connections=2, requests=4, timeouts=Timeouts(), retry=Retry())


def servers_of(path: Path) -> list[str]:
    """The processes that have the file on their command line."""
    found = subprocess.run(["pgrep", "--full", str(path)], capture_output=True, text=True, check=False)
    return found.stdout.split()


async def test_an_image_is_complete_after_the_block(path: Path) -> None:
    async with image(path) as export:
        assert export.size == SIZE
        await export.write(0, b"x" * 512)
        (server,) = servers_of(path)
        assert os.getsid(int(server)) != os.getsid(0), "a Ctrl-C would end it"
    assert not servers_of(path)
    raw = path.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", path, raw], check=True)
    assert raw.read_bytes() == b"x" * 512 + bytes(SIZE - 512)
    assert path.stat().st_mode & 0o777 == 0o600


async def test_an_image_that_cannot_be_made(path: Path) -> None:
    with pytest.raises(TargetError, match=r"qemu-img failed: .*too large"):
        async with image(path, size=1 << 62):
            pass


async def test_without_qemu_it_is_told_what_is_missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="qemu-utils"):
        async with image(path):
            pass


@pytest.fixture
def failing_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A qemu-nbd whose image fails one write."""
    require("qemu-nbd")
    options = {
        "driver": "qcow2",
        "file.driver": "blkdebug",
        "file.image.driver": "file",
        "file.inject-error.0.event": "write_aio",
        "file.inject-error.0.errno": "5",
        "file.inject-error.0.once": "on",
    }
    script = tmp_path / "bin" / "qemu-nbd"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "*words, image = [word for word in sys.argv if not word.startswith('--format')]\n"
        f"options = {','.join(map('='.join, options.items()))!r} + ',file.image.filename=' + image\n"
        f"os.execv({shutil.which('qemu-nbd')!r}, [*words, '--image-opts', options])\n"
    )
    script.chmod(0o700)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)


@pytest.mark.usefixtures("failing_once")
async def test_a_write_that_is_refused_is_repeated(path: Path) -> None:
    async with image(path) as export:
        await export.write(0, b"x" * SIZE)
        assert export.retries == 1
        assert await export.read(0, SIZE) == b"x" * SIZE


async def test_a_server_that_dies_is_not_waited_for(path: Path) -> None:
    """Nobody will start it again, however long an outage may last."""
    async with asyncio.timeout(10):
        with pytest.raises(ConnectionLostError):
            async with image(path) as export:
                for server in servers_of(path):
                    os.kill(int(server), signal.SIGKILL)
                await export.write(0, b"x" * 512)
                await export.flush()
    assert not servers_of(path)


def test_loops_in_several_threads_start_servers_at_once(tmp_path: Path) -> None:
    require("qemu-nbd")
    began = threading.Barrier(4)

    async def make(number: int) -> None:
        path = tmp_path / f"{number}.qcow2"
        path.touch()
        for _ in range(5):
            async with image(path) as export:
                await export.write(0, bytes([number]) * 512)
            assert not servers_of(path)

    def run(number: int) -> None:
        began.wait(10)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(make(number))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(run, number) for number in range(4)]:
            done.result()


async def test_a_process_that_has_just_ended_can_be_stopped() -> None:
    process = await qcow2._start("true")
    while process.returncode is None:
        await asyncio.sleep(0.001)
    await process.communicate()
    await qcow2._stop(process)
    assert process.returncode == 0


async def test_cancelled_at_any_moment_it_leaves_no_process(path: Path) -> None:
    async def make() -> None:
        async with image(path) as export:
            await export.write(0, b"x" * 512)

    for step in range(20):
        task = asyncio.create_task(make())
        await asyncio.sleep(step * 0.01)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=5)
        assert done
        assert task.cancelled() or task.exception() is None
        async with asyncio.timeout(5):
            while servers_of(path):  # uvloop does not wait for the end of a child that it kills before it hands it out
                await asyncio.sleep(0.01)
