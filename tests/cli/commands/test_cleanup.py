"""`sfasync cleanup` after a run that was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ...support.command import sfasync
from ...support.configured import write_configuration
from ...support.qemu import daemon

MiB = 1 << 20

HOLD = """
import asyncio, sys, sfasync
async def main():
    async with sfasync.open_platform(sfasync.Configuration.load(sys.argv[1]), "lab") as platform:
        async with platform.snapshot("web"):
            print("frozen", flush=True)
            await asyncio.sleep(60)
asyncio.run(main())
"""


def kill_in_the_middle(configuration: Path) -> None:
    """Kill a run that holds a snapshot of the VM."""
    with subprocess.Popen([sys.executable, "-c", HOLD, configuration], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "frozen\n"
        process.kill()


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    with daemon({"vda": 4 * MiB}) as machine:
        file = write_configuration(tmp_path / "sfasync.toml", web=machine)
        assert sfasync("cleanup", "--config", file).out == "nothing is left over\n"
        kill_in_the_middle(file)

        seen = sfasync("cleanup", "--dry-run", "--config", file, "--json")
        assert (seen.status, seen.last["dry_run"]) == (0, True)
        left = [event for event in seen.events if event["event"] == "leftover"]
        assert left
        assert seen.last["count"] == len(left)
        assert not any(event["removed"] or event["problem"] for event in left)

        removed = sfasync("cleanup", "--platform", "lab", "--config", file)
        assert removed.status == 0
        assert {line.split()[0] for line in removed.out.splitlines()} == {"removed"}
        assert sfasync("cleanup", "--config", file, "--json").last == {
            "event": "result",
            "ok": True,
            "command": "cleanup",
            "count": 0,
            "dry_run": False,
        }
