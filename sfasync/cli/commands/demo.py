"""`sfasync demo`: the main job on real servers, explained."""

from __future__ import annotations

import time

import click

from .. import options
from ..output import Output
from ..runner import perform


@click.command("demo")
@click.option("--keep", is_flag=True, help="Leave the repository and the restored disks in their temporary directory.")
@options.common
def command(output: Output, keep: bool) -> int:
    """Show the main job on real NBD servers, in about a minute.

    Starts nbdkit (over TLS), qemu-nbd and nbd-server on this machine with three disks of generated files; makes a
    backup, a change and a second backup, lists and verifies them, restores the disks and compares every byte. Cleans up
    after itself, also on Ctrl-C.
    """
    return perform(output, lambda: _demo(output, keep))


async def _demo(output: Output, keep: bool) -> int:
    from ..demo import run

    began = time.monotonic()
    await run(output.line, keep=keep)
    output.result("demo", {"seconds": round(time.monotonic() - began, 3)})
    return 0
