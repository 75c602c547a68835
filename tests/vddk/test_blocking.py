from __future__ import annotations

import concurrent.futures
import inspect
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfasync import vddk
from sfasync.errors import ArgumentError, StateError
from sfasync.units import MiB
from sfasync.vddk import blocking

from ..support.servers import nbdkit
from .support import VM, access_to, journal

CONTENT = random.Random(7).randbytes(MiB)


@pytest.fixture
def _initialised() -> Iterator[None]:
    blocking.init()
    try:
        yield
    finally:
        blocking.exit()
    assert journal() == []


def test_every_call_is_there() -> None:
    assert set(blocking.__all__) == set(vddk.__all__)
    for name in vddk.__all__:
        call, ours = getattr(vddk, name), getattr(blocking, name)
        if inspect.isroutine(call):
            assert inspect.signature(ours) == inspect.signature(call)
            assert not inspect.iscoroutinefunction(ours)


@pytest.mark.usefixtures("_initialised")
def test_the_calls_one_by_one(certificates: Path) -> None:
    with nbdkit("memory", "1M", tls=certificates) as server:
        access = access_to(ide0=server.uri)
        assert blocking.list_transport_modes() == ("nbd", "nbdssl")
        assert blocking.cleanup(access) == 0
        connection = blocking.connect(access, mode="nbdssl", vm_id=VM)
        disk = blocking.open(connection, "ide0")
        assert blocking.get_transport_mode(disk) == "nbdssl"
        blocking.write(disk, 0, CONTENT)
        buffer = bytearray(1024)
        blocking.read(disk, 2, 2, buffer)
        assert buffer == CONTENT[1024:2048]
        assert blocking.read(disk, 0, 2048) == CONTENT
        with pytest.raises(ArgumentError):
            blocking.read(disk, 2048, 1)
        blocking.close(disk)
        with pytest.raises(StateError, match="is closed"):
            blocking.close(disk)
        blocking.disconnect(connection)


@pytest.mark.usefixtures("_initialised")
def test_many_threads_read_one_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(CONTENT)
    with nbdkit("file", tmp_path / "disk") as server:
        connection = blocking.connect(access_to(ide0=server.uri), mode="nbd", vm_id=VM, snapshot_id="s1")
        disk = blocking.open(connection, "ide0")
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            pieces = list(threads.map(lambda n: blocking.read(disk, n * 64, 64), range(32)))
        assert b"".join(pieces) == CONTENT
        blocking.close(disk)
        blocking.disconnect(connection)


@pytest.mark.usefixtures("_initialised")
def test_an_interrupted_call_is_over_when_it_raises() -> None:
    with nbdkit("memory", "1M", "delay-read=20", filters=("delay",)) as server:
        connection = blocking.connect(access_to(ide0=server.uri), mode="nbd", vm_id=VM, snapshot_id="s1")
        disk = blocking.open(connection, "ide0")
        buffer = bytearray(512)
        start = time.monotonic()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            blocking.read(disk, 0, 1, buffer)
        assert time.monotonic() - start < 10
        buffer.extend(b"nobody holds it")
        blocking.close(disk)
        blocking.disconnect(connection)


def test_init_comes_first() -> None:
    for attempt in (
        lambda: blocking.connect(access_to(), mode="nbd", vm_id=VM),
        lambda: blocking.cleanup(access_to()),
        blocking.exit,
    ):
        with pytest.raises(StateError, match="init comes first"):
            attempt()
    with pytest.raises(StateError):
        blocking.list_transport_modes()


@pytest.mark.usefixtures("_initialised")
def test_exit_comes_last() -> None:
    connection = blocking.connect(access_to(), mode="nbd", vm_id=VM)
    with pytest.raises(StateError, match="exit needs all connections disconnected"):
        blocking.exit()
    with pytest.raises(StateError, match="init needs"):
        blocking.init()
    blocking.disconnect(connection)
