"""Groups report the first cause; clean-up runs to its end whatever is cancelled."""

import asyncio

import pytest

from sfasync.errors import BusyError
from sfasync.tasks import Looks, cancelled, finish, insist, meanwhile, run_all


async def test_run_all_keeps_the_order() -> None:
    async def number(value: int) -> int:
        await asyncio.sleep(0)
        return value

    assert await run_all(number(value) for value in range(5)) == list(range(5))


async def test_the_first_failure_is_raised_and_the_others_are_noted() -> None:
    failed = asyncio.Event()

    async def first() -> None:
        failed.set()
        raise ValueError("the cause")

    async def second() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("the consequence")

    with pytest.raises(ValueError, match="the cause") as caught:
        await run_all([second(), first()])
    assert caught.value.__notes__ == ["also: OSError: the consequence"]


async def test_finish_returns_the_result() -> None:
    assert await finish(asyncio.sleep(0, "done"), 1) == "done"


async def test_finish_runs_to_the_end_under_cancellation_and_raises_it() -> None:
    go = asyncio.Event()
    ended = False

    async def clean_up() -> None:
        nonlocal ended
        await go.wait()
        ended = True

    task = asyncio.create_task(finish(clean_up(), 10))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


async def test_a_second_cancellation_shortens_the_time() -> None:
    task = asyncio.create_task(finish(asyncio.Event().wait(), 3600))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_looks_come_at_once_then_after_pauses_that_double(monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = 100.0, list[float]()

    async def sleep(pause: float) -> None:
        nonlocal now
        now += pause
        pauses.append(pause)

    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert len([None async for _ in Looks(1.0, 5.0, seconds=17.0)]) == 6
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert len([None async for _ in Looks(1.0, 1.0, seconds=0.0)]) == 1
    pauses.clear()
    assert len([None async for _ in Looks(1.0, 5.0, seconds=9.0)]) == 5
    assert pauses == [1.0, 2.0, 4.0, 2.0], "the last look is when time is up"
    pauses.clear()
    async for _ in Looks(9.0, 0.5):
        if len(pauses) == 3:
            break
    assert pauses == [0.5, 0.5, 0.5]


async def test_who_insists_is_answered_or_hears_the_last_refusal() -> None:
    asked = 0

    async def ask() -> int:
        nonlocal asked
        asked += 1
        if asked < 4:
            raise BusyError(f"busy {asked}")
        return asked

    assert await insist(ask, BusyError, Looks(0.0, 0.0)) == 4
    asked = 0
    with pytest.raises(BusyError, match="busy 1"):
        await insist(ask, BusyError, Looks(0.1, 0.1, seconds=0.0))
    asked = 1
    with pytest.raises(BusyError, match="busy 2"):
        await insist(ask, KeyError, Looks(0.0, 0.0))


async def test_finish_gives_up_at_its_deadline() -> None:
    with pytest.raises(TimeoutError, match=r"not done after 0\.01 s"):
        await finish(asyncio.Event().wait(), 0.01)


async def test_what_nobody_awaits_ends_with_the_block() -> None:
    async def answer() -> int:
        return 42

    async def fail() -> int:
        raise ValueError("nobody asked")

    async with meanwhile(answer()) as task:
        assert await task == 42
    async with meanwhile(fail()) as task:
        await asyncio.sleep(0)
    async with meanwhile(asyncio.sleep(3600)) as endless:
        pass
    assert endless.cancelled()


async def test_cancelled_waits_for_a_task_that_resists() -> None:
    async def resist() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "ended"
        return "never"

    task = asyncio.create_task(resist())
    await asyncio.sleep(0)
    assert await cancelled(task) is None
    assert task.result() == "ended"
