"""The process of a lab in the background: ``python -m sfasync.lab DIRECTORY [VM ...]``; SIGTERM ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from ..errors import SfasyncError
from .control import control
from .home import Home
from .lab import Lab
from .serving import served
from .settings import write_configuration


async def serve(home: Home, machines: Sequence[str]) -> None:
    """Be a lab until a signal comes.

    Raises:
        StateError: There is one in this directory.
        SfasyncError: As of `Lab`.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        sockets = stack.enter_context(home.taken())
        lab = await stack.enter_async_context(Lab(machines, directory=home.machines, sockets=sockets))
        write_configuration(home.configuration, lab.settings, lab.accounts)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(sockets / "control.new"))  # its directory is for the owner alone
        await stack.enter_async_context(served(control(lab), listener))
        (sockets / "control.new").rename(sockets / "control")
        logging.info("ready")
        await stop.wait()
        logging.info("ending")


def main() -> int:
    """The exit code of the process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    directory, *machines = sys.argv[1:]
    try:
        asyncio.run(serve(Home(Path(directory)), machines))
    except SfasyncError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
