"""Threads are named and bounded, and nobody waits past, or leaves before, the end of what they do."""

import asyncio
import threading

import pytest

from sfasync.errors import StateError, SystemLimitError
from sfasync.workers import Workers, settled


class Gate:
    """Work that begins, and goes on when it is let through."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.left = False

    def work(self) -> str:
        self.begun.set()
        self.go.wait(10)
        self.left = True
        return "done"

    async def reached(self) -> None:
        while not self.begun.is_set():
            await asyncio.sleep(0.001)


async def test_runs_in_a_named_thread() -> None:
    workers = Workers(1, "somebody")
    name = await workers.run(lambda: threading.current_thread().name)
    assert name.startswith("somebody")
    workers.close()


async def test_a_cancelled_run_does_not_wait() -> None:
    workers, gate = Workers(1), Gate()
    task = asyncio.create_task(workers.run(gate.work))
    await gate.reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not gate.left
    gate.go.set()
    workers.close()


async def test_run_to_end_gives_results_and_errors() -> None:
    workers = Workers(1)
    assert await workers.run_to_end(len, b"four") == 4
    with pytest.raises(ZeroDivisionError):
        await workers.run_to_end(divmod, 1, 0)
    workers.close()


async def test_a_cancelled_run_to_end_waits_for_the_thread_however_often_it_is_cancelled() -> None:
    workers, gate = Workers(1), Gate()
    task = asyncio.create_task(workers.run_to_end(gate.work))
    await gate.reached()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    gate.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.left
    workers.close()


async def test_an_error_after_a_cancellation_is_not_told_and_not_forgotten() -> None:
    workers, gate = Workers(1), Gate()

    def fail() -> None:
        gate.work()
        raise OSError("nobody asks any more")

    task = asyncio.create_task(workers.run_to_end(fail))
    await gate.reached()
    task.cancel()
    await asyncio.sleep(0)
    gate.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    workers.close()


async def test_work_that_had_not_begun_is_dropped_when_cancelled() -> None:
    workers, gate = Workers(1), Gate()
    busy = workers.submit(gate.work)
    task = asyncio.create_task(workers.run_to_end(pytest.fail))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.go.set()
    await asyncio.wrap_future(busy)
    workers.close()


async def test_clean_up_is_run_even_if_cancelled_before_a_thread_is_free() -> None:
    workers, gate = Workers(1), Gate()
    busy = workers.submit(gate.work)
    cleaned: list[str] = []
    task = asyncio.create_task(workers.run_surely(cleaned.append, "up"))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == ["up"]
    await asyncio.wrap_future(busy)
    workers.close()


async def test_clean_up_that_nobody_waits_for_any_more_is_run_all_the_same() -> None:
    workers, gate = Workers(1), Gate()
    busy = workers.submit(gate.work)
    cleaned: list[str] = []
    task = asyncio.create_task(workers.run_anyway(cleaned.append, "up"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not cleaned
    gate.go.set()
    await asyncio.wrap_future(busy)
    await workers.run_anyway(cleaned.append, "and away")
    assert cleaned == ["up", "and away"]
    workers.close()


async def test_a_cancelled_wait_asks_the_work_to_stop() -> None:
    workers, gate = Workers(1), Gate()
    future = workers.submit(gate.work)
    task = asyncio.create_task(settled(future, stop=gate.go.set))
    await asyncio.sleep(0)  # it waits now
    await gate.reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert future.result() == "done"
    workers.close()


async def test_closed_workers_take_nothing_more() -> None:
    workers = Workers(1)
    workers.close()
    with pytest.raises(StateError, match="closed"):
        await workers.run_to_end(len, b"")


async def test_work_goes_on_where_no_second_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, gate = Workers(2), Gate()
    first = asyncio.create_task(workers.run(gate.work))
    await gate.reached()
    _let_no_thread_start(monkeypatch)
    second = asyncio.create_task(workers.run_to_end(len, b"four"))
    await asyncio.sleep(0)
    gate.go.set()
    assert (await first, await second) == ("done", 4)
    workers.close()


async def test_without_any_thread_nothing_is_run_later(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(1)
    done: list[str] = []
    with monkeypatch.context() as patched:
        _let_no_thread_start(patched)
        with pytest.raises(SystemLimitError, match="ulimit -u"):
            await workers.run(done.append, "too late")
    await workers.run(done.append, "in time")
    assert done == ["in time"]
    workers.close()


def _let_no_thread_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
