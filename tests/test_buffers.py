"""The pool hands out what its budget allows, in turn, and gets everything back."""

import asyncio
import random

import pytest

from sfasync.buffers import BufferPool, Filled, Slot


async def test_a_slot_is_writable_and_filled_is_not() -> None:
    pool = BufferPool(8192)
    slot = await pool.acquire(100)
    slot.view[:] = b"x" * 100
    filled = slot.filled()
    assert bytes(filled.view) == b"x" * 100
    assert filled.view.readonly
    filled.release()
    assert pool.in_use == 0


async def test_what_was_not_filled_cannot_be_seen() -> None:
    pool = BufferPool(8192)
    slot = await pool.acquire(100)
    slot.view[:3] = b"abc"
    filled = slot.filled(3)
    assert bytes(filled.view) == b"abc"
    filled.release()
    assert pool.in_use == 0


async def test_a_slot_cannot_be_filled_twice() -> None:
    pool = BufferPool(8192)
    slot = await pool.acquire(10)
    filled = slot.filled()
    with pytest.raises(AssertionError):
        slot.filled()
    filled.release()


async def test_releasing_twice_counts_once() -> None:
    pool = BufferPool(8192)
    first, second = await pool.acquire(4096), await pool.acquire(4096)
    first.release()
    first.release()
    assert pool.in_use == 4096
    filled = second.filled()
    second.release()  # the slot no longer owns the memory
    assert pool.in_use == 4096
    filled.release()
    filled.release()
    assert pool.in_use == 0


async def test_acquire_waits_in_turn() -> None:
    pool = BufferPool(8192)
    held = await pool.acquire(8192)
    order: list[int] = []

    async def take(number: int, length: int) -> None:
        slot = await pool.acquire(length)
        order.append(number)
        slot.release()

    tasks = [asyncio.create_task(take(number, length)) for number, length in enumerate((8192, 4096, 4096))]
    await asyncio.sleep(0)
    assert order == []
    held.release()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2]
    assert pool.in_use == 0


async def test_cancelled_waiters_leave_no_trace() -> None:
    pool = BufferPool(4096)
    held = await pool.acquire(1)
    waiting = [asyncio.create_task(pool.acquire(1)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    held.release()  # admits the second: the first is on its way out
    waiting[2].cancel()
    slot = await waiting[1]
    assert pool.in_use == 4096
    slot.release()
    assert pool.in_use == 0
    for task in (waiting[0], waiting[2]):
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_cancelled_in_the_turn_it_was_admitted() -> None:
    pool = BufferPool(4096)
    held = await pool.acquire(1)
    task = asyncio.create_task(pool.acquire(1))
    await asyncio.sleep(0)
    held.release()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.in_use == 0
    (await pool.acquire(4096)).release()


async def test_memory_is_kept_within_the_budget_when_sizes_change() -> None:
    pool = BufferPool(64 * 4096)
    rng = random.Random(1)
    for _ in range(500):
        owned: list[Slot | Filled] = []
        free = pool.budget
        while free >= 4096 and rng.random() < 0.9:
            length = rng.choice([1, 4096, 5000, 16384, 65536])
            size = -(-length // 4096) * 4096
            if size > free:
                break
            slot = await pool.acquire(length)
            assert len(slot.view) == length
            free -= size
            owned.append(slot.filled() if rng.random() < 0.5 else slot)
        assert pool.in_use + pool.idle <= pool.budget
        for item in owned:
            item.release()
    assert pool.in_use == 0
    assert pool.peak <= pool.budget
    pool.close()


async def test_what_comes_back_to_a_closed_pool_is_not_kept() -> None:
    pool = BufferPool(8192)
    (await pool.acquire(4096)).release()
    slot = await pool.acquire(8192)
    pool.close()
    slot.release()
    assert (pool.in_use, pool.idle) == (0, 0)
