"""Tags and the note of one Run: shown, and edited in a form.

This file does not know what was measured.
"""

from __future__ import annotations

import streamlit as st

from mcp_core.decision.remarks import NOTE_LETTERS, TAG_LETTERS, Remarks
from pages._ui import frame, session, workbench

__all__ = ["draw"]


def draw(run_id: str) -> None:
    """Badges, the note, and the form behind a button."""
    with frame.errors_shown():
        everyones = workbench.get_workbench().decisions.remarks()
        found = everyones.get(run_id, Remarks())
        with st.container(horizontal=True, vertical_alignment="center"):
            for tag in found.tags:
                st.badge(frame.plain(tag), icon=":material/label:")
            with st.popover("Tags and note", icon=":material/edit_note:", width="content"):
                _draw_form(run_id, found, sorted({tag for each in everyones.values() for tag in each.tags}))
        if found.note:
            # Two blanks end a line in Markdown.
            st.caption(frame.plain(found.note).replace("\n", "  \n"))


def _draw_form(run_id: str, found: Remarks, known: list[str]) -> None:
    with st.form(f"remarks-{run_id}", border=False, enter_to_submit=False):
        tags = st.multiselect(
            "Tags",
            known,
            default=found.tags,
            accept_new_options=True,
            placeholder="Choose, or type a new one",
            help=f"To find Runs by. Up to {TAG_LETTERS} letters each, no comma.",
            key=f"tags-{run_id}",
        )
        note = st.text_area(
            "Note",
            found.note,
            max_chars=NOTE_LETTERS,
            help="What the figures do not say: why it was measured, what to make of it.",
            key=f"note-{run_id}",
        )
        submitted = st.form_submit_button("Save", type="primary")
    drawn = session.drawn_remarks()
    session.set_drawn_remarks(run_id, found)
    if submitted:
        _save(run_id, drawn[1] if drawn and drawn[0] == run_id else found, tags, note)


def _save(run_id: str, drawn: Remarks, tags: list[str], note: str) -> None:
    """Only what was edited, against what was drawn: another may have changed the rest meanwhile."""
    with frame.errors_shown():
        workbench.get_workbench().decisions.remark(
            run_id,
            tags if set(tags) != set(drawn.tags) else None,
            note if note != drawn.note else None,
        )
        st.toast("Tags and note were saved.")
        st.rerun()
