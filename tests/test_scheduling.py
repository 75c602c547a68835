"""How a thread is scheduled while it moves bytes, and after."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from sfasync.scheduling import as_batch


def policy() -> int:
    return os.sched_getscheduler(0)


def in_thread(function: Callable[[], object]) -> None:
    """Run a function in a thread of its own, whose policy does not matter to others."""
    with ThreadPoolExecutor(1) as executor:
        executor.submit(function).result()


def test_only_this_thread_and_only_for_the_block() -> None:
    entered, left = threading.Event(), threading.Event()

    def moves() -> tuple[int, int, int]:
        before = policy()
        with as_batch():
            within = policy()
            entered.set()
            assert left.wait(10)
        return before, within, policy()

    with ThreadPoolExecutor(1) as executor:
        moved = executor.submit(moves)
        assert entered.wait(10)
        other = policy()
        left.set()
        assert moved.result() == (os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_OTHER)
    assert other == os.SCHED_OTHER


def test_a_failure_ends_it_too() -> None:
    def fails() -> None:
        with pytest.raises(OSError, match="lost"), as_batch():
            raise OSError("lost")
        assert policy() == os.SCHED_OTHER

    in_thread(fails)


def test_who_is_scheduled_in_another_way_stays_so() -> None:
    def idles() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with as_batch():
            assert policy() == os.SCHED_IDLE
        assert policy() == os.SCHED_IDLE

    in_thread(idles)


def test_a_system_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with as_batch():
        assert policy() == os.SCHED_OTHER
    monkeypatch.setattr(os, "sched_getscheduler", refuse)
    with as_batch():
        pass
