"""One conversation as a page shows it: settled messages, the one being written, what each reply cost.

This file does not know how a reply is generated; the Workbench reads the stream and these functions draw it.
"""

from __future__ import annotations

import streamlit as st

from mcp_core.views import ConversationView, Message, ReplyStats
from pages._ui import format as fmt
from pages._ui import frame, session, workbench
from pages._ui.chat_effects import guess_words, known_words

__all__ = ["ROLE_ICONS", "draw_conversation", "reply_line", "show_text"]

ROLE_ICONS = {"user": ":material/person:", "assistant": ":material/smart_toy:"}
_FINISH = {
    "stop": "ended by itself",
    "length": "reached the token limit",
    "cancelled": "stopped by you",
    "error": "broke off",
}


def draw_conversation(view: ConversationView, *, markdown: bool, random_text: bool) -> None:
    """Every message; the last one redraws itself while it streams."""
    settled = view.messages[:-1] if view.streaming else view.messages
    for index, message in enumerate(settled):
        if message.role == "system":
            continue
        with st.chat_message(message.role, avatar=ROLE_ICONS[message.role]):
            _draw_message(message, markdown=markdown, random_text=random_text)
            last = index == len(view.messages) - 1
            _actions(view, index, message, last=last)
    if view.streaming:
        _stream(view.id, markdown=markdown, random_text=random_text)


def show_text(text: str, *, markdown: bool) -> None:
    """Model text as it is, line breaks kept; as Markdown on request, with nothing fetched."""
    if markdown:
        st.markdown(without_images(text))
    else:
        st.text(text)


def without_images(text: str) -> str:
    """Markdown in which no image is one: an invisible character parts every ``!`` from its ``[``.

    An image's address would be fetched by the browser, so a reply could report what was said.
    """
    return text.replace("![", "!\u200b[")


def reply_line(stats: ReplyStats, finish_reason: str | None) -> str:
    """ "TTFT 210 ms · TPOT 48 ms · 20.8 tok/s · 128 tokens · ended by itself"."""
    facts = [
        f"TTFT {fmt.ms(stats.ttft_ms)}",
        f"TPOT {fmt.ms(stats.tpot_ms)}",
        fmt.rate(stats.output_tok_s),
    ]
    if stats.output_tokens is not None:
        facts.append(fmt.count(stats.output_tokens, "token"))
    facts += filter(None, (known_words(stats), guess_words(stats)))
    if finish_reason is not None:
        facts.append(_FINISH.get(finish_reason, finish_reason))
    return " · ".join(facts)


def reply_help() -> str:
    """What the figures under a reply mean."""
    names = {"TTFT": "ttft_ms", "TPOT": "tpot_ms", "tok/s": "output_tok_s"}
    meanings = {label: fmt.definition(name) for label, name in names.items()}
    return "\n\n".join(f"**{label}** {meaning}" for label, meaning in meanings.items() if meaning)


@st.fragment(run_every=0.2)
def _stream(cid: str, *, markdown: bool, random_text: bool) -> None:
    """The message being written, five times a second; the page is drawn anew when it is complete."""
    view = workbench.get_workbench().conversation(cid)
    if view is None or not view.streaming:
        st.rerun()
    with st.chat_message("assistant", avatar=ROLE_ICONS["assistant"]):
        message = view.messages[-1]
        if message.role == "assistant" and message.content:
            show_text(message.content + " ▌", markdown=markdown)
        else:
            st.caption("Reading the prompt…")
        with st.container(horizontal=True, vertical_alignment="center"):
            if st.button("Stop", key="stop-reply", icon=":material/stop_circle:"):
                workbench.get_workbench().stop(cid)
                st.rerun()
            st.caption(_pace(view) + (" · random text" if random_text else ""), width="content")


def _pace(view: ConversationView) -> str:
    """How fast the reply comes, from the chunks so far."""
    if len(view.trace) < 2:
        return ""
    span_ms = view.trace[-1] - view.trace[0]
    speed = f"{fmt.rate(1000 * (len(view.trace) - 1) / span_ms)} · " if span_ms > 0 else ""
    return f"{speed}{fmt.count(len(view.trace), 'token')} so far"


def _draw_message(message: Message, *, markdown: bool, random_text: bool) -> None:
    if message.content:
        show_text(message.content, markdown=markdown and message.role == "assistant")
    if message.failure is not None:
        frame.show_error(message.failure)
        if message.content:
            st.caption("What came so far is kept. Regenerate tries again.")
    if message.stats is not None:
        note = " · random text" if random_text else ""
        st.caption(reply_line(message.stats, message.finish_reason) + note, help=reply_help())
    elif message.role == "assistant" and message.finish_reason is not None and message.failure is None:
        st.caption(_FINISH.get(message.finish_reason, message.finish_reason))


def _actions(view: ConversationView, index: int, message: Message, *, last: bool) -> None:
    """Edit a question, regenerate the last answer; neither while a reply streams."""
    if view.streaming:
        return
    if message.role == "user":
        with st.popover("Edit", icon=":material/edit:", type="tertiary", key=f"edit-{view.id}-{index}"):
            text = st.text_area("Message", message.content, key=f"edit-text-{view.id}-{index}", height=140)
            st.caption("Everything after this message is replaced.")
            if st.button("Send again", type="primary", key=f"edit-send-{view.id}-{index}") and text:
                with frame.errors_shown():
                    workbench.get_workbench().edit(view.id, index, text, session.sampling(), session.max_tokens())
                    st.rerun()
    elif last and st.button("Regenerate", icon=":material/refresh:", type="tertiary", key="regenerate"):
        with frame.errors_shown():
            workbench.get_workbench().regenerate(view.id, session.sampling(), session.max_tokens())
            st.rerun()
