"""Sizes as people write them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revolve.schedules import BudgetError, format_bytes, parse_bytes
from revolve.schedules.units import format_seconds

POWERS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
POWERS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, 0),
        (300, 300),
        (np.int64(7), 7),
        ("0", 0),
        ("300", 300),
        ("300B", 300),
        ("300MB", 300 * 10**6),
        ("300MiB", 300 * 2**20),
        ("2GiB", 2**31),
        ("2 gib", 2**31),
        (" 1.5 GB ", 15 * 10**8),
        (".5kB", 500),
        ("1.kB", 1000),
        ("0.1GB", 10**8),
        ("1.9999B", 1),
    ],
)
def test_sizes(size, expected):
    assert parse_bytes(size) == expected
    assert type(parse_bytes(size)) is int


@pytest.mark.parametrize(("share", "expected"), [("80%", 800), ("0%", 0), ("12.34 %", 123), ("150%", 1500)])
def test_shares_of_a_device(share, expected):
    assert parse_bytes(share, available=1000) == expected


@pytest.mark.parametrize(
    "size",
    [
        *("", " ", "MB", "%", "-5", "-5MB", "+5", "1e3", "1,000", "1_000", "0x10", "nan", "inf", "1.2.3"),
        *("5XB", "5 M B", "5Mb/s", "5Mi", "80%%", "5\n5", "٣MB"),
    ],
)
def test_strings_that_are_no_sizes(size):
    with pytest.raises(BudgetError, match="is not a size; write bytes") as caught:
        parse_bytes(size, available=1000)
    assert repr(size) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "kind"), [(1.5, "float"), (2.0, "float"), (None, "NoneType"), (True, "bool"), ([1], "list")]
)
def test_other_types(size, kind):
    with pytest.raises(BudgetError, match=f"is a {kind}; write an int"):
        parse_bytes(size)


def test_negative_and_unknown_shares():
    with pytest.raises(BudgetError, match="budget -1 is negative"):
        parse_bytes(-1)
    with pytest.raises(BudgetError, match="'80%' is a share of a device's free memory, but no device is known"):
        parse_bytes("80%")


@given(st.integers(0, 2**40), st.sampled_from(sorted(POWERS)), st.sampled_from(["", " "]), st.booleans())
def test_every_unit_in_any_case(count, unit, space, lower):
    text = f"{count}{space}{unit}"
    assert parse_bytes(text.lower() if lower else text) == count * POWERS[unit]


@given(st.integers(0, 10**15))
def test_what_is_written_for_people_reads_back(size):
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=5.1e-4)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_budget_error(text):
    try:
        size = parse_bytes(text, available=1000)
    except BudgetError:
        return
    assert size >= 0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (271_400_000, "271.4 MB"),
        (5 * 10**9, "5 GB"),
        (1234 * 10**9, "1234 GB"),
    ],
)
def test_bytes_for_people(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("time", "text"), [(0, "0 ns"), (2.5, "2.5 s"), (0.0123, "12.3 ms"), (4e-6, "4 us"), (7e-9, "7 ns")]
)
def test_times_for_people(time, text):
    assert format_seconds(time) == text
