"""The race: one prompt on two Recipes, each measured by itself, then both replayed beside each other in real time.

This file does not know how a stream is measured (``mcp_core/races.py``).
"""

from __future__ import annotations

import time

import streamlit as st

from mcp_core.decision.effects import Effects
from mcp_core.errors import McpError
from mcp_core.race import ENDED, Lane, RaceView, replay
from mcp_core.recipe import Quantization, Recipe
from mcp_core.results import Fidelity
from mcp_core.views import WorkerView
from pages._ui import format as fmt
from pages._ui import frame, session, workbench
from pages._ui.chat import reply_help, show_text
from pages._ui.chat_effects import known_words, switch_words
from pages._ui.hub_token import current_token
from pages._ui.job_panel import draw_progress, why_not_now
from pages._ui.recipe_options import choices_of, options_of

__all__ = ["race_panel", "verdict"]

_PROMPT = "Explain in five sentences why the sky is blue."
_REPLAY_EVERY_S = 0.15
_NAMES = ("A", "B")
_STATES = {
    "waiting": "waits for its turn",
    "warm-up": "is warmed up",
    "measuring": "is measured",
    "ok": "measured",
    "failed": "failed",
    "cancelled": "stopped",
}


def race_panel(worker: WorkerView) -> None:
    """Who races on what, then the race."""
    st.caption(
        "Each is measured by itself while the other is idle; then both streams are replayed at the pace at which "
        "they came. A race writes no Run."
    )
    entrants = _entrants(worker)
    prompt = st.text_area("Prompt", _PROMPT, height=80, key="race-prompt", persist_state="session")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        limit = st.number_input("Longest reply, tokens", 2, 4096, 128, key="race-max-tokens", width=200)
        together = len(entrants) == 2 and st.toggle(
            "Both at once",
            key="race-together",
            help="They share the device, so neither shows its own speed.",
        )
        label = "Race" if len(entrants) == 2 else "Measure this one"
        busy = next(filter(None, map(why_not_now, entrants)), None)
        pressed = st.button(
            label,
            type="primary",
            icon=":material/flag:",
            key="race-start",
            disabled=busy is not None or not (prompt or "").strip(),
        )
    if busy is not None:
        st.caption(f":material/info: {frame.plain(busy)}")
    if pressed:
        _start(entrants, prompt or "", int(limit or 128), together=bool(together))
    _show(_races())


def verdict(lanes: tuple[Lane, ...]) -> str | None:
    """Who was faster and by how much, by tokens per second from sending to the last one; None without two.

    A lane that was stopped or broke off has no speed that could be compared.
    """
    speeds = [lane.stats.output_tok_s if lane.stats and lane.state == "ok" else None for lane in lanes]
    if len(speeds) != 2 or not speeds[0] or not speeds[1]:
        return None
    first, second = speeds[0], speeds[1]
    ratio = max(first, second) / min(first, second)
    if ratio < 1.05:
        return f"About equal: {fmt.rate(first)} and {fmt.rate(second)}."
    faster, slower = _NAMES if first > second else _NAMES[::-1]
    return (
        f"{faster} wrote {fmt.rate(max(first, second))}, {slower} {fmt.rate(min(first, second))}: "
        f"{ratio:.1f} times as fast."
    )


def _entrants(worker: WorkerView) -> list[WorkerView]:
    """The chosen two; one while only one is loaded, with a way to load another."""
    there = [each for each in workbench.get_workbench().workers() if each.device == worker.device]
    ready = {each.id: each for each in there if each.state == "ready"}
    others = [worker_id for worker_id in ready if worker_id != worker.id]
    if not others:
        _second(worker, there)
        return [worker]
    left, right = st.columns(2)
    ids = [worker.id, *others]
    first = left.selectbox("A", ids, format_func=lambda each: _title(ready[each]), key="race-a")
    rest = [worker_id for worker_id in ids if worker_id != first]
    second = right.selectbox("B", rest, format_func=lambda each: _title(ready[each]), key=f"race-b-{first}")
    return [ready[first], ready[second]]


def _title(worker: WorkerView) -> str:
    return f"{worker.title} · {fmt.recipe_line(worker.recipe)} · {switch_words(worker.recipe)}"


def _second(worker: WorkerView, there: list[WorkerView]) -> None:
    """Only one is loaded: load another beside it, or measure one after the other."""
    loading = next((each for each in there if each.state == "starting"), None)
    if loading is not None:
        _wait_for(loading.id)
        return
    with st.container(border=True):
        st.markdown(f"**A is {_title(worker)}.** Load a second Recipe to race against:")
        hardware = workbench.get_workbench().hardware()
        options = options_of(worker.recipe, hardware, "quantization.scheme", choices_of("quantization.scheme"))
        schemes = [name for name in options.offered if name != worker.recipe.quantization.scheme]
        with st.container(horizontal=True, vertical_alignment="bottom"):
            scheme = st.selectbox(
                "Same model, other weights", schemes, format_func=fmt.scheme_title, key="race-scheme", width=320
            )
            pressed = st.button("Load it beside", icon=":material/add:", key="race-load", disabled=not schemes)
            frame.link("recipe", "Choose on the Recipe page", icon=":material/arrow_forward:")
        st.caption(
            "Where both do not fit: measure this one, load the other in its place, and measure that one too."
        )
    if pressed and scheme:
        _load(worker, str(scheme))


def _load(worker: WorkerView, scheme: str) -> None:
    quantization = Quantization.model_validate({"scheme": scheme})
    recipe = worker.recipe.model_copy(update={"quantization": quantization})
    session.set_worker_id(worker.id)  # the new one does not take this visitor's place
    with frame.errors_shown():
        workbench.get_workbench().load(recipe, hub_token=current_token())
        st.rerun()


@st.fragment(run_every=0.5)
def _wait_for(worker_id: str) -> None:
    worker = workbench.get_workbench().worker(worker_id)
    if worker is None or worker.state != "starting":
        st.rerun()
    with st.container(border=True):
        st.markdown(f"**Loading B: {worker.title} · {fmt.recipe_line(worker.recipe)}**")
        draw_progress(worker.progress)


def _start(entrants: list[WorkerView], prompt: str, limit: int, *, together: bool) -> None:
    ids = [worker.id for worker in entrants]
    with frame.errors_shown():
        demos = workbench.get_workbench().demos
        race_id = demos.start_race(ids, prompt, session.sampling(), limit, together=together)
        # What was measured alone before, on the same prompt, is what this one races against.
        alone = [each.id for each in _races() if len(ids) == 1 == len(each.lanes) and each.prompt == prompt]
        session.set_race_ids((*alone[-1:], race_id))
        session.set_replay_began_s(None)
        st.rerun()


def _races() -> list[RaceView]:
    demos = workbench.get_workbench().demos
    return [race for race_id in session.race_ids() if (race := demos.race(race_id)) is not None]


def _show(races: list[RaceView]) -> None:
    if not races:
        return
    if any(race.running for race in races):
        _measuring()
        return
    lanes = tuple(lane for race in races for lane in race.lanes)
    _above(races, lanes)
    if session.replay_began_s() is None:
        session.set_replay_began_s(time.time())
    judged = tuple(_fidelity(lane.recipe) for lane in lanes)
    if _elapsed_ms() < max(race.length_ms for race in races):
        _replay(judged)
    else:
        _draw_lanes(lanes, judged, _elapsed_ms())
    if st.button("Replay", icon=":material/replay:", key="race-replay"):
        session.set_replay_began_s(time.time())
        st.rerun()


@st.fragment(run_every=0.4)
def _measuring() -> None:
    """Whose turn it is; what is said is shown when both have said it."""
    races = _races()
    running = next((race for race in races if race.running), None)
    if running is None:
        st.rerun()
    lanes = tuple(lane for race in races for lane in race.lanes)
    done = sum(lane.state in ENDED for lane in lanes)
    words = ", ".join(
        f"{name} {_STATES[lane.state]}{_so_far(lane)}" for name, lane in zip(_NAMES, lanes, strict=False)
    )
    st.progress(done / len(lanes), text=words)
    if st.button("Stop", key="race-stop", icon=":material/stop_circle:"):
        workbench.get_workbench().demos.stop_race(running.id)
        st.rerun()


def _so_far(lane: Lane) -> str:
    return f" ({fmt.count(len(lane.at_ms), 'token')} so far)" if lane.state == "measuring" and lane.at_ms else ""


def _above(races: list[RaceView], lanes: tuple[Lane, ...]) -> None:
    """The verdict, and what it is worth."""
    if any(race.together for race in races):
        st.warning(
            "Sharing the device: both were sent at once, so neither shows its own speed.", icon=":material/group:"
        )
    words = verdict(lanes)
    if words:
        st.markdown(f"**{words}**")
    if len(lanes) == 1:
        st.caption("Measured. Now load the other Recipe and measure it on the same prompt.")
    with st.container(horizontal=True):
        frame.link("measure", "Measure properly", icon=":material/timer:", help="One prompt decides nothing.")


@st.fragment(run_every=_REPLAY_EVERY_S)
def _replay(judged: tuple[Fidelity | None, ...]) -> None:
    """Both streams as they stood at this moment after sending; the page is drawn anew at their end."""
    races = _races()
    if _elapsed_ms() >= max((race.length_ms for race in races), default=0.0):
        st.rerun()
    _draw_lanes(tuple(lane for race in races for lane in race.lanes), judged, _elapsed_ms())


def _elapsed_ms() -> float:
    began_s = session.replay_began_s()
    return 0.0 if began_s is None else (time.time() - began_s) * 1e3


def _draw_lanes(lanes: tuple[Lane, ...], judged: tuple[Fidelity | None, ...], elapsed_ms: float) -> None:
    places = st.columns(max(1, len(lanes)))
    for name, lane, fidelity, column in zip(_NAMES, lanes, judged, places, strict=False):
        with column, st.container(border=True):
            _head(name, lane, fidelity)
            _stream(lane, elapsed_ms)


def _head(name: str, lane: Lane, fidelity: Fidelity | None) -> None:
    st.markdown(f"**{name} · {lane.title}**")
    st.caption(f"{fmt.recipe_line(lane.recipe)} · {switch_words(lane.recipe)}")
    stats = lane.stats
    if stats is not None:
        facts = [f"TTFT {fmt.ms(stats.ttft_ms)}", f"TPOT {fmt.ms(stats.tpot_ms)}", fmt.rate(stats.output_tok_s)]
        facts += filter(None, (known_words(stats),))
        st.markdown(" · ".join(facts), help=reply_help())
    if fidelity is None:
        frame.link("quality", "Fidelity: not measured", icon=":material/balance:")
    else:
        st.caption(
            _fidelity_words(fidelity), help="Against the checkpoint's native dtype; the Quality page has more."
        )


def _stream(lane: Lane, elapsed_ms: float) -> None:
    seen = replay(lane, elapsed_ms)
    with st.container(height=260, border=False, autoscroll=True):
        show_text(seen.text + ("" if seen.ended else " ▌"), markdown=False)
    if lane.failure is not None:
        frame.show_error(lane.failure)
    if lane.state == "cancelled":
        st.caption(
            ":material/stop_circle: Stopped before its end."
            if lane.at_ms
            else ":material/stop_circle: Not measured: stopped."
        )
    shown_s = min(elapsed_ms, lane.at_ms[-1] if lane.at_ms else 0.0) / 1e3
    total = len(lane.at_ms)
    st.progress(
        seen.chunks / total if total else 0.0,
        text=f"{shown_s:.1f} s · {seen.chunks} of {fmt.count(total, 'token')} · {fmt.rate(seen.tok_s)}",
    )


def _fidelity(recipe: Recipe) -> Fidelity | None:
    """As judged by itself; None where it was not, or cannot be looked up."""
    wb = workbench.get_workbench()
    try:
        return Effects(recipe, wb.hardware(), (), wb.studies.fidelities()).of(recipe).fidelity
    except McpError:
        return None


def _fidelity_words(fidelity: Fidelity) -> str:
    if fidelity.status == "lossless-by-test":
        return "Fidelity: loses nothing, by test"
    if fidelity.kl is None:
        return f"Fidelity: not measurable. {fidelity.reason}".strip()
    top1 = f", same first choice {fidelity.top1.mean:.0%}" if fidelity.top1 else ""
    return f"Fidelity: KL {fmt.number(fidelity.kl.mean)} nats{top1}"
