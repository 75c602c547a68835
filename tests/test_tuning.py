"""The tuner against servers of simulated time: near the best fixed setting, within its limits, and able to follow."""

import random
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.tuning import LARGEST_STEP, LEAST_WINDOW, Setting, Tuner
from sfasync.units import GiB, MiB

MEMORY = 48 * MiB
MOST = 64


def tuner(*, most: int = MOST, size: int = MiB, largest: int = LARGEST_STEP, pinned: bool = False) -> Tuner:
    return Tuner(most=most, size=size, largest=largest, memory=MEMORY, pinned=pinned)


def simulate(
    total: int,
    setting: Callable[[], Setting],
    finished: Callable[[float, float, int], None] = lambda began, now, length: None,
    *,
    latency: Callable[[float], float],
    bandwidth: float,
    parallel: int,
) -> float:
    """Seconds that a copy of `total` bytes takes.

    The server works on `parallel` requests at once, each of which takes it `latency(now)` seconds, and sends the
    answers one after another, `bandwidth` bytes in a second.
    """
    free, link = [0.0] * parallel, 0.0
    heapify(free)
    under_way: list[tuple[float, float, int]] = []
    now = 0.0
    while total or under_way:
        while total and len(under_way) < setting().window:
            length = min(setting().size, total)
            total -= length
            begin = max(now, heappop(free))
            link = max(link, begin + latency(now)) + length / bandwidth
            heappush(free, link)
            heappush(under_way, (link, now, length))
        now, began, length = heappop(under_way)
        finished(began, now, length)
    return now


def best_fixed(total: int, latency: float, bandwidth: float, parallel: int) -> float:
    """The same with the best setting that does not change; in this model more at once never hurts."""
    sample = GiB // 2

    def fixed(setting: Setting) -> float:
        return simulate(sample, lambda: setting, latency=lambda now: latency, bandwidth=bandwidth, parallel=parallel)

    settings = [Setting(min(MOST, MEMORY // size), size) for size in (MiB, 2 * MiB, 4 * MiB)]
    return min(fixed(setting) for setting in settings) * (total / sample)


@pytest.mark.parametrize(
    ("latency", "bandwidth", "parallel"), list(product((0.0002, 0.005, 0.02, 0.05), (0.2e9, 3e9), (1, 4, 16, 64)))
)
@pytest.mark.parametrize("leap", [False, True], ids=["", "leap"])
def test_as_fast_as_the_best_fixed_setting(latency: float, bandwidth: float, parallel: int, leap: bool) -> None:
    chosen, total = tuner(), 8 * GiB
    if leap:
        chosen.leap(0.0)
    seconds = simulate(
        total,
        lambda: chosen.setting,
        chosen.finished,
        latency=lambda now: latency,
        bandwidth=bandwidth,
        parallel=parallel,
    )
    assert seconds <= 1.1 * best_fixed(total, latency, bandwidth, parallel)


@pytest.mark.parametrize(("latency", "parallel"), list(product((0.005, 0.01, 0.02, 0.05), (4, 16, 64))))
def test_a_short_copy_from_afar(latency: float, parallel: int) -> None:
    """As in `moving`: threads were let wait before."""
    chosen, total = tuner(), GiB
    chosen.leap(0.0)
    seconds = simulate(
        total,
        lambda: chosen.setting,
        chosen.finished,
        latency=lambda now: latency,
        bandwidth=3e9,
        parallel=parallel,
    )
    unchanged = Setting(min(MOST, MEMORY // MiB), MiB)
    fixed = simulate(total, lambda: unchanged, latency=lambda now: latency, bandwidth=3e9, parallel=parallel)
    assert seconds <= 1.02 * fixed


def test_a_server_that_answers_at_once_gets_few_requests() -> None:
    chosen = tuner()
    simulate(
        4 * GiB,
        lambda: chosen.setting,
        chosen.finished,
        latency=lambda now: 0.0001,
        bandwidth=3e9,
        parallel=64,
    )
    assert chosen.setting.window <= 2 * LEAST_WINDOW


@pytest.mark.parametrize("seed", range(3))
def test_answers_that_take_now_more_and_now_less_time(seed: int) -> None:
    chosen, most = tuner(), Setting(MEMORY // MiB, MiB)

    def seconds(setting: Callable[[], Setting], finished: Callable[[float, float, int], None]) -> float:
        rng = random.Random(seed)
        latency = lambda now: 0.02 * rng.uniform(0.25, 1.75)  # noqa: E731 - one line of a model
        return simulate(8 * GiB, setting, finished, latency=latency, bandwidth=3e9, parallel=64)

    assert seconds(lambda: chosen.setting, chosen.finished) <= 1.1 * seconds(lambda: most, lambda *step: None)


def test_follows_a_server_that_gets_slower() -> None:
    chosen = tuner()
    before: list[Setting] = []

    def latency(now: float) -> float:
        if now < 2:
            return 0.0001
        before.append(chosen.setting)
        return 0.05

    simulate(16 * GiB, lambda: chosen.setting, chosen.finished, latency=latency, bandwidth=3e9, parallel=64)
    assert before[0].window <= 2 * LEAST_WINDOW
    assert chosen.setting.window * chosen.setting.size > MEMORY // 2


def test_pinned_requests_stay() -> None:
    chosen, seen = tuner(most=3, largest=MiB, pinned=True), set()

    def finished(began: float, now: float, length: int) -> None:
        chosen.finished(began, now, length)
        seen.add(chosen.setting)

    simulate(4 * GiB, lambda: chosen.setting, finished, latency=lambda now: 0.02, bandwidth=1e9, parallel=64)
    assert seen == {Setting(3, MiB)}


def test_the_size_is_found_where_only_the_requests_are_pinned() -> None:
    chosen = tuner(most=1, pinned=True)
    simulate(4 * GiB, lambda: chosen.setting, chosen.finished, latency=lambda now: 0.02, bandwidth=1e9, parallel=64)
    assert chosen.setting == Setting(1, LARGEST_STEP)


@given(
    most=st.integers(1, 256),
    size=st.sampled_from([4096, MiB, 32 * MiB]),
    pinned=st.booleans(),
    steps=st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=300),
)
def test_never_leaves_its_limits(most: int, size: int, pinned: bool, steps: list[tuple[float, float]]) -> None:
    chosen = tuner(most=most, size=size, pinned=pinned)
    now = 0.0
    for wait, seconds in steps:
        now += wait
        chosen.finished(now - seconds, now, chosen.setting.size)
        assert 1 <= chosen.setting.window <= most
        assert size <= chosen.setting.size <= max(size, LARGEST_STEP)
        assert chosen.setting.window * chosen.setting.size <= max(MEMORY, size)
