"""Incremental backups of disks that a guest writes to all the time are what the disks were, to the byte."""

from __future__ import annotations

import asyncio
from pathlib import Path

import uvloop

from tests.support.servers import require
from tests.support.witness import incrementals


def test_twenty_incrementals(tmp_path: Path) -> None:
    """More of them in ``make soak``."""
    require("nbdcopy")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # in debug mode it takes seconds more
        runner.run(incrementals(tmp_path, 20))
