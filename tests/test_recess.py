"""Threads are tried again: soon at first, ever later where that is in vain, and never where there are none."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from sfasync.extents import Action, Step
from sfasync.recess import Plan, Recess

STEP = Step(Action.DATA, 0, 1)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def until_over(self, recess: Recess) -> float:
        """Whole seconds that a recess lasts still."""
        began = self.now
        while not recess.over(STEP):
            self.now += 1
            assert self.now - began < 10_000
        return self.now - began


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_each_is_twice_as_long_as_the_last_one(clock: Clock) -> None:
    recess, lasted = Recess(), []
    for _ in range(9):
        recess.begin(carried=True)
        lasted.append(clock.until_over(recess))
        clock.now += 1  # that it takes to find out
    assert lasted == [5, 10, 20, 40, 80, 160, 320, 600, 600]


def test_threads_that_did_well_are_trusted(clock: Clock) -> None:
    recess = Recess()
    for _ in range(4):
        recess.begin(carried=True)
        clock.until_over(recess)
    clock.now += 41
    recess.begin(carried=True)
    assert clock.until_over(recess) == 5


def test_where_no_thread_ever_was_none_is_tried(clock: Clock) -> None:
    recess = Recess()
    recess.begin(carried=False)
    clock.now += 1e9
    assert not recess.over(STEP)


def test_threads_that_do_not_come_once_are_tried_again(clock: Clock) -> None:
    recess = Recess()
    recess.begin(carried=True)
    clock.until_over(recess)
    recess.begin(carried=False)
    assert clock.until_over(recess) == 10


async def test_a_plan_knows_its_end() -> None:
    async def steps() -> AsyncIterator[Step]:
        yield STEP
        yield STEP

    plan = Plan(steps())
    assert await anext(plan) == STEP
    assert not plan.ended
    assert [step async for step in plan] == [STEP]
    assert plan.ended
    assert [step async for step in plan] == []
