"""Figures: no power of ten, no digit that was not measured, no column of which nothing is known."""

from __future__ import annotations

import pytest

from mcp_core.decision.figures import figure, known_columns


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (0.00001234567, "0.00001235"),
        (-0.5, "-0.5"),
        (12.345678, "12.35"),
        (999.94, "999.9"),
        (999.99, "1,000"),
        (1000.4, "1,000"),
        (20_379_190.3, "20,379,190"),
        (-12_345.6, "-12,346"),
    ],
)
def test_four_digits_and_no_power_of_ten(value: float | None, text: str) -> None:
    assert figure(value) == text


def test_three_digits_where_a_sentence_has_no_room() -> None:
    values = (26.1376, 999.7, 12_345.6, None)
    assert [figure(each, digits=3) for each in values] == ["26.1", "1,000", "12,346", "-"]


def test_a_column_is_left_out_only_where_no_row_knows_it() -> None:
    rows = [("a", "b", "c"), ("1", "–", "–"), ("2", "3", "–")]
    assert known_columns(rows, "–") == [("a", "b"), ("1", "–"), ("2", "3")]
    assert known_columns(rows[:1], "–") == [()]
