"""What a Recipe does to whole replies and answers: length drift and the task check, each with its start and result.

This file does not know how either is measured (``mcp_core/evaluation/length_drift.py``, ``task_check.py``).
"""

from __future__ import annotations

import json

import streamlit as st

from mcp_core.evaluation.length_drift import LengthDrift, ReplyPair
from mcp_core.evaluation.paired import Interval
from mcp_core.evaluation.task_check import AnsweredItem, TaskCheck, TaskItem, read_items
from mcp_core.recipe import Recipe
from mcp_core.views import JobView
from pages._ui import format as fmt
from pages._ui import frame, workbench
from pages._ui.hub_token import current_token
from pages._ui.job_panel import ACTIVE, job_panel

__all__ = ["drift_check", "drift_result", "task_check", "task_result"]


def drift_check(recipe: Recipe) -> None:
    """Start it, follow it, show the newest of this Recipe."""
    st.markdown(
        "The same prompts, answered greedily by both until they stop by themselves: does this Recipe say more?"
    )
    limit = st.number_input(
        "Limit of a reply, tokens", min_value=16, max_value=4096, value=256, step=16, key="drift-limit"
    )
    job = workbench.get_workbench().studies.latest("length-drift", recipe)
    if _start_button("Compare reply lengths", "start-drift", recipe, job):
        with frame.errors_shown():
            workbench.get_workbench().studies.start_length_drift(recipe, None, int(limit), current_token())
            st.rerun()
    result = _followed(job)
    if result is not None:
        drift_result(LengthDrift.model_validate(result))
    elif job is None:
        st.caption("Not measured yet for this Recipe. Sixteen prompts take a few minutes on a CPU.")


def task_check(recipe: Recipe) -> None:
    """As ``drift_check``, with the built-in items or the user's own."""
    st.markdown("Multiple-choice questions, answered by the likelihood of each choice: which answers flip?")
    own = st.file_uploader(
        "Own items (optional)",
        type=["jsonl"],
        key="task-items",
        help='A line an item: {"question": "...", "choices": ["...", "..."], "answer": 0}. '
        "Without a file: sixty easy questions.",
    )
    job = workbench.get_workbench().studies.latest("task-check", recipe)
    if _start_button("Compare answers", "start-tasks", recipe, job):
        with frame.errors_shown():
            items: tuple[TaskItem, ...] | None = read_items(own.name, own.getvalue()) if own else None
            name = own.name if own else None
            workbench.get_workbench().studies.start_task_check(recipe, name, items, current_token())
            st.rerun()
    result = _followed(job)
    if result is not None:
        task_result(TaskCheck.model_validate(result))
    elif job is None:
        st.caption("Not measured yet for this Recipe. Sixty items take a few minutes on a CPU.")


def drift_result(drift: LengthDrift) -> None:
    """Ratio with its interval, capped shares, and where each pair of replies parts."""
    st.markdown(f"#### {_capital(drift.verdict)}", anchors=False)
    figures = (
        ("Length ratio", _value(drift.ratio), "This Recipe's output tokens over the reference's. 1 is no change."),
        (
            "Reached the limit",
            f"{drift.candidate_capped:.0%} vs {drift.reference_capped:.0%}",
            f"Share of replies still going at {drift.max_tokens} tokens, this Recipe's and the reference's: "
            "how long they would have become is not known.",
        ),
        ("Same text", f"{drift.identical:.0%}", "Share of prompts that both answered with the same words."),
    )
    _cards(figures)
    count = fmt.count(len(drift.pairs), "prompt")
    st.caption(
        f"Length ratio: 95 % interval {_ends(drift.ratio)}, by bootstrap over {count} · "
        f"reference: {frame.plain(drift.reference)} · this Recipe: {frame.plain(drift.candidate)}"
    )
    st.dataframe(
        [_pair_row(pair) for pair in drift.pairs],
        hide_index=True,
        placeholder="–",
        key="drift-pairs",
        alt="Each prompt with both replies' lengths and where they part.",
    )
    _download("length-drift.json", drift.model_dump(mode="json"))
    with st.expander("Read the replies", icon=":material/forum:"):
        at = st.selectbox(
            "Prompt", range(len(drift.pairs)), format_func=lambda i: drift.pairs[i].prompt, key="drift-at"
        )
        _both_replies(drift.pairs[at])


def task_result(check: TaskCheck) -> None:
    """Accuracies, flips with their interval and test, and the flipped items."""
    st.markdown(
        f"#### {check.lost} lost, {check.won} won of {len(check.items)}: {_task_verdict(check)}", anchors=False
    )
    _cards(
        (
            ("This Recipe", f"{check.candidate_accuracy:.1%}", f"Share right; guessing gets {check.chance:.0%}."),
            ("Reference", f"{check.reference_accuracy:.1%}", "The same model in its native dtype."),
            (
                "Difference",
                f"{100 * check.difference.value:+.1f} points",
                "This Recipe's share minus the reference's.",
            ),
            ("p", fmt.number(check.p), "Exact McNemar test: how likely so uneven flips are by chance."),
        )
    )
    flips = [each for each in check.items if each.flip]
    if flips:
        st.table(
            [_flip_row(each) for each in flips], hide_index=True, border="horizontal", alt="Items that flipped."
        )
    st.caption(
        f"{frame.plain(check.name)} · difference: 95 % interval {_ends(check.difference, 100)} points, by "
        f"bootstrap over {fmt.count(len(check.items), 'item')} · so few items show large losses only"
    )
    _download("task-check.json", check.model_dump(mode="json"))


def _start_button(label: str, key: str, recipe: Recipe, job: JobView | None) -> bool:
    active = job is not None and job.state in ACTIVE
    random = recipe.model.source == "shape"
    clicked = st.button(label, icon=":material/play_arrow:", disabled=active or random, key=key)
    if random:
        st.caption(":material/info: This model has random weights: what it says means nothing.")
    return clicked


def _followed(job: JobView | None) -> dict[str, object] | None:
    """The job's answer; else its progress, or why there is none."""
    if job is None:
        return None
    if job.state == "done" and job.result is not None:
        return job.result
    job_panel(job)
    return None


def _cards(figures: tuple[tuple[str, str, str], ...]) -> None:
    with st.container(horizontal=True):
        for label, value, meaning in figures:
            st.metric(label, value, help=meaning, border=True, width=170)


def _value(interval: Interval | None) -> str:
    return fmt.NOT_MEASURED if interval is None else f"{interval.value:.2f}"


def _ends(interval: Interval | None, scale: float = 1) -> str:
    if interval is None or interval.low is None or interval.high is None:
        return "not known"
    digits = 2 if scale == 1 else 1
    return f"{scale * interval.low:.{digits}f} to {scale * interval.high:.{digits}f}"


def _task_verdict(check: TaskCheck) -> str:
    low, high = check.difference.low, check.difference.high
    if low is None or high is None or (low <= 0 <= high):
        return "no difference was found"
    return "this Recipe answers better" if low > 0 else "this Recipe answers worse"


def _pair_row(pair: ReplyPair) -> dict[str, object]:
    return {
        "Prompt": pair.prompt,
        "Reference, tokens": pair.reference.tokens,
        "This Recipe, tokens": pair.candidate.tokens,
        "Parts at word": None if pair.diverges_at is None else pair.diverges_at + 1,
        "Limit": " and ".join(
            name for name, reply in (("reference", pair.reference), ("this Recipe", pair.candidate)) if reply.capped
        ),
    }


def _both_replies(pair: ReplyPair) -> None:
    """Both texts, the first word that differs in bold."""
    sides = (("Reference", pair.reference.text), ("This Recipe", pair.candidate.text))
    for column, (name, text) in zip(st.columns(2), sides, strict=True):
        column.caption(name)
        column.markdown(_with_fork(text, pair.diverges_at))


def _with_fork(text: str, at: int | None) -> str:
    words = text.split()
    shown = [frame.plain(word) for word in words]
    if at is not None and at < len(words):
        shown[at] = f"**:orange[{shown[at]}]**"
    return " ".join(shown) or "(nothing)"


def _flip_row(answered: AnsweredItem) -> dict[str, str]:
    item = answered.item
    return {
        "": "lost" if answered.flip == "lost" else "won",
        "Item": frame.plain(item.context.strip()),
        "Right": frame.plain(item.choices[item.answer]),
        "Reference": frame.plain(item.choices[answered.reference]),
        "This Recipe": frame.plain(item.choices[answered.candidate]),
    }


def _download(name: str, document: object) -> None:
    st.download_button(
        "JSON",
        json.dumps(document, indent=2, ensure_ascii=False) + "\n",
        file_name=name,
        mime="application/json",
        on_click="ignore",
        icon=":material/download:",
        key=f"download-{name}",
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
