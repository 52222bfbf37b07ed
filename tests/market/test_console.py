"""Options and figures read and look alike in every command, report and page."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market import console
from market.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, ()),
        ("7", (7,)),
        ("1,2,5", (1, 2, 5)),
        ("1-4", (1, 2, 3, 4)),
        ("1001-1003, 7", (1001, 1002, 1003, 7)),
    ],
)
def test_seeds_are_numbers_and_ranges(text: str | None, expected: tuple[int, ...]) -> None:
    assert console.seeds(text) == expected


@pytest.mark.parametrize("text", ["x", "1-", "-1", "4-1", "1.5", "", ","])
def test_other_seeds_are_refused_in_the_words_of_the_user(text: str) -> None:
    with pytest.raises(UsageError) as error:
        console.seeds(text, "--seeds")
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (console.fixed(1234.567), "1,234.57"),
        (console.fixed(-0.001), "0.00"),
        (console.fixed(None), "–"),
        (console.fixed(math.nan), "–"),
        (console.significant(12345.6), "12,346"),
        (console.significant(0.012345), "0.0123"),
        (console.significant(math.inf), "∞"),
        (console.percent(0.1234), "12.3%"),
        (console.bps(0.5), "0.500"),
        (console.bps(-2.0), "-2.00"),
        (console.interval(1.0, 2.0), "1.00 … 2.00"),
        (console.interval(1.0, math.nan), "–"),
        (console.estimate(0.5, 0.25, 0.75), "0.500 [0.250, 0.750]"),
        (console.estimate(0.5, None, None), "0.500"),
    ],
)
def test_figures_for_people(text: str, expected: str) -> None:
    assert text == expected


@given(st.lists(st.tuples(st.text("ab", max_size=5), st.integers(-999, 999)), min_size=1))
def test_a_table_aligns_text_to_the_left_and_numbers_to_the_right(
    rows: list[tuple[str, int]],
) -> None:
    lines = console.table(rows, ("name", "n")).split("\n")
    assert len({len(line) for line in lines}) == 1
    for (name, number), line in zip(rows, lines[2:], strict=True):
        assert line.startswith(name)
        assert line.endswith(str(number))
