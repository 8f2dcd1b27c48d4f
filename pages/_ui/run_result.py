"""The Run that just ended: the answer in one sentence, its figures, and what limits its worth.

This file does not know where the Run comes from; ``run_detail.py`` shows all that is stored of one.
"""

from __future__ import annotations

import shlex

import streamlit as st

from mcp_core.results import Memory, Run
from pages._ui import format as fmt
from pages._ui import frame
from pages._ui.run_detail import draw_counts, draw_headline, draw_latencies, draw_worth

__all__ = ["bench_command", "headline", "memory_words", "run_result"]


def run_result(run: Run) -> None:
    """Draw it; a Run without figures says why."""
    if run.status == "cancelled":
        st.info("The measurement was cancelled.", icon=":material/info:")
    elif run.failure is not None:
        frame.show_error(run.failure)
    if run.measurement is not None:
        st.markdown(f"#### {headline(run)}", anchors=False)
        draw_counts(run.measurement)
        draw_headline(run)
        if run.memory is not None:
            st.caption(memory_words(run.memory))
        draw_latencies(run.measurement)
    elif run.failure is None:
        st.info(f"Nothing was measured: {run.status}.", icon=":material/info:")
    draw_worth(run)


def headline(run: Run) -> str:
    """The answer in one sentence. ``run`` has a measurement."""
    measured = run.measurement
    assert measured is not None
    return (
        f"{fmt.rate(measured.output_tok_s)} with {run.load_words}: the first token "
        f"after {fmt.ms(measured.ttft_ms.p50)}, then one every {fmt.ms(measured.tpot_ms.p50)} (p50)"
    )


def memory_words(memory: Memory) -> str:
    """Peak memory against what the worker holds without a model, and the weights in it."""
    return (
        f"Peak memory {fmt.size(memory.peak_bytes)}, of which {fmt.size(memory.weights_bytes)} weights; "
        f"baseline before loading {fmt.size(memory.baseline_bytes)}, not counted in it."
    )


def bench_command(recipe_file: str, workload: str, out: str = "run.json") -> str:
    """The same measurement from a shell; ``workload`` is a file or a preset's name."""
    return shlex.join(["mcp-core", "bench", recipe_file, workload, "--out", out])
