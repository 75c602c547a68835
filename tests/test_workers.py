"""Threads are named and bounded, and never outlive the buffer they were given."""

import asyncio
import threading

import pytest

from sfasync.errors import StateError
from sfasync.workers import Workers


class Held:
    def __init__(self) -> None:
        self.released = asyncio.Event()

    def release(self) -> None:
        assert not self.released.is_set()
        self.released.set()


async def test_runs_in_a_named_thread() -> None:
    workers = Workers(1, "somebody")
    name = await workers.run(lambda: threading.current_thread().name)
    assert name.startswith("somebody")
    workers.close()


async def test_releases_what_it_holds_after_the_result_and_after_an_error() -> None:
    workers = Workers(1)
    held = Held()
    assert await workers.run_holding(held, len, b"four") == 4
    assert held.released.is_set()
    held = Held()
    with pytest.raises(ZeroDivisionError):
        await workers.run_holding(held, divmod, 1, 0)
    assert held.released.is_set()
    workers.close()


async def test_a_cancelled_hand_over_holds_until_the_thread_is_done() -> None:
    workers = Workers(1)
    begun, go = threading.Event(), threading.Event()
    held = Held()

    def work() -> None:
        begun.set()
        go.wait(10)

    task = asyncio.create_task(workers.run_holding(held, work))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not held.released.is_set()
    go.set()
    await held.released.wait()
    workers.close()


async def test_work_that_had_not_begun_is_dropped_when_cancelled() -> None:
    workers = Workers(1)
    go = threading.Event()
    busy = workers.submit(go.wait, 10)
    held = Held()
    task = asyncio.create_task(workers.run_holding(held, pytest.fail))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert held.released.is_set()
    go.set()
    await asyncio.wrap_future(busy)
    workers.close()


async def test_closed_workers_give_back_what_they_were_handed() -> None:
    workers = Workers(1)
    workers.close()
    held = Held()
    with pytest.raises(StateError, match="closed"):
        await workers.run_holding(held, len, b"")
    assert held.released.is_set()
