"""The chosen Recipe beside the same one unquantized: memory, speed, fidelity; measured, predicted or missing.

This file does not know how a figure was measured, and invents none.
"""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from mcp_core.decision.effects import Effect, Effects, baseline_of
from mcp_core.errors import McpError
from mcp_core.models.footprint import Footprint
from mcp_core.recipe import Recipe
from mcp_core.views import WorkerView
from pages._ui import format as fmt
from pages._ui import frame, session, workbench
from pages._ui.hub_token import current_token
from pages._ui.job_panel import ACTIVE, job_panel
from pages._ui.recipe_changes import compare

__all__ = ["before_after", "measured_words"]

_MISSING = "not measured"
_HELP = """Measured: from stored Runs and fidelity measurements of this model on this device. Predicted: arithmetic,
before loading.

- **Weights**: {weights_bytes}
- **Peak**: {peak_bytes}
- **TPOT**: {tpot_ms}
- **KL**: mean divergence of the next-token distribution from the reference's, nats; 0 is no loss.
- **Top-1 agreement**: share of positions whose likeliest next token is the reference's."""


@dataclass(frozen=True, slots=True)
class _Side:
    """One column: what was measured, and what is predicted where it was not."""

    effect: Effect
    footprint: Footprint | None


def before_after(recipe: Recipe, footprint: Footprint | None, effects: Effects) -> None:
    """A table of both, and one button for what is missing of the chosen Recipe."""
    st.markdown("##### What it costs and what it saves", anchors=False, help=_help())
    chosen = _Side(effects.of(recipe), footprint)
    if recipe.quantization.scheme == "none":
        st.table(_one_column(chosen), hide_index=True, border="horizontal", alt="What was measured of this Recipe.")
    else:
        plain = baseline_of(recipe)
        before = _Side(effects.of(plain), _predicted(plain))
        rows = _both(before, chosen)
        st.table(rows, hide_index=True, border="horizontal", alt="This Recipe beside the same one unquantized.")
        _doubts("Unquantized", before.effect)
    _doubts("This Recipe", chosen.effect)
    _notes(chosen.effect, effects)
    _measure_what_is_missing(recipe, chosen.effect)


def measured_words(effect: Effect) -> str:
    """ "Measured here: weights 120 MB, 55.9 ms a token, KL 0.187 nats."; empty where nothing was."""
    words = []
    if effect.weights_bytes is not None:
        words.append(f"weights {fmt.size(effect.weights_bytes)}")
    if effect.tpot_ms is not None:
        words.append(f"{fmt.ms(effect.tpot_ms)} a token")
    if effect.kl is not None:
        words.append(f"KL {fmt.number(effect.kl)} nats")
    return f"Measured here: {', '.join(words)}." if words else ""


def _help() -> str:
    names = ("weights_bytes", "peak_bytes", "tpot_ms")
    return _HELP.format(**{name: fmt.definition(name) or "" for name in names})


def _predicted(recipe: Recipe) -> Footprint | None:
    try:
        return workbench.get_workbench().footprint(recipe, current_token())
    except McpError:  # said where the chosen Recipe's own is drawn
        return None


@dataclass(frozen=True, slots=True)
class _Figure:
    """One row of one column. A change is told between two measured numbers or two predicted ones, never between."""

    name: str
    text: str
    measured: float | None = None
    predicted: float | None = None

    @classmethod
    def of_bytes(cls, name: str, measured: int | None, predicted: int | None) -> _Figure:
        told = _MISSING if predicted is None else f"{fmt.size(predicted)} predicted"
        return cls(name, told if measured is None else fmt.size(measured), measured, predicted)

    def change_from(self, before: _Figure) -> str:
        if before.measured and self.measured is not None:
            return f"{self.measured / before.measured - 1:+.0%}"
        if before.predicted and self.predicted is not None:
            return f"{self.predicted / before.predicted - 1:+.0%} predicted"
        return ""


def _both(before: _Side, after: _Side) -> list[dict[str, str]]:
    pairs = zip(_figures(before), _figures(after), strict=True)
    return [
        {"": new.name, "Unquantized": old.text, "This Recipe": new.text, "Change": new.change_from(old)}
        for old, new in pairs
    ]


def _one_column(side: _Side) -> list[dict[str, str]]:
    return [{"": figure.name, "This Recipe": figure.text} for figure in _figures(side)]


def _figures(side: _Side) -> list[_Figure]:
    effect, predicted = side.effect, side.footprint
    top1 = effect.fidelity.top1 if effect.fidelity else None
    speed = _MISSING if effect.tpot_ms is None else fmt.ms(effect.tpot_ms)
    return [
        _Figure.of_bytes("Weights", effect.weights_bytes, predicted.weights_bytes if predicted else None),
        _Figure.of_bytes("Peak", effect.peak_bytes, predicted.peak_bytes if predicted else None),
        _Figure("TPOT", speed, effect.tpot_ms),
        _Figure("KL", _kl_words(effect)),
        _Figure("Top-1 agreement", f"{top1.mean:.1%}" if top1 else _MISSING),
    ]


def _kl_words(effect: Effect) -> str:
    if effect.kl is None:
        return _MISSING
    error = effect.fidelity.kl.mean_se if effect.fidelity and effect.fidelity.kl else None
    if not error:
        return f"{fmt.number(effect.kl)} nats"
    return f"{fmt.number(effect.kl)} ± {'<0.0001' if error < 1e-4 else fmt.number(error)} nats"


def _doubts(column: str, effect: Effect) -> None:
    """What limits the worth of a column's speed: "noisy", "smoke test"."""
    if effect.run is not None and (doubts := fmt.run_notes(effect.run)):
        st.caption(f":material/warning: {column}, speed: {doubts}.")


def _notes(effect: Effect, effects: Effects) -> None:
    """Under which Workload, against what, and what limits the figures' worth."""
    notes = []
    if effect.run is not None and effects.workload_name:
        notes.append(f"Speed and memory under {effects.workload_name}, {fmt.ago(effect.run.created)}")
    if effect.fidelity is not None:
        notes += [f"KL against {effect.fidelity.reference}"] if effect.fidelity.reference else []
        notes += [effect.fidelity.reason] if effect.fidelity.reason else []
        notes += effect.fidelity.notes
    if notes:
        st.caption(frame.plain(". ".join(fmt.sentence(note.rstrip(".")) for note in notes) + "."))


def _measure_what_is_missing(recipe: Recipe, effect: Effect) -> None:
    running = _fidelity_job(recipe)
    if running:
        return
    with st.container(horizontal=True):
        if effect.fidelity is None and recipe.model.source != "shape":
            _judge_button(recipe)
        if effect.run is None:
            _speed_button(recipe)


def _fidelity_job(recipe: Recipe) -> bool:
    """The fidelity job of this Recipe while it is active, or why it failed; whether it is active."""
    job = workbench.get_workbench().studies.latest("fidelity", recipe)
    if job is None or job.state == "done":
        return False
    job_panel(job)
    return job.state in ACTIVE


def _judge_button(recipe: Recipe) -> None:
    if st.button(
        "Measure fidelity",
        icon=":material/compare:",
        help="Compares its predictions with the unquantized checkpoint's on the built-in texts.",
        key="judge",
    ):
        with frame.errors_shown():
            workbench.get_workbench().studies.start_fidelity(recipe, None, current_token())
            st.rerun()


def _speed_button(recipe: Recipe) -> None:
    """One click where the Recipe is loaded; else why not."""
    worker = _loaded(recipe)
    if worker is None:
        st.caption("Its speed can be measured once it is loaded.")
    elif st.button("Measure speed", icon=":material/speed:", help="Runs the chosen workload.", key="measure-speed"):
        with frame.errors_shown():
            job = workbench.get_workbench().start_bench(worker.id, session.workload())
            frame.go_to("measure", job=job)


def _loaded(recipe: Recipe) -> WorkerView | None:
    hardware = workbench.get_workbench().hardware()
    ready = (worker for worker in workbench.get_workbench().workers() if worker.state == "ready")
    return next((worker for worker in ready if not compare(worker.recipe, recipe, hardware)), None)
