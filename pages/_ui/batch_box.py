"""The batch box: many prompts at once, one row a prompt, totals over all.

This file does not know how requests are sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from mcp_core.views import BatchItemView, WorkerView
from pages._ui import format as fmt
from pages._ui import frame, session, workbench

__all__ = ["batch_box", "batch_csv", "batch_totals", "prompts_of"]

_FROM_START = "Counted from the start of the batch, waiting included."
_ENDED = ("ok", "failed", "cancelled")
_EXAMPLE = "The capital of France is\nWrite a haiku about rain\nWhat is 17 + 25?"


def batch_box(worker: WorkerView) -> None:
    """Prompts in, table out; the table redraws itself while the batch runs."""
    prompts = _prompts()
    running = _running(session.batch_id())
    with st.container(horizontal=True, vertical_alignment="bottom"):
        limit = st.number_input("Longest reply, tokens", 1, 100_000, 64, key="batch-max-tokens", width=200)
        pressed = st.button(
            f"Run {fmt.count(len(prompts), 'prompt')}" if prompts else "Run",
            type="primary",
            icon=":material/play_arrow:",
            disabled=running or not prompts,
            key="batch-run",
        )
    if not prompts:
        st.caption("Write at least one prompt.")
    elif worker.recipe.batching.mode == "off":
        st.caption("All are sent at once. This worker answers one at a time (batching off); the others wait.")
    if pressed:
        _start(worker, prompts, int(limit or 64))
    bid = session.batch_id()
    if bid and _running(bid):
        _follow(bid)
    elif bid:
        _table(workbench.get_workbench().batch(bid))


def prompts_of(text: str) -> tuple[str, ...]:
    """One prompt a line, empty lines left out."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def batch_totals(items: Sequence[BatchItemView]) -> tuple[float, int, float | None] | None:
    """(wall time s, output tokens, tokens/s over all), None before anything ended.

    All prompts are sent at once, so the longest E2E is the wall time.
    """
    done = [item.stats for item in items if item.stats is not None and item.stats.e2e_ms is not None]
    if not done:
        return None
    wall_s = max(stats.e2e_ms or 0.0 for stats in done) / 1000
    tokens = sum(stats.output_tokens or 0 for stats in done)
    return wall_s, tokens, tokens / wall_s if wall_s > 0 else None


def batch_csv(items: Sequence[BatchItemView]) -> str:
    """The table as CSV, a row a prompt."""
    import csv
    import io

    out = io.StringIO()
    rows = [_row(item) for item in items]
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _prompts() -> tuple[str, ...]:
    text = st.text_area("Prompts, one per line", _EXAMPLE, height=140, key="batch-prompts", persist_state="session")
    uploaded = st.file_uploader("or a text file", type="txt", key="batch-file", max_upload_size=1)
    if uploaded is None:
        return prompts_of(text or "")
    return prompts_of(uploaded.getvalue().decode("utf-8", errors="replace"))


def _start(worker: WorkerView, prompts: tuple[str, ...], max_tokens: int) -> None:
    with frame.errors_shown():
        bid = workbench.get_workbench().start_batch(worker.id, prompts, session.sampling(), max_tokens)
        session.set_batch_id(bid)
        st.rerun()


def _running(bid: str | None) -> bool:
    items = workbench.get_workbench().batch(bid) if bid else ()
    return any(item.state not in _ENDED for item in items)


@st.fragment(run_every=0.5)
def _follow(bid: str) -> None:
    """Redrawn twice a second, only while prompts wait or run."""
    if not _running(bid):
        st.rerun()
    items = workbench.get_workbench().batch(bid)
    ended = sum(item.state in _ENDED for item in items)
    st.progress(ended / len(items), text=f"{ended} of {fmt.count(len(items), 'prompt')} ended")
    if st.button("Stop", key="batch-stop", icon=":material/stop_circle:"):
        workbench.get_workbench().stop_batch(bid)
        st.rerun()
    _rows(items)


def _table(items: Sequence[BatchItemView]) -> None:
    if not items:
        return
    totals = batch_totals(items)
    if totals is not None:
        wall_s, tokens, speed = totals
        words = f"**{fmt.count(tokens, 'token')} in {fmt.duration(wall_s)}: {fmt.rate(speed)} over all prompts.**"
        st.markdown(words + _not_ok(items))
    _rows(items)
    for item in items:
        if item.failure is not None:
            frame.show_error(item.failure)
            break
    st.download_button(
        "Download CSV",
        batch_csv(items),
        file_name="batch.csv",
        mime="text/csv",
        on_click="ignore",
        icon=":material/download:",
    )


def _not_ok(items: Sequence[BatchItemView]) -> str:
    """ " 1 failed. 2 stopped.", empty when every prompt was answered."""
    words = {"failed": "failed", "cancelled": "stopped"}
    counts = {word: sum(item.state == state for item in items) for state, word in words.items()}
    return "".join(f" {count} {word}." for word, count in counts.items() if count)


def _rows(items: Sequence[BatchItemView]) -> None:
    st.dataframe(
        [_row(item) for item in items],
        hide_index=True,
        column_config={
            "Prompt": st.column_config.TextColumn(width=200),
            "Reply": st.column_config.TextColumn(width="large"),
            "TTFT ms": st.column_config.NumberColumn(format="%.0f", help=_FROM_START),
            "E2E ms": st.column_config.NumberColumn(format="%.0f", help=_FROM_START),
            "tok/s": st.column_config.NumberColumn(format="%.1f", help="Tokens over E2E."),
        },
        placeholder="",
        key="batch-table",
        alt="One row a prompt with its reply and latencies.",
    )


def _row(item: BatchItemView) -> dict[str, Any]:
    stats = item.stats
    return {
        "Prompt": item.prompt,
        "State": _state(item),
        "Tokens": stats.output_tokens if stats else None,
        "TTFT ms": stats.ttft_ms if stats else None,
        "E2E ms": stats.e2e_ms if stats else None,
        "tok/s": stats.output_tok_s if stats else None,
        "Reply": item.failure.message if item.failure and not item.text else item.text,
    }


def _state(item: BatchItemView) -> str:
    """What a reader calls it: a prompt that was sent waits until its first token comes."""
    if item.state == "running" and item.stats is None:
        return "waiting"
    return "stopped" if item.state == "cancelled" else item.state
