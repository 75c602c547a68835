"""A new qcow2 image as a sink: qemu-img creates it and a private qemu-nbd writes it."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from .errors import ConnectError, TargetError, UsageError, printable
from .models import ExportAddress, Retry, Timeouts
from .tasks import finish
from .transport.export import Export, open_export

_START_SECONDS = 10.0
_EXIT_SECONDS = 30.0  # qemu-nbd writes its metadata caches back when it ends

_starting = threading.Lock()


@asynccontextmanager
async def new_qcow2(
    path: Path, *, size: int, connections: int, requests: int, timeouts: Timeouts, retry: Retry
) -> AsyncIterator[Export]:
    """Make an image in a file that is there and empty, and open it to be written for the time of the block.

    After the block the image is complete in the file; making the file durable is the caller's. Requests that the server
    refuses are repeated as `retry` says, but no connection is replaced: a server that drops one is about to end, and
    what it has not written to the file ends with it.

    Raises:
        UsageError: qemu-img or qemu-nbd is not installed.
        TargetError: The image could not be created, or its server ended badly.
    """
    image = _plain_name(path)
    await _run("qemu-img", "create", "-q", "-f", "qcow2", image, str(size))
    with tempfile.TemporaryDirectory(prefix="sfasync-") as directory:  # mode 0700: the socket is ours alone
        socket = Path(directory) / "nbd"
        server = await _start(
            "qemu-nbd", "--format=qcow2", f"--shared={connections}", "--discard=unmap", f"--socket={socket}", image
        )
        try:
            opening = _connect(
                server, socket, connections=connections, requests=requests, timeouts=timeouts, retry=retry
            )
            async with await opening as export:
                yield export
            # not --persistent: with its last client gone the server closes the image and ends
            await _ended(server, path)
        finally:
            if server.returncode is None:
                await finish(_stop(server), 5)


def _plain_name(path: Path) -> str:
    """The path as qemu cannot misunderstand it: a relative one may look like a protocol (``a:b``) or an option."""
    return os.path.abspath(path)


async def _connect(
    server: asyncio.subprocess.Process,
    socket: Path,
    *,
    connections: int,
    requests: int,
    timeouts: Timeouts,
    retry: Retry,
) -> Export:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _START_SECONDS
    while True:
        try:
            return await open_export(
                ExportAddress(socket=socket),
                connections=connections,
                requests=requests,
                timeouts=timeouts,
                retry=replace(retry, connect=0.0, outage=0.0),
            )
        except ConnectError:
            if server.returncode is not None:
                raise TargetError(f"qemu-nbd did not start: {await _words(server)}") from None
            if loop.time() > deadline:
                raise TargetError(f"qemu-nbd did not listen within {_START_SECONDS:g} s") from None
        await asyncio.sleep(0.02)


async def _start(program: str, *arguments: str) -> asyncio.subprocess.Process:
    # uvloop refuses to fork while the loop of another thread does, and cannot be closed after that.
    while not _starting.acquire(blocking=False):  # noqa: ASYNC110 - no event is for several loops
        await asyncio.sleep(0.005)
    try:
        return await _spawn(program, *arguments)
    finally:
        _starting.release()


async def _spawn(program: str, *arguments: str) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            program,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,  # a Ctrl-C is for us: it must not take the target from under a restore
        )
    except FileNotFoundError:
        raise UsageError(f"{program} is needed for qcow2 and not installed (package qemu-utils)") from None


async def _run(program: str, *arguments: str) -> None:
    process = await _start(program, *arguments)
    try:
        await process.wait()
    except asyncio.CancelledError:
        await finish(_stop(process), 5)
        raise
    if process.returncode:
        raise TargetError(f"{program} failed: {await _words(process)}")


async def _ended(server: asyncio.subprocess.Process, path: Path) -> None:
    try:
        async with asyncio.timeout(_EXIT_SECONDS):
            await server.wait()
    except TimeoutError:
        raise TargetError(f"qemu-nbd did not close the image within {_EXIT_SECONDS:g} s", path=str(path)) from None
    if server.returncode:
        raise TargetError(f"qemu-nbd failed to close the image: {await _words(server)}", path=str(path))


async def _stop(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):  # it ended just now
        process.kill()
    await process.wait()


async def _words(process: asyncio.subprocess.Process) -> str:
    """What a process that has ended said."""
    assert process.stderr is not None
    said = (await process.stderr.read(4096)).decode("utf-8", "replace").strip()
    return printable(said.splitlines()[-1]) if said else f"exit status {process.returncode}"
