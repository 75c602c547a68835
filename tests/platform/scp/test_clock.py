"""The platform's clock, from what its answers say."""

from __future__ import annotations

import pytest

from sfasync.platform.scp.clock import ServerClock, http_date

NOON = 1_767_268_800.0  # 2026-01-01 12:00:00


def test_a_platform_that_is_ahead() -> None:
    clock = ServerClock(lambda: NOON)
    assert clock.stamp() == "20260101T120000Z"
    clock.learn("Thu, 01 Jan 2026 14:00:00 GMT")
    assert clock.offset == 7200
    assert clock.stamp() == "20260101T140000Z"
    clock.learn("Thu, 01 Jan 2026 12:00:01 GMT")  # within what the header can tell
    assert clock.offset == 0


@pytest.mark.parametrize(
    "date",
    [None, "", "now", "Thu, 01 Jan 0000 00:00:00 GMT", "Thu, 01 Jan 9999 00:00:00 GMT", "Thu, 99 Foo 2026", "\0" * 100],
)
def test_a_date_that_cannot_be_believed_changes_nothing(date: str | None) -> None:
    clock = ServerClock(lambda: NOON)
    clock.learn("Thu, 01 Jan 2026 14:00:00 GMT")
    clock.learn(date)
    assert clock.offset == 7200


def test_dates_of_http() -> None:
    assert http_date("Thu, 01 Jan 2026 12:00:00 GMT") == NOON
    assert http_date("1767268800") is None
