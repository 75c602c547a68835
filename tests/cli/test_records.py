"""Records of a repository are hostile until shown: nothing in them breaks a line or raises."""

from __future__ import annotations

import pytest

from sfasync.cli import records
from sfasync.models import DiskRecord, DiskStatistics


def disk(mode: str = "full", size: int = 1024) -> DiskRecord:
    return DiskRecord(id="vda", size=size, root="0" * 64, tree="1" * 64, mode=mode, statistics=DiskStatistics())


def test_time_is_utc_for_programs() -> None:
    assert records.utc_time(1769882400.25) == "2026-01-31T18:00:00.250Z"


@pytest.mark.parametrize("seconds", [1e300, -1e300, float("inf"), float("nan")])
def test_a_time_that_no_calendar_has(seconds: float) -> None:
    assert records.utc_time(seconds) is None
    assert records.local_time(seconds) == "(no date)"


def test_mode_of_several_disks() -> None:
    assert records.mode_of([disk("full"), disk("full")]) == "full"
    assert records.mode_of([disk("full"), disk("incremental")]) == "mixed"


def test_size_of_several_disks() -> None:
    assert records.size_of([disk(), disk(size=2048)]) == "3 KiB"


def test_a_table_is_aligned_and_safe() -> None:
    assert list(records.table([("VM", "SIZE"), ("a\x1b[2J\nb", "1 KiB"), ("c", "2")])) == [
        r"VM           SIZE",
        r"a\x1b[2J\nb  1 KiB",
        r"c            2",
    ]
