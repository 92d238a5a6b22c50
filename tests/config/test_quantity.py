"""Durations and sizes: what is written is read, and the other way round."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellarer.domain.quantity import (
    about_duration,
    about_size,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("15m", timedelta(minutes=15)),
        ("6h", timedelta(hours=6)),
        ("30d", timedelta(days=30)),
        ("2w", timedelta(weeks=2)),
        ("1h30m", timedelta(minutes=90)),
        ("500ms", timedelta(milliseconds=500)),
        ("1d1s", timedelta(days=1, seconds=1)),
    ],
)
def test_durations_are_read(text: str, span: timedelta) -> None:
    assert parse_duration(text) == span


@pytest.mark.parametrize(
    "text",
    ["", "6", "h", "6 h", "6H", "-1h", "1.5h", "30m1h", "0s", "0h0m", "1y", "٣h", "1h\n", "9" * 30],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_a_duration_beyond_any_calendar_is_refused() -> None:
    with pytest.raises(ValueError, match="calendar"):
        parse_duration("9999999999d")


@given(st.integers(1, 10**14))
def test_a_duration_survives_being_written(milliseconds: int) -> None:
    span = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(span)) == span


@given(st.text(alphabet="0123456789wdhms. -", max_size=12))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        span = parse_duration(text)
    except ValueError:
        return
    assert span > timedelta(0)
    assert parse_duration(format_duration(span)) == span


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0B", 0),
        ("64MB", 64_000_000),
        ("1GiB", 2**30),
        ("1.5 kB", 1500),
        ("64mb", 64_000_000),
        ("2PiB", 2**51),
    ],
)
def test_sizes_are_read(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "64", "MB", "64 M", "-1MB", "1.5B", "1e3MB", "64MBit", "٣MB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|whole number of bytes"):
        parse_size(text)


@given(st.one_of(st.integers(0, 10**16), st.integers(0, 2**20).map(lambda count: count * 2**20)))
def test_a_size_survives_being_written(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


def test_readers_get_rounded_figures() -> None:
    assert [about_size(size) for size in (0, 999, 1000, 412_345_678, 999_999, 1_250_000_000)] == [
        *("0 B", "999 B", "1.00 kB", "412 MB", "1.00 MB", "1.25 GB")
    ]
    assert [about_duration(seconds) for seconds in (0.42, 12.3, 59.7, 200, 7500, 90_000)] == [
        *("0.4 s", "12 s", "1 min", "3 min 20 s", "2 h 5 min", "1 d 1 h")
    ]
