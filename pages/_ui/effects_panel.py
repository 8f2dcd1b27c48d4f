"""The picture of what quantization does to this model: one bubble for each configuration that was measured.

This file does not know how Runs and Fidelities are matched (``mcp_core/decision/effects.py``).
"""

from __future__ import annotations

import streamlit as st

from mcp_core.decision.effects import Effect, Effects
from mcp_core.recipe import Recipe
from pages._ui import format as fmt
from pages._ui.quantization_charts import Bubble, effects_figure

__all__ = ["effects_panel"]


def effects_panel(recipe: Recipe, effects: Effects) -> None:
    """The bubbles and the same figures as a table; without any, what to do."""
    complete = effects.complete()
    if not complete:
        _empty(effects)
        return
    run = effects.of(recipe).run
    bubbles = [_bubble(effect, chosen=run is not None and effect.run == run) for effect in complete]
    st.plotly_chart(
        effects_figure(bubbles),
        config={"displayModeBar": False},
        key="effects-figure",
        alt="Peak memory against KL of each measured configuration; larger bubbles are faster.",
    )
    st.caption(
        f"Measured under {effects.workload_name}. Left and low is better; a larger bubble is more tokens a second. "
        "The chosen Recipe has a thick ring."
    )
    st.table(
        [_row(effect) for effect in sorted(complete, key=lambda each: each.kl or 0.0)],
        hide_index=True,
        border="horizontal",
        alt="The measured configurations, least loss first.",
    )
    if rest := len(effects.all()) - len(complete):
        st.caption(f"{fmt.count(rest, 'more configuration')} with speed but without fidelity on the same text.")


def _empty(effects: Effects) -> None:
    measured = len(effects.all())
    st.info(
        "A bubble appears for each configuration of this model whose speed and fidelity were measured here.",
        icon=":material/bubble_chart:",
    )
    if measured:
        st.caption(
            f"{fmt.count(measured, 'configuration')} with speed so far, none with fidelity: "
            "choose one and press Measure fidelity."
        )
    else:
        st.caption("Load the Recipe, measure its speed on the Measure page, and press Measure fidelity here.")


def _bubble(effect: Effect, *, chosen: bool) -> Bubble:
    assert effect.peak_bytes is not None, "complete"
    assert effect.kl is not None, "complete"
    assert effect.output_tok_s is not None, "complete"
    label = fmt.recipe_line(effect.recipe)
    return Bubble(label, effect.recipe.fingerprint, effect.peak_bytes, effect.kl, effect.output_tok_s, chosen)


def _row(effect: Effect) -> dict[str, str]:
    return {
        "Configuration": fmt.recipe_line(effect.recipe),
        "Weights": fmt.size(effect.weights_bytes),
        "Peak": fmt.size(effect.peak_bytes),
        "KL, nats": fmt.number(effect.kl),
        "TPOT": fmt.ms(effect.tpot_ms),
        "Throughput": fmt.rate(effect.output_tok_s),
    }
