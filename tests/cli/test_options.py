"""Values of options are read strictly; what cannot be used is named."""

from __future__ import annotations

import time
from datetime import datetime

import click
import pytest

from sfasync.cli import options


@pytest.mark.parametrize(("text", "value"), [("4096", 4096), ("64K", 65536), ("1.5GiB", 3 << 29)])
def test_size(text: str, value: int) -> None:
    assert options.size(text) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "much", "1X", "nan", "inf", "0.1"])
def test_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter):
        options.size(text)


@pytest.mark.parametrize(("text", "value"), [("0", 0.0), ("2.5", 2.5), ("1e2", 100.0)])
def test_seconds(text: str, value: float) -> None:
    assert options.seconds(text) == value


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "soon"])
def test_no_seconds(text: str) -> None:
    with pytest.raises(click.BadParameter, match="seconds"):
        options.seconds(text)


def test_an_assignment_is_split_at_the_first_equals_sign() -> None:
    uri = "nbd+unix:///?socket=a=b"
    assert options.assignment(f"vda={uri}") == ("vda", uri)


@pytest.mark.parametrize("text", ["", "vda", "vda=", "=nbd://host", "="])
def test_no_assignment(text: str) -> None:
    with pytest.raises(click.BadParameter, match="ID=NBD-URI"):
        options.assignment(text)


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("36h", 129600), ("7d", 604800), ("2w", 1209600)])
def test_a_span_reaches_back_from_now(text: str, seconds: int) -> None:
    assert options.instant(text) == pytest.approx(time.time() - seconds, abs=5)


def test_a_time_without_a_zone_is_local() -> None:
    assert options.instant("2026-01-31T18:00") == datetime(2026, 1, 31, 18).astimezone().timestamp()
    assert options.instant("2026-01-31") == datetime(2026, 1, 31).astimezone().timestamp()


def test_a_time_with_a_zone() -> None:
    assert options.instant("2026-01-31T18:00+00:00") == 1769882400.0


@pytest.mark.parametrize("text", ["", "yesterday", "7", "7y", "d", "-1d", "2026-02-30", "99999999999d"])
def test_no_instant(text: str) -> None:
    with pytest.raises(click.BadParameter, match="7d"):
        options.instant(text)


def test_a_disk_is_given_once() -> None:
    assert options.distinct((("a", "1"), ("b", "1"))) == {"a": "1", "b": "1"}
    with pytest.raises(click.UsageError, match="'a' is given twice"):
        options.distinct((("a", "1"), ("a", "2")))
