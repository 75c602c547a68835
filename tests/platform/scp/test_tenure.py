from __future__ import annotations

from sfasync.platform.scp.lease import Tenure


def test_time_counts_from_when_it_was_asked_for() -> None:
    tenure = Tenure(1800, end=1800)
    tenure.told(asked=100, remaining=1700)
    assert not tenure.over(1799)
    assert tenure.over(1800)


def test_what_shrinks_is_believed_and_what_grows_beyond_all_bounds_is_not() -> None:
    tenure = Tenure(1800, end=1800)
    tenure.told(asked=0, remaining=60)
    assert tenure.over(60)
    tenure.told(asked=100, remaining=1e9)
    assert tenure.over(1900)
    assert not tenure.over(1899)


def test_no_answer_changes_nothing() -> None:
    tenure = Tenure(1800, end=1800)
    tenure.told(asked=1000, remaining=None)
    assert tenure.over(1800)


def test_it_is_renewed_at_half_time() -> None:
    tenure = Tenure(1800, end=1800)
    assert not tenure.due(899)
    assert tenure.due(901)


def test_pauses_are_short_enough_to_renew_several_times() -> None:
    assert Tenure(1800, end=1800).pause(0) == 60
    assert Tenure(60, end=60).pause(0) == 10
    assert Tenure(60, end=60).pause(52) == 4
    assert Tenure(60, end=60).pause(59) == 1
    assert Tenure(60, end=60).pause(59.5) == 0.5
    assert Tenure(60, end=60).pause(61) == 0
