"""Shares of hosts and datastores: never more out than may be, first come first served, no two wait for each other."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from sfasync.shares import Room, Shares


async def test_no_more_are_out_than_may_be() -> None:
    shares, out, most = Shares(), Counter[str](), Counter[str]()
    choice = random.Random(1)

    async def one(names: list[str]) -> None:
        async with shares.taken(dict.fromkeys(names, 3)):
            for name in names:
                out[name] += 1
                most[name] = max(most[name], out[name])
            for _ in range(choice.randrange(4)):
                await asyncio.sleep(0)
            out.subtract(names)

    async with asyncio.timeout(20):
        await asyncio.gather(*(one(choice.sample("abcd", choice.randint(0, 4))) for _ in range(300)))
    assert set(most.values()) == {3}
    assert repr(shares) == "<Shares of 0 things>"


async def test_a_large_wish_is_not_overtaken() -> None:
    room, order = Room(), list[str]()

    async def one(name: str, amount: int) -> None:
        async with room.taken(amount, 3):
            order.append(name)

    async with room.taken(1, 3):
        tasks = [asyncio.create_task(one(name, amount)) for name, amount in (("large", 9), ("small", 1))]
        for _ in range(3):
            await asyncio.sleep(0)
        assert order == []
    await asyncio.gather(*tasks)
    assert order == ["large", "small"]
    assert room.is_idle


async def test_who_came_first_is_served_first_also_where_a_later_one_would_do_with_less() -> None:
    shares, order = Shares(), list[str]()

    async def one(name: str, most: int) -> None:
        async with shares.taken({"host": most}):
            order.append(name)

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(shares.taken({"host": 1}))
        tasks = [asyncio.create_task(one("modest", 1)), asyncio.create_task(one("other", 5))]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert order == []
    await asyncio.gather(*tasks)
    assert order == ["modest", "other"]


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_who_is_cancelled_holds_nobody_up(cancelled: int) -> None:
    shares, served = Shares(), list[int]()

    async def one(number: int) -> None:
        async with shares.taken({"datastore": 0, "host": 1}):
            served.append(number)

    async with shares.taken({"host": 1}):
        tasks = [asyncio.create_task(one(number)) for number in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks[cancelled].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert served == [number for number in range(3) if number != cancelled]
    assert repr(shares) == "<Shares of 0 things>"


async def test_cancelled_just_when_it_was_served() -> None:
    shares = Shares()

    async def one() -> None:
        async with shares.taken({"host": 1}):
            await asyncio.sleep(0)

    async with shares.taken({"host": 1}):
        task = asyncio.create_task(one())
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(5), shares.taken({"host": 1}):
        pass
    assert repr(shares) == "<Shares of 0 things>"
