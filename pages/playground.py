"""Playground page: chat with the loaded model, or send it many prompts at once."""

from __future__ import annotations

from itertools import pairwise

import streamlit as st

from mcp_core.views import ConversationView, WorkerView
from pages._ui import chat_export, frame, links, session, workbench
from pages._ui import format as fmt
from pages._ui.batch_box import batch_box
from pages._ui.chat import draw_conversation
from pages._ui.chat_effects import headline, reply_rows
from pages._ui.chat_settings import chat_settings
from pages._ui.chat_switches import switch_bar
from pages._ui.crowd_panel import crowd_panel
from pages._ui.job_panel import why_not_now
from pages._ui.race_panel import race_panel
from pages._ui.worker_card import no_worker, ready_worker

frame.require("playground")

# The other ways to talk to a worker, by the name of their tab.
_OTHER_WAYS = {"Race": race_panel, "Many users": crowd_panel, "Batch": batch_box}
_COLUMNS = {
    "Prompt": "Tokens of the whole prompt, the conversation so far included.",
    "Known": "Prompt tokens that the prefix cache had already.",
    "TTFT ms": fmt.definition("ttft_ms"),
    "Queue ms": "In the worker: from its arrival to its first step.",
    "Prefill ms": "In the worker: from its first step to its first token.",
    "Decode ms": "In the worker: from its first token to its last.",
    "TPOT ms": fmt.definition("tpot_ms"),
    "tok/s": fmt.definition("output_tok_s"),
    "Guesses kept %": "Speculation: share of the guessed tokens that the model would have written itself.",
}


def draw() -> None:
    """A worker, then one of the ways to talk to it."""
    st.title("Playground")
    worker = ready_worker()
    view = _conversation(worker)
    if worker is None:
        if view is not None:
            draw_conversation(view, markdown=False, random_text=False)
        no_worker("The playground")
        return
    mode, markdown, system = _toolbar(worker, view)
    if mode == "Chat":
        measured = why_not_now(worker)
        switch_bar(worker, busy=measured is not None or (view is not None and view.streaming))
        if measured is not None:
            st.caption(f":material/info: {frame.plain(measured)}")
        _chat(worker, view, markdown=markdown, system=system)
    else:
        _OTHER_WAYS[mode](worker)


def _conversation(worker: WorkerView | None) -> ConversationView | None:
    """The conversation of the link or of this visit, moved to the chosen worker; None before the first message."""
    cid = st.query_params.get("chat") or session.conversation_id()
    view = workbench.get_workbench().conversation(cid) if cid else None
    if view is None:
        _forget(gone=cid is not None)
        return None
    session.set_conversation_id(view.id)
    st.query_params["chat"] = view.id
    if worker is not None and view.worker_id != worker.id and not view.streaming:
        with frame.errors_shown():
            workbench.get_workbench().use_worker(view.id, worker.id)
    return view


def _forget(*, gone: bool) -> None:
    session.set_conversation_id(None)
    st.query_params.pop("chat", None)
    if gone:
        links.not_found(
            "That conversation is no longer there: the app was restarted.", "A new one begins with your message."
        )


def _toolbar(worker: WorkerView, view: ConversationView | None) -> tuple[str, bool, str]:
    """Mode, what is loaded, and the popovers; returns the mode, whether Markdown is drawn, the system prompt."""
    with st.container(horizontal=True, vertical_alignment="center"):
        mode = st.segmented_control(
            "Mode",
            ["Chat", *_OTHER_WAYS],
            default="Chat",
            required=True,
            label_visibility="collapsed",
            key="mode",
        )
        with st.popover("Settings", icon=":material/tune:"):
            system = chat_settings(view)
            markdown = st.toggle(
                "Render Markdown",
                key="markdown",
                persist_state="session",
                help="Off shows the model's text exactly as it came. Images are never fetched.",
            )
        if mode == "Chat" and view is not None and view.messages:
            _export(worker, view)
    st.caption(f"{worker.title} · {fmt.recipe_line(worker.recipe)} · on {worker.device}")
    if worker.random_weights:
        st.info("Random weights: the text is random. Speed and memory are true.", icon=":material/casino:")
    return str(mode), bool(markdown), system


def _export(worker: WorkerView, view: ConversationView) -> None:
    with st.popover("Export", icon=":material/download:"):
        st.download_button(
            "JSON",
            lambda: chat_export.as_json(view, worker.recipe),
            file_name="conversation.json",
            mime="application/json",
            on_click="ignore",
            width="stretch",
        )
        st.download_button(
            "Markdown",
            lambda: chat_export.as_markdown(view, worker.title),
            file_name="conversation.md",
            mime="text/markdown",
            on_click="ignore",
            width="stretch",
        )
    if st.button("Clear", icon=":material/delete_sweep:", disabled=view.streaming, key="clear-chat"):
        workbench.get_workbench().clear(view.id)
        st.rerun()


def _chat(worker: WorkerView, view: ConversationView | None, *, markdown: bool, system: str) -> None:
    if view is None or not any(message.role != "system" for message in view.messages):
        st.markdown("#### Say something to the model", anchors=False)
        st.caption("Try “What is the capital of France?”. Each reply shows its TTFT, TPOT and tokens/s.")
    else:
        draw_conversation(view, markdown=markdown, random_text=worker.random_weights)
        _context(view)
        _effects(view)
        _pace(view)
    streaming = view is not None and view.streaming
    text = st.chat_input(
        "Replying… stop it to write" if streaming else f"Message to {worker.title}",
        disabled=streaming,
        key="message",
    )
    if text:
        _send(worker, view, str(text), system)


def _send(worker: WorkerView, view: ConversationView | None, text: str, system: str) -> None:
    with frame.errors_shown():
        cid = view.id if view else workbench.get_workbench().new_conversation(worker.id, system)
        session.set_conversation_id(cid)
        st.query_params["chat"] = cid
        workbench.get_workbench().send(cid, text, session.sampling(), session.max_tokens())
        st.rerun()


def _context(view: ConversationView) -> None:
    """How full the context is, and what happened to what no longer fits."""
    used = _context_bar(view)
    if view.dropped:
        st.warning(
            f"The context is full: the oldest {fmt.count(view.dropped, 'message')} no longer fit and the model "
            "does not see them. Clear the conversation, or load with a larger max context on the Recipe page.",
            icon=":material/content_cut:",
        )
    if used == 1.0:
        st.caption("The last reply ended where the context did.")
    elif used > 0.8 and not view.dropped:
        st.caption("Nearly full. When it is, the oldest messages are left out and the page says which.")


def _context_bar(view: ConversationView) -> float:
    """Draw it and return the share in use; 0 without a bar while it is not known."""
    if view.context_tokens is None or not view.max_context:
        if view.max_context and not view.streaming:
            st.caption(f"Context: {view.max_context:,} tokens. How full it is shows when a reply is complete.")
        return 0.0
    used = min(1.0, view.context_tokens / view.max_context)
    st.progress(used, text=f"Context: {view.context_tokens:,} of {view.max_context:,} tokens")
    return used


def _effects(view: ConversationView) -> None:
    """What the switches changed for this chat, and every reply's figures on demand."""
    if view.streaming:
        return
    words, rows = headline(view.messages), reply_rows(view.messages)
    if words:
        st.info(words, icon=":material/compare_arrows:")
    if not rows:
        return
    with st.expander("Figures of every reply", icon=":material/table_rows:"):
        columns = {name: st.column_config.NumberColumn(format="%.0f", help=why) for name, why in _COLUMNS.items()}
        columns |= {
            name: st.column_config.NumberColumn(format="%.1f", help=_COLUMNS[name]) for name in ("TPOT ms", "tok/s")
        }
        st.dataframe(
            rows,
            hide_index=True,
            placeholder="–",
            column_config=columns,
            key="reply-figures",
            alt="A row a reply: what served it, and its figures.",
        )


def _pace(view: ConversationView) -> None:
    """The gaps between the last reply's chunks, on demand."""
    if view.streaming or len(view.trace) < 3:
        return
    with st.expander("Pace of the last reply", icon=":material/show_chart:"):
        gaps = [round(later - earlier, 2) for earlier, later in pairwise(view.trace)]
        st.echarts_chart(
            _pace_chart(gaps), height=180, key="pace", alt="Milliseconds between tokens of the last reply."
        )
        st.caption(f"First token after {fmt.ms(view.trace[0])}; each point is the gap before the next one.")


def _pace_chart(gaps: list[float]) -> dict[str, object]:
    return {
        "animation": False,
        "grid": {"left": 48, "right": 12, "top": 12, "bottom": 44},
        "tooltip": {"trigger": "axis"},
        "xAxis": {
            "type": "category",
            "data": [str(at) for at in range(2, len(gaps) + 2)],
            "name": "token",
            "nameLocation": "middle",
            "nameGap": 26,
        },
        "yAxis": {"type": "value", "min": 0, "name": "ms", "nameLocation": "middle", "nameGap": 36},
        "series": [{"type": "line", "data": gaps, "showSymbol": False, "step": "middle", "name": "ms"}],
    }


draw()
