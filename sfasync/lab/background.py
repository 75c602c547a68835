"""Starts and ends the process of a lab that runs in the background."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from ..errors import SourceError, StateError, printable
from ..files import storage_error
from ..programs import last_line, require_tools
from ..tasks import finish
from .home import Home, Running
from .lab import TOOLS
from .machines import Inventory, MachineSpec

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_PAUSE = 0.02

DEFAULT = "web-01:2x4G"
"""The machine of a lab that is not told which to have."""


async def start(home: Home, machines: Sequence[str]) -> Running:
    """Start a lab, and wait until it can be used.

    Cancelling ends it again.

    Args:
        home: Its directory.
        machines: Its machines, as of `MachineSpec.parse`; those that are there already stay. None for what is there, or
            else for `DEFAULT`.

    Raises:
        UsageError: A machine is described wrongly, or a program is missing.
        StateError: A lab runs there.
        SourceError: It did not start; the message says why, as far as it has.
        StorageError: The directory cannot be used.
    """
    require_tools("the lab", TOOLS)
    for machine in machines:
        MachineSpec.parse(machine)
    if home.alive():
        raise StateError(f"a lab runs in {printable(str(home.path))}; sfasync lab down ends it")
    home.make()
    if not machines and not Inventory.load(home.machines).machines:
        machines = (DEFAULT,)
    process = _spawn(home, machines)
    try:
        async with asyncio.timeout(_START_SECONDS):
            return await _ready(home, process)
    except BaseException as error:
        await finish(_end(process), 2 * _STOP_SECONDS)
        if isinstance(error, TimeoutError):
            raise SourceError(f"the lab did not start within {_START_SECONDS:g} s; see {home.log}") from error
        raise


async def stop(home: Home, *, keep: bool) -> bool:
    """End the lab of a directory, and remove what it kept there; a lab that was killed leaves no less.

    Args:
        home: Its directory.
        keep: Leave its machines there, so that `start` goes on with them.

    Returns:
        Whether one was running.

    Raises:
        StateError: It does not end.
    """
    ran = home.alive()
    told: int | None = None
    deadline = time.monotonic() + _STOP_SECONDS
    while home.alive():
        running = home.running()
        if running is not None and running.pid != told:
            told = running.pid
            with suppress(ProcessLookupError):
                os.kill(told, signal.SIGTERM)
        if time.monotonic() > deadline:
            raise StateError(f"the lab (process {told}) does not end; see {home.log}")
        await asyncio.sleep(_PAUSE)
    if not keep:
        home.remove()
    return ran


def _spawn(home: Home, machines: Sequence[str]) -> subprocess.Popen[bytes]:
    try:
        with _log(home.log) as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"{__package__}", home.path, *machines],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    except OSError as error:
        raise storage_error(error, "write", str(home.log)) from error


def _log(path: Path) -> IO[bytes]:
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")


async def _ready(home: Home, process: subprocess.Popen[bytes]) -> Running:
    while True:
        running = home.running()
        if running is not None and running.pid == process.pid and running.control.exists():
            return running
        if process.poll() is not None:
            raise SourceError(f"the lab did not start: {last_line(home.log.read_bytes())}")
        await asyncio.sleep(_PAUSE)


async def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    deadline = time.monotonic() + _STOP_SECONDS
    while process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
        await asyncio.sleep(_PAUSE)
