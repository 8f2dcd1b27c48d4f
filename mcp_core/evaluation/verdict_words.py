"""How figures of a verdict read: a unit in every text. This file does not know what they are of."""

from __future__ import annotations

__all__ = ["ms", "number", "of", "percent", "size", "times"]


def of(part_ms: float, whole_ms: float) -> str:
    """A part of a time, with its share."""
    return f"{ms(part_ms)} of {ms(whole_ms)} ({percent(part_ms / whole_ms if whole_ms else 0.0)})"


def percent(share: float) -> str:
    """A share of 0..1."""
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def ms(value: float) -> str:
    """Milliseconds; from ten seconds on as seconds."""
    if value >= 10_000:
        return f"{value / 1000:,.1f} s"
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def number(value: float | None) -> str:
    """Two digits of a small one, all of a large one."""
    return "unknown" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def size(count: float) -> str:
    """Bytes, decimal units."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def times(ratio: float) -> str:
    """As "2.3 times"."""
    return f"{ratio:.1f} times" if ratio < 10 else f"{ratio:.0f} times"
