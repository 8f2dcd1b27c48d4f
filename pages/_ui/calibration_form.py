"""Which text calibrates a static scheme, and how much of it: three fields of the Recipe, and a text added here.

This file does not know what calibration finds (``calibration_panel.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import streamlit as st

from mcp_core.recipe import Calibration
from mcp_core.texts import BUILTIN
from pages._ui import format as fmt
from pages._ui import frame, workbench
from pages._ui.recipe_options import describe, label_of

__all__ = ["add_text", "calibration_form"]

Key = Callable[[str], str]

_BUILTIN_TITLE = "Built-in: Jane Austen, Emma (English prose)"
MOST_MB = 20


def calibration_form(calibration: Calibration, key: Key) -> Calibration:
    """Draw text, samples and tokens; return what they say."""
    text = _text(calibration, key)
    left, right = st.columns(2)
    samples = left.number_input(
        label_of("quantization.calibration.samples"),
        min_value=1,
        max_value=4096,
        value=calibration.samples,
        help=describe("quantization.calibration.samples"),
        key=key("quantization.calibration.samples"),
    )
    tokens = right.number_input(
        label_of("quantization.calibration.tokens"),
        min_value=16,
        max_value=8192,
        value=calibration.tokens,
        step=16,
        help=describe("quantization.calibration.tokens"),
        key=key("quantization.calibration.tokens"),
    )
    return Calibration(text=text, samples=int(samples), tokens=int(tokens))


def add_text(key: str) -> str | None:
    """Upload a file or paste text, and keep it; its hash once it was added in this run."""
    uploaded = st.file_uploader(
        "Text file",
        type=["txt", "jsonl", "csv"],
        key=f"{key}-file",
        max_upload_size=MOST_MB,
        help=".txt is cut into passages of about 500 tokens; .jsonl and .csv have a document a row.",
    )
    pasted = st.text_area("or paste text", key=f"{key}-pasted", height=120)
    content = uploaded.getvalue() if uploaded is not None else (pasted or "").encode()
    # Never disabled: pasted text reaches the server only when its box is left, so the first click would be lost.
    if not st.button("Add this text", key=f"{key}-add"):
        return None
    if not content.strip():
        st.warning("Choose a file or paste some text first.", icon=":material/edit:")
        return None
    name = uploaded.name if uploaded is not None else f"pasted {datetime.now(UTC):%Y-%m-%d %H.%M.%S}.txt"
    with frame.errors_shown():
        kept = workbench.get_workbench().studies.add_text(name, content)
        st.toast(f"Added {kept.name}: {fmt.count(len(kept.documents), 'document')}.")
        return kept.sha256
    return None


def _text(calibration: Calibration, key: Key) -> str:
    titles = {BUILTIN: _BUILTIN_TITLE}
    with frame.errors_shown():
        stored = workbench.get_workbench().studies.texts()
        titles |= {each.sha256: f"{each.name} · {fmt.count(each.documents, 'document')}" for each in stored}
    names = list(dict.fromkeys((*titles, calibration.text)))  # a Recipe may name a text that is not here
    return st.selectbox(
        label_of("quantization.calibration.text"),
        names,
        index=names.index(calibration.text),
        format_func=lambda each: titles.get(each, f"{each[:12]}… (not on this machine)"),
        help=describe("quantization.calibration.text"),
        key=key("quantization.calibration.text"),
    )
