"""The models kept on this machine: prepared ones and the Hub's cache, with sizes and delete.

This file does not know how a model got there.
"""

from __future__ import annotations

import streamlit as st

from mcp_core.models.prepared import PreparedModel
from pages._ui import format as fmt
from pages._ui import frame, workbench

__all__ = ["model_shelf"]

_KINDS = {"prepared": "prepared from GGUF", "hub": "Hub cache"}


def model_shelf() -> None:
    """One line a model with its size; deleting asks first."""
    with frame.errors_shown():
        models = workbench.get_workbench().prepared_models()
        if not models:
            st.caption("Nothing yet. A GGUF is prepared, and a Hub model downloaded, at its first load.")
            return
        total = sum(model.bytes for model in models)
        st.caption(f"{fmt.count(len(models), 'model')}, {fmt.size(total)} on disk.")
        for model in models:
            _line(model)


def _line(model: PreparedModel) -> None:
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute", border=True):
        with st.container(gap=None, width="content"):
            st.markdown(f"**{model.title}** · {fmt.size(model.bytes)}")
            st.caption(f"{_KINDS[model.kind]} · {fmt.ago(model.created)}")
        with st.popover("Delete", icon=":material/delete:", type="tertiary", key=f"delete-{model.id}"):
            st.markdown(f"Delete **{model.title}** and free {fmt.size(model.bytes)}?")
            st.caption(_consequence(model))
            if st.button("Delete", type="primary", key=f"delete-sure-{model.id}"):
                with frame.errors_shown():
                    workbench.get_workbench().delete_model(model.id)
                    st.rerun()


def _consequence(model: PreparedModel) -> str:
    if model.kind == "hub":
        return "Its next load downloads it again."
    return "The GGUF file itself stays; the next load prepares it again."
