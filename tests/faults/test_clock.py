"""Clocks that are wrong, and jump during a backup: nothing waits, nothing is lost, the order of backups stays."""

from __future__ import annotations

import glob
from pathlib import Path

import pytest

from ..support.servers import nbdkit
from .site import Site

_JUMPS = ("-365d", "+365d", "-25000d")  # the last one leads to before 1970


@pytest.mark.parametrize("jump", _JUMPS)
def test_the_clock_jumps_during_a_backup(tmp_path: Path, jump: str) -> None:
    libraries = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
    if not libraries:
        pytest.skip("faketime is not installed; run scripts/system-packages")
    clock = tmp_path / "clock"
    clock.write_text("+0d\n")
    env = {
        "LD_PRELOAD": libraries[0],
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    site = Site(tmp_path, tmp_path / "repository")
    site.init()
    with nbdkit("file", site.image, "--readonly", "rdelay=200ms", filters=("delay",)) as server:
        process = site.start_backup(server.uri, env=env)
        site.until_session(process)
        clock.write_text(f"{jump}\n")
        assert process.wait(30) == 0, site.said()
        site.check(finished=True)
        site.change()
        assert site.start_backup(server.uri, env=env).wait(30) == 0, "it begins when the clock is wrong"
        site.check(finished=True)
