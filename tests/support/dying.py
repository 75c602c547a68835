"""A backup that kills its own process: ``python -m tests.support.dying REPOSITORY SETTINGS INSTANT``.

INSTANT is the number of the command of the monitor before which it dies, or ``manifest`` or ``committed``: before the
manifest is made, or after that and before the platform is told.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from sfasync import Engine, Repository
from sfasync.platform.qemu.monitor import Monitor
from sfasync.platform.qemu.platform import QemuPlatform
from sfasync.platform.qemu.settings import QemuNbd, QemuSettings, QemuVm
from sfasync.platform.qemu.snapshot import QemuSnapshot
from sfasync.store.session import Session

from .qemu import TIMEOUTS


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(instant: str) -> None:
    """Arrange for the death of this process."""
    if instant == "manifest":
        Session.commit = die  # type: ignore[assignment] # for this process
    elif instant == "committed":
        QemuSnapshot.committed = die  # type: ignore[assignment] # for this process
    else:
        execute = Monitor._execute
        left = int(instant)

        async def count(self: Monitor, command: str, arguments: Mapping[str, object] | None) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                die()
            return await execute(self, command, arguments)

        Monitor._execute = count  # type: ignore[method-assign] # for this process


async def back_up(repository: str, platform: QemuSettings) -> None:
    async with (
        await Repository.open(repository) as store,
        Engine(store) as engine,
        QemuPlatform(platform) as qemu,
    ):
        await engine.backup_vm("web-01", platform=qemu)


def main(repository: str, described: str, instant: str) -> None:
    places = msgspec.json.decode(described, type=dict[str, str])
    vm = QemuVm(
        socket=Path(places["monitor"]), nbd=QemuNbd(socket=Path(places["nbd"])), directory=Path(places["directory"])
    )
    die_at(instant)
    asyncio.run(back_up(repository, QemuSettings(vms={"web-01": vm}, timeouts=TIMEOUTS)))


if __name__ == "__main__":
    main(*sys.argv[1:])
