"""Threads for hire: never too many at work, first come first served; nobody waits for one that does not come back."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sfasync.crew import Crew


async def name_of(crew: Crew) -> str:
    async with crew.hired() as thread:
        return await thread.run_to_end(lambda: threading.current_thread().name)


async def test_there_is_one_more_than_processors_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {2, 5, 7})
    crew, most, out = Crew(), 0, 0

    async def work() -> None:
        nonlocal most, out
        async with crew.hired() as thread:
            out += 1
            most = max(most, out)
            await thread.run_to_end(int)
            out -= 1

    await asyncio.gather(*(work() for _ in range(40)))
    assert most == crew.count == 4
    crew.close()


async def test_who_came_first_is_served_first() -> None:
    """So that those who come again and again get ahead at the same pace."""
    crew = Crew()
    turns: list[str] = []

    async def disk(name: str, hands: int) -> None:
        async def hand() -> None:
            for _ in range(20):
                async with crew.hired():
                    turns.append(name)
                    await asyncio.sleep(0)  # no thread, which may be held up as long as the system likes

        await asyncio.gather(*(hand() for _ in range(hands)))

    await asyncio.gather(*(disk(name, crew.count) for name in "abc"))
    behind = [abs(turns[:end].count("a") - turns[:end].count("c")) for end in range(20 * crew.count)]
    assert max(behind) <= 2 * crew.count
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
        async with crew.hired() as thread:
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
        async with crew.hired():
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
        async with crew.hired():
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
