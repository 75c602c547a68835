"""Threads for hire: never too many at work, disks in turn; nobody waits for one that does not come back."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack

import pytest

from sfasync.crew import Claim, Crew


async def name_of(crew: Crew) -> str:
    async with crew.hired(Claim()) as thread:
        return await thread.run_to_end(lambda: threading.current_thread().name)


async def test_two_more_than_there_are_processors_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {2, 5, 7})
    crew, most, out = Crew(), 0, 0

    async def work() -> None:
        nonlocal most, out
        async with crew.hired(Claim()) as thread:
            out += 1
            most = max(most, out)
            await thread.run_to_end(int)
            out -= 1

    await asyncio.gather(*(work() for _ in range(40)))
    assert most == crew.count == 5
    crew.close()


@pytest.mark.parametrize("names", ["ab", "abc", "abcdefgh"])
async def test_disks_have_their_turns(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they get ahead at the same pace, with as few threads for each as there can be."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    crew = Crew()
    turns: list[str] = []
    claims = {name: Claim() for name in names}

    async def disk(name: str) -> None:
        async def hand() -> None:
            for _ in range(20):
                async with crew.hired(claims[name]):
                    turns.append(name)
                    if 2 * crew.count < len(turns) <= 20 * crew.count:  # the first one came alone
                        at_work = [claim.at_work for claim in claims.values()]
                        assert max(at_work) - min(at_work) <= 1
                    await asyncio.sleep(0)  # no thread, which may be held up as long as the system likes

        await asyncio.gather(*(hand() for _ in range(crew.count)))

    await asyncio.gather(*(disk(name) for name in names))
    for end in range(20 * crew.count):
        had = [turns[:end].count(name) for name in names]
        assert max(had) - min(had) <= crew.count
    assert sorted(turns) == sorted(names * 20 * crew.count)
    crew.close()


async def test_a_disk_that_comes_late_is_next() -> None:
    crew = Crew()
    first, second = Claim(), Claim()
    async with AsyncExitStack() as stack:
        for _ in range(crew.count):
            await stack.enter_async_context(crew.hired(first))
        waiting = [asyncio.create_task(_once(crew, claim)) for claim in (first, second)]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    assert (second.served, first.served) == (crew.count + 1, crew.count + 2)
    assert (first.at_work, second.at_work) == (0, 0)
    crew.close()


async def _once(crew: Crew, claim: Claim) -> None:
    async with crew.hired(claim):
        await asyncio.sleep(0)


async def test_one_that_is_late_does_not_keep_its_disk_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two disks that always want more; one of them has a thread that does not come back."""
    monkeypatch.setattr("sfasync.crew._LATE", 0.01)
    crew = Crew()
    slow, quick, go = Claim(), Claim(), asyncio.Event()

    async def hanging() -> None:
        async with crew.hired(slow):
            await go.wait()

    task = asyncio.create_task(hanging())
    await asyncio.sleep(0.05)
    assert (slow.at_work, quick.at_work) == (0, 0)
    go.set()
    await task
    assert (slow.at_work, quick.at_work) == (0, 0)
    crew.close()


async def test_who_only_leaves_is_first() -> None:
    crew = Crew()
    claims = [Claim() for _ in range(crew.count + 2)]
    order: list[int] = []

    async def work(number: int) -> None:
        async with crew.hired(claims[number]):
            order.append(number)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(work(number)) for number in range(len(claims))]
    tasks += [asyncio.create_task(work(0)) for _ in range(2)]
    await asyncio.sleep(0)
    claims[0].leaving = True
    await asyncio.gather(*tasks)
    assert order == [*range(crew.count), 0, 0, crew.count, crew.count + 1]
    crew.close()


async def test_no_turn_is_lost_when_there_is_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Crew()

    def fail(*_: object) -> None:
        raise RuntimeError("can't allocate lock")

    with monkeypatch.context() as patch:
        patch.setattr("sfasync.crew.Workers", fail)
        for _ in range(crew.count + 1):
            with pytest.raises(RuntimeError):
                await name_of(crew)
    async with asyncio.timeout(60):
        await name_of(crew)
    crew.close()


async def test_who_is_cancelled_with_the_turn_just_given_gives_it_back() -> None:
    crew = Crew()
    async with AsyncExitStack() as stack:
        for _ in range(crew.count):
            await stack.enter_async_context(crew.hired(Claim()))
        claim = Claim()
        tasks = [asyncio.create_task(_once(crew, claim)) for _ in range(crew.count)]
        await asyncio.sleep(0)
    assert claim.at_work == crew.count  # and none of them knows it yet
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert claim.at_work == 0
    async with AsyncExitStack() as stack:
        for _ in range(crew.count):
            async with asyncio.timeout(60):
                await stack.enter_async_context(crew.hired(Claim()))
    crew.close()


async def test_who_worked_last_is_next() -> None:
    crew = Crew()
    assert len({await name_of(crew) for _ in range(5)}) == 1
    crew.close()


async def test_one_that_is_late_is_replaced_and_not_hired_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfasync.crew._LATE", 0.02)
    crew, go = Crew(), threading.Event()
    late: list[threading.Thread] = []

    def hang() -> None:
        late.append(threading.current_thread())
        go.wait(20)

    async def hanging() -> None:
        async with crew.hired(Claim()) as thread:
            await thread.run_to_end(hang)

    tasks = [asyncio.create_task(hanging()) for _ in range(2 * crew.count)]
    async with asyncio.timeout(60):
        while len(late) < len(tasks):
            await asyncio.sleep(0.001)
        await name_of(crew)
        go.set()
        await asyncio.gather(*tasks)
        while sum(thread.is_alive() for thread in late) > crew.count:
            await asyncio.sleep(0.001)

    monkeypatch.setattr("sfasync.crew._LATE", 20.0)
    out = 0
    enough = asyncio.Event()

    async def count() -> None:
        nonlocal out
        async with crew.hired(Claim()):
            out += 1
            await enough.wait()
            out -= 1

    tasks = [asyncio.create_task(count()) for _ in range(2 * crew.count)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert out == crew.count, "as many as before"
    enough.set()
    await asyncio.gather(*tasks)
    crew.close()


async def test_who_is_cancelled_while_waiting_leaves_the_turn_to_others() -> None:
    crew = Crew()
    enough = asyncio.Event()

    async def work() -> None:
        async with crew.hired(Claim()):
            await enough.wait()

    tasks = [asyncio.create_task(work()) for _ in range(crew.count + 2)]
    await asyncio.sleep(0)
    for task in tasks[-2:]:
        task.cancel()
    await asyncio.wait(tasks[-2:])
    enough.set()
    async with asyncio.timeout(60):
        await asyncio.gather(*tasks[:-2])
        await name_of(crew)
    crew.close()
