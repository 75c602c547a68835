"""`sfasync demo`: the main job on a platform of this machine's own, explained."""

from __future__ import annotations

import time

import click

from ...errors import UsageError
from .. import options
from ..output import Output
from ..runner import perform


@click.command("demo")
@click.option("--keep", is_flag=True, help="Leave the repository in its temporary directory.")
@options.common
def command(output: Output, keep: bool) -> int:
    """Show the main job on a platform of this machine's own, in less than a minute.

    Starts a lab (sfasync lab) with a VM that has two disks of generated files; makes a full backup, a change and an
    incremental backup, lists and verifies them, gives the VM back what has changed and compares every byte. Cleans up
    after itself, also on Ctrl-C.
    """
    return perform(output, lambda: _demo(output, keep))


async def _demo(output: Output, keep: bool) -> int:
    try:
        from ..demo import run
    except ModuleNotFoundError as error:
        raise UsageError(f"the demo needs {error.name}; install it with: pip install 'sfasync[lab]'") from error

    began = time.monotonic()
    await run(output.line, keep=keep)
    output.result("demo", {"seconds": round(time.monotonic() - began, 3)})
    return 0
