"""Every order in which a file system may have written a backup: no state after a crash loses what was acknowledged.

A backup is recorded call by call. After each of its steps the power may fail, and what was not synced then be there, be
missing, or be there in half. The states are built and looked at as repositories.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sfasync import SfasyncError

from ..support import crash
from ..support.servers import nbdkit, require
from .site import Site

STATES = 400
_FAST = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108  # what is durable here the states say


class Recorded:
    """A repository with one backup, and the steps of the next."""

    def __init__(self, place: Path, work: Path) -> None:
        require("strace")
        self._work = work
        self._site = Site(place, place / "repository")
        self._site.init()
        with nbdkit("file", self._site.image, "--readonly") as server:
            assert self._site.back_up(server.uri) == 0, self._site.said()
            self._site.check(finished=True)
            self._site.change()
            self._before = place / "before"
            shutil.copytree(self._site.repository, self._before)
            log = place / "trace"
            process = self._site.start_backup(server.uri, under=crash.command(log))
            assert process.wait(60) == 0, self._site.said()
        self.steps = crash.read_trace(log, self._site.repository)
        self._acknowledged = dict(self._site.acknowledged)

    def crash_after(self, count: int, choice: random.Random) -> None:
        """Look at a state that a crash after so many steps may leave."""
        state = self._work / "state"
        crash.build(self.steps[:count], self._before, state, choice)
        self._site.repository, self._site.acknowledged = state, dict(self._acknowledged)
        self._site.check(finished=count == len(self.steps))
        shutil.rmtree(state)


@contextmanager
def recorded(place: Path) -> Iterator[Recorded]:
    with tempfile.TemporaryDirectory(prefix="sfasync-crash-", dir=_FAST) as work:
        yield Recorded(place, Path(work))


def test_a_few_states(tmp_path: Path) -> None:
    choice = random.Random(1)
    with recorded(tmp_path) as backup:
        for count in (*choice.sample(range(len(backup.steps)), 4), len(backup.steps)):
            backup.crash_after(count, choice)


def test_without_syncs_what_was_acknowledged_is_lost(tmp_path: Path) -> None:
    """The counter-check: states that lose nothing without a sync would show nothing."""
    choice = random.Random(1)
    with recorded(tmp_path) as backup:
        backup.steps = [step for step in backup.steps if not isinstance(step, crash.Sync)]
        with pytest.raises((AssertionError, SfasyncError)):
            for _ in range(20):
                backup.crash_after(len(backup.steps), choice)


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_many_states(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choice = random.Random(2)
    with recorded(tmp_path) as backup:
        for number in range(STATES):
            backup.crash_after(number % (len(backup.steps) + 1), choice)
        with capsys.disabled():
            print(f" {STATES} states after crashes at {len(backup.steps)} steps, nothing lost ", end="")
