"""Progress is told at each change of state and twice a second at most in between."""

import pytest

from sfasync.models import Progress
from sfasync.progress import Reporter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("sfasync.progress.time.monotonic", lambda: now[0])
    return now


def test_counts_are_told_at_most_twice_a_second(clock: list[float]) -> None:
    seen: list[Progress] = []
    reporter = Reporter(seen.append)
    reporter.enter("running")
    meter = reporter.meter("vda", 1000)
    for _ in range(80):
        clock[0] += 0.125
        meter.written += 10
        meter.changed()
    assert len(seen) == 1 + 20
    assert [p.done for p in seen[1:4]] == [40, 80, 120]


def test_each_state_is_told_at_once(clock: list[float]) -> None:
    seen: list[str] = []
    reporter = Reporter(lambda p: seen.append(p.state))
    for state in ("running", "committing", "done"):
        reporter.enter(state)
    assert seen == ["running", "committing", "done"]


def test_without_a_callback_the_state_can_still_be_asked_for(clock: list[float]) -> None:
    reporter = Reporter()
    meter = reporter.meter("vda", 100)
    reporter.enter("running")
    meter.zero += 30
    meter.read += 20
    meter.written += 20
    meter.skipped += 10
    meter.changed()
    clock[0] += 7
    snapshot = reporter.snapshot()
    assert (snapshot.state, snapshot.size, snapshot.done, snapshot.read) == ("running", 100, 60, 20)
    assert snapshot.seconds == 7
