"""Sizes and spans as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.units import GiB, KiB, MiB, TiB, format_rate, format_seconds, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64K", 64 * KiB),
        ("64k", 64 * KiB),
        ("1.5G", 3 * GiB // 2),
        ("10 MiB", 10 * MiB),
        ("2TB", 2 * TiB),
    ],
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "1X", "1 2", "0x10", "1e3", "∞", "9" * 400])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (20 * GiB, "20 GiB"), (5000 * TiB, "4.9 PiB")],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text
    assert format_rate(size) == f"{text}/s"


@given(st.integers(0, 1 << 60))
def test_written_sizes_are_read_again_nearly(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (42.4, "42 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_spans_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
