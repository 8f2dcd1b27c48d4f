"""Settings of the chat: system prompt, sampling, length. Changing one does not interrupt a reply.

This file does not know what they do to the next token (``mcp_core/inference/sampling.py``).
"""

from __future__ import annotations

import streamlit as st

from mcp_core.generation import Sampling
from mcp_core.views import ConversationView
from pages._ui import frame, session, workbench

__all__ = ["chat_settings"]


def chat_settings(view: ConversationView | None) -> str:
    """Draw them, keep them for this visit, and return the system prompt."""
    system = st.text_area(
        "System prompt",
        value=_system_of(view),
        placeholder="none: the model's chat template may add its own",
        height=100,
        key=f"system-{view.id if view else 'new'}",
        help="Sent before every conversation. A change holds from the next reply on.",
    )
    session.set_sampling(_sampling(session.sampling()))
    session.set_max_tokens(_integer("Longest reply, tokens", session.max_tokens(), 1, "max-tokens"))
    if view is not None and (system or "") != _system_of(view):
        with frame.errors_shown():
            workbench.get_workbench().set_system(view.id, system or "")
    return system or ""


def _sampling(now: Sampling) -> Sampling:
    temperature = st.slider(
        "Temperature",
        0.0,
        2.0,
        now.temperature,
        0.05,
        help="0 always takes the most likely token.",
        key="temperature",
    )
    greedy = temperature == 0
    left, right = st.columns(2)
    with left:
        top_p = _fraction("Top-p", now.top_p, "Keeps the most likely tokens that add up to this.", greedy, "top-p")
        min_p = _fraction(
            "Min-p", now.min_p, "Drops tokens below this share of the best one; 0 is off.", greedy, "min-p"
        )
    with right:
        top_k = _integer("Top-k", now.top_k, 0, "top-k", "Keeps this many tokens; 0 is off.", disabled=greedy)
        penalty = st.number_input(
            "Repetition penalty",
            min_value=0.1,
            max_value=5.0,
            value=now.repetition_penalty,
            step=0.05,
            help="Above 1 makes tokens that were already used less likely.",
            key="repetition-penalty",
        )
    seed = st.number_input(
        "Seed",
        min_value=0,
        value=now.seed,
        step=1,
        placeholder="random",
        disabled=greedy,
        help="The same seed, prompt and Recipe give the same text.",
        key="seed",
    )
    return Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=float(penalty or 1.0),
        seed=None if seed is None else int(seed),
    )


def _fraction(label: str, value: float, meaning: str, disabled: bool, key: str) -> float:
    number = st.number_input(label, 0.0, 1.0, value, 0.05, help=meaning, disabled=disabled, key=key)
    return value if number is None else float(number)


def _integer(
    label: str, value: int, least: int, key: str, meaning: str | None = None, *, disabled: bool = False
) -> int:
    number = st.number_input(label, min_value=least, value=value, step=1, help=meaning, disabled=disabled, key=key)
    return value if number is None else int(number)


def _system_of(view: ConversationView | None) -> str:
    return next((message.content for message in view.messages if message.role == "system"), "") if view else ""
