from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.errors import UsageError
from sfasync.models import NO_RETRY, Retry
from sfasync.retry import Backoff, pause


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_pauses_double_up_to_the_longest() -> None:
    retry = Retry(delay=0.5, max_delay=3.0, jitter=0.0)
    assert [pause(retry, attempt) for attempt in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1, exclude_max=True))
def test_chance_takes_its_share_of_a_pause_and_no_more(attempt: int, jitter: float, chance: float) -> None:
    retry = Retry(delay=0.5, max_delay=3.0, jitter=jitter)
    longest = pause(Retry(delay=0.5, max_delay=3.0, jitter=0.0), attempt)
    assert longest * (1 - jitter) <= pause(retry, attempt, lambda: chance) <= longest


def test_the_budget_is_spent_to_the_end_and_not_beyond() -> None:
    clock = Clock()
    backoff = Backoff(Retry(delay=1.0, max_delay=4.0, jitter=0.0), 10.0, clock=clock)
    waited = []
    while (delay := backoff.next()) is not None:
        waited.append(delay)
        clock.now += delay
    assert waited == [1.0, 2.0, 4.0, 3.0]
    assert backoff.remaining == 0.0


def test_attempts_that_take_long_spend_the_budget_too() -> None:
    clock = Clock()
    backoff = Backoff(Retry(delay=1.0, jitter=0.0), 10.0, clock=clock)
    assert backoff.next() == 1.0
    clock.now += 9.5
    assert backoff.next() == 0.5
    clock.now += 60
    assert backoff.next() is None


def test_clients_scatter() -> None:
    chances = itertools.cycle([0.0, 0.25, 0.75])
    retry = Retry(delay=1.0, max_delay=1.0)
    backoff = Backoff(retry, 10.0, clock=Clock(), rng=lambda: next(chances))
    assert [backoff.next() for _ in range(3)] == [1.0, 0.75, 0.25]


def test_without_a_budget_nothing_is_tried_again() -> None:
    assert Backoff(NO_RETRY, NO_RETRY.outage).next() is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"attempts": 101},
        {"outage": -1.0},
        {"outage": float("nan")},
        {"connect": float("inf")},
        {"delay": -0.1},
        {"max_delay": -0.1},
        {"jitter": 1.1},
        {"jitter": -0.1},
    ],
)
def test_options_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Retry(**wrong)  # type: ignore[arg-type] # one name and one number
