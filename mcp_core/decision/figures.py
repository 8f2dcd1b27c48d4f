"""Figures: a measured number as reports and terminals write it, and columns of which anything is known.

This file does not know what a number means, or units; pages have rules of their own (``pages/_ui/format.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

__all__ = ["figure", "known_columns"]

# From here on four digits would cut a whole number short.
_WHOLE = 999.95


def figure(value: float | None, *, lacking: str = "-", digits: int = 4) -> str:
    """So many digits, from 1,000 on whole with its thousands set apart, never as a power of ten; ``lacking`` for
    what was not measured."""
    if value is None:
        return lacking
    return f"{value:,.0f}" if abs(value) >= _WHOLE else format(Decimal(f"{value:.{digits}g}"), ",f")


def known_columns(rows: Sequence[Sequence[str]], lacking: str) -> list[tuple[str, ...]]:
    """Without columns of which nothing is known, as a cost without a price; the first row is the heading."""
    heading, *others = rows
    kept = [column for column in range(len(heading)) if any(row[column] != lacking for row in others)]
    return [tuple(row[column] for column in kept) for row in rows]
