"""What a link asks for by its query parameters, and the one line that says when that is not here.

A link is kept, sent and opened elsewhere, so what it names may be gone, or never have been on this machine. This
file does not know what a page shows: the page says how a thing is found, and what is shown in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import streamlit as st

from pages._ui.frame import plain

__all__ = ["asked", "not_found"]

T = TypeVar("T")

# A link may be of any length; the beginning of what it names says which one is meant.
_MOST_SHOWN = 80


def asked(name: str, find: Callable[[str], T | None], problem: str, instead: str) -> T | None:
    """What ``?name=`` asks for; None where it asks for nothing, or for what ``find`` does not know.

    Then one line says so: ``problem``, in which {} is what was asked for, and ``instead``, what the page shows.
    """
    value = st.query_params.get(name)
    if not value:
        return None
    found = find(value)
    if found is None:
        shown = value if len(value) <= _MOST_SHOWN else f"{value[:_MOST_SHOWN]}…"
        not_found(problem.format(shown), instead)
    return found


def not_found(problem: str, instead: str) -> None:
    """The line itself, of two sentences."""
    st.warning(plain(f"{problem} {instead}"), icon=":material/link_off:")
