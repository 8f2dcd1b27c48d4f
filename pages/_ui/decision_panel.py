"""A Decision as people read it: the sentence, the figures, who else meets it, who was refused and why, what to add.

This file does not know how a Decision is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import streamlit as st

from mcp_core.decision.decision import Choice, Decision
from mcp_core.decision.report import Report
from pages._ui import format as fmt
from pages._ui import frame, report_downloads, workbench
from pages._ui.hub_token import current_token
from pages._ui.recipe_adoption import adopt_button

__all__ = ["draw_answer", "draw_meeting", "draw_missing", "draw_refused", "evidence_badge"]

_COLOURS = {"confirmed": "green", "measured": "blue", "probed": "orange", "predicted": "orange"}
_CAUSES = {"slo": "latency"}
_UNITS = {"concurrency": "users", "rate_s": "requests/s"}
_ROW_PX, _MOST_ROWS = 35, 12
# Streamlit wraps text in rows above 64 px only; a longer text would be cut at 1280 px.
_TALL_ROW_PX, _LONG_TEXT = 66, 78


def draw_answer(decision: Decision) -> None:
    """Evidence level, the sentence, the winner's figures, the runner-up, what limits the answer."""
    with st.container(border=True):
        winner = decision.winner
        word = winner.evidence_text if winner else "no answer"
        evidence_badge(word)
        st.markdown(f"#### {frame.plain(decision.answer)}")
        if winner is None:
            _notes(decision.notes)
            return
        _figures(winner, decision)
        _runner_up(decision)
        _notes(decision.notes)
        _next_steps(winner, decision)


def evidence_badge(words: str) -> None:
    """The level, as "probed on transformers", in its colour."""
    level = words.partition(" ")[0]
    st.badge(fmt.sentence(words), color=_COLOURS.get(level, "grey"))  # type: ignore[arg-type]


def draw_meeting(decision: Decision) -> None:
    """Every configuration that meets the Goal, best first."""
    if decision.winner is None:
        return
    st.subheader("Meets the Goal")
    rows = [_row(each, decision) for each in (decision.winner, *decision.runners_up)]
    told = {name for name in rows[0] if any(row[name] is not None for row in rows)}
    # One of the two tells nothing where every row says the same: the answer has it.
    told -= {"capacity"} if all(row["capacity"] in (None, row["load"]) for row in rows) else set()
    told -= {"load"} if len(rows) > 1 and len({row["load"] for row in rows}) == 1 else set()
    columns = {name: each for name, each in _columns(decision).items() if name in told}
    st.dataframe(
        rows,
        hide_index=True,
        height=_height(rows),
        column_config=columns,
        column_order=list(columns),
        placeholder=fmt.NOT_MEASURED,
    )


def draw_refused(decision: Decision) -> None:
    """Every other configuration with the figure and the limit that refused it."""
    if not decision.refused:
        return
    st.subheader("Refused, and why")
    rows = [
        {
            "name": each.name,
            "cause": _CAUSES.get(each.cause, each.cause),
            "reason": each.reason.removeprefix(f"{each.cause}: "),
            "run": _run_link(each.run),
        }
        for each in decision.refused
    ]
    column = st.column_config
    columns = {
        "name": column.TextColumn("Configuration", width=320),  # of another model it is long, and the reason counts
        "cause": column.TextColumn("Cause", width=110, help="Which kind of limit, or what makes it no evidence."),
        "reason": column.TextColumn("Figure and limit", width=430),
        "run": _run_column(),
    }
    _table(rows, columns, _row_px(each["reason"] for each in rows))
    _commands("What would measure them", [each.command for each in decision.refused])


def draw_missing(decision: Decision) -> None:
    """Runs and fidelities that would tell more, with their time, and a button that queues them."""
    if not decision.missing:
        return
    st.subheader("What would tell more")
    rows = [
        {
            "name": each.title,
            "load": each.workload.load if each.workload else None,
            "repeats": each.repeats if each.workload else None,
            "time": fmt.about(each.seconds),
            "why": each.why.removeprefix("not comparable: "),
            "command": each.command,
        }
        for each in decision.missing
    ]
    column = st.column_config
    load = {"load": column.NumberColumn(fmt.sentence(_UNITS[decision.load_kind]), width=70, format="%g")}
    columns = {
        "name": column.TextColumn("Configuration"),
        **(load if len({each["load"] for each in rows}) > 1 else {}),
        "repeats": column.NumberColumn("Starts", width=56, help="Fresh starts of the worker, with new prompts."),
        "time": column.TextColumn(
            "Time",
            width=100,
            help="Loading and measuring, as its own Runs took; a fidelity's is estimated by the model's size.",
        ),
        "why": column.TextColumn("Why", width=480),
    }
    _table(rows, columns, _row_px(each["why"] for each in rows))
    _queue(decision)
    _commands("These from a shell", [each.command for each in decision.missing])


def _table(rows: Sequence[Any], columns: dict[str, Any], row_px: int) -> None:
    st.dataframe(
        rows,
        hide_index=True,
        height=_height(rows, row_px),
        row_height=row_px,
        column_config=columns,
        column_order=list(columns),
        placeholder="–",
    )


def _commands(label: str, commands: Sequence[str]) -> None:
    known = [each for each in dict.fromkeys(commands) if each]
    if known:
        with st.expander(label, icon=":material/terminal:"):
            st.code("\n".join(known), language="bash", wrap_lines=True)


def _queue(decision: Decision) -> None:
    from mcp_core.decision.missing import plans_of, recipes_to_judge

    missing = decision.missing
    plans, judged = plans_of(missing), recipes_to_judge(missing)
    if not plans and not judged:
        st.caption(":material/info: These are of servers elsewhere: measure them with the commands.")
        return
    if decision.device and decision.device not in {
        device.name for device in workbench.get_workbench().hardware().devices
    }:
        st.caption(
            f":material/info: This machine has no {frame.plain(decision.device)}: measure them there with the "
            "commands and --out FILE, then bring each file here: mcp-core runs merge FILE."
        )
        return
    known = [each.seconds for each in missing if each.seconds is not None]
    total = f", {fmt.about(sum(known))}" if known else ""
    runs = fmt.count(len(plans), "Run") if plans else ""
    what = " and ".join(filter(None, (runs, fmt.count(len(judged), "fidelity measurement") if judged else "")))
    if st.button(f"Queue {what}{total}", icon=":material/playlist_add:", key="queue-missing"):
        with frame.errors_shown():
            for plan in plans:
                workbench.get_workbench().sweeps.start(plan, current_token())
            for recipe in judged:
                workbench.get_workbench().studies.start_fidelity(recipe, hub_token=current_token())
            st.toast(f"{what} queued, one after the other.", icon=":material/playlist_add:")


def _figures(winner: Choice, decision: Decision) -> None:
    figures = winner.figures
    shown = (
        ("Throughput", fmt.rate(figures.output_tok_s), "output_tok_s"),
        ("TTFT p50", fmt.ms(figures.ttft_ms), "ttft_ms"),
        ("TPOT p50", fmt.ms(figures.tpot_ms), "tpot_ms"),
        ("Peak memory", fmt.size(figures.peak_bytes), "peak_bytes"),
    )
    with st.container(horizontal=True):
        for label, value, name in shown:
            st.metric(label, value, help=fmt.definition(name))
        if figures.goodput_s is not None and decision.goal.slo.limits():
            goodput = f"{fmt.number(figures.goodput_s)} requests/s"
            share = f"{figures.attainment:.1%} of requests" if figures.attainment is not None else None
            st.metric(
                "Goodput",
                goodput,
                share,
                delta_color="off",
                delta_arrow="off",
                help="Requests/s that met every latency limit, recomputed from the request records.",
            )
        if figures.cost_per_million_tokens is not None:
            st.metric(
                "Cost per 1M tokens",
                fmt.number(figures.cost_per_million_tokens),
                _cost_of_requests(figures.cost_per_request),
                delta_color="off",
                delta_arrow="off",
                help="Price of the time in which a million output tokens are made, energy included where measured.",
            )
        if figures.energy_j_per_token is not None:
            energy = f"{fmt.number(figures.energy_j_per_token)} J/token"
            st.metric("Energy", energy, help=fmt.definition("energy_j_per_token"))
    if figures.within:
        st.caption("Holds: " + " · ".join(frame.plain(each) for each in figures.within))


def _cost_of_requests(cost: float | None) -> str | None:
    """Of a thousand: one costs too little to be read."""
    return None if cost is None else f"{fmt.number(1000 * cost)} per 1,000 requests"


def _runner_up(decision: Decision) -> None:
    second = decision.runner_up
    if second is None:
        return
    told = {True: "within 3 % of it, and larger or not closer to the model"}.get(second.run in decision.equivalent)
    told = "the data cannot tell it from the winner" if second.run in decision.undecided else told
    reason = f": {told}" if told else ""
    st.markdown(
        f"Runner-up: **{frame.plain(second.name)}**, {fmt.rate(second.figures.output_tok_s)}, "
        f"TPOT {fmt.ms(second.figures.tpot_ms)}, {fmt.size(second.figures.peak_bytes)}{reason}."
    )


def _notes(notes: Sequence[str]) -> None:
    for note in notes:
        st.caption(f":material/info: {frame.plain(note)}")


def _next_steps(winner: Choice, decision: Decision) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        adopt_button(winner.recipe, "the decision", key="use-winner")
        frame.link("runs", "See its Run", icon=":material/table_rows:", run=winner.run)
        goal = decision.goal.model_dump_json(exclude_defaults=True)
        frame.link("ship", "Ship it", icon=":material/rocket_launch:", goal=goal)
    report_downloads.draw(lambda: Report(decision), "decision", "decide-report")


def _row(each: Choice, decision: Decision) -> dict[str, Any]:
    figures = each.figures
    against = "winner" if each.run == decision.winner.run else ""  # type: ignore[union-attr]
    against = "equivalent" if each.run in decision.equivalent else against
    against = "undecided" if each.run in decision.undecided else against
    return {
        "name": each.name,
        "against": against or "behind",
        "load": each.load,
        "capacity": each.capacity,
        "output_tok_s": figures.output_tok_s,
        "ttft_ms": figures.ttft_ms,
        "tpot_ms": figures.tpot_ms,
        "peak_gb": figures.peak_bytes / 1e9 if figures.peak_bytes is not None else None,
        "kl": figures.kl,
        "cost": _three_digits(figures.cost_per_million_tokens),
        "energy": figures.energy_j_per_token,
        "evidence": each.evidence,
        "starts": each.starts,
        "run": _run_link(each.run),
    }


def _three_digits(value: float | None) -> float | None:
    """A cost spans so much that no fixed number of decimals reads well, and a power of ten least of all."""
    return None if value is None else float(f"{value:.3g}")


def _run_link(run_id: str) -> str | None:
    return frame.address("runs", run=run_id) if run_id else None


def _run_column() -> Any:
    return st.column_config.LinkColumn("Run", width=46, display_text="open", help="Everything that was measured.")


def _columns(decision: Decision) -> dict[str, Any]:
    column, unit = st.column_config, _UNITS[decision.load_kind]

    def number(heading: str, width: int, pattern: str, meaning: str | None = None) -> Any:
        return column.NumberColumn(heading, width=width, format=pattern, help=meaning)

    return {
        "name": column.TextColumn("Configuration"),
        "against": column.TextColumn(
            "Against winner", width=100, help="By the paired ratio of fresh starts; equivalent is within 3 %."
        ),
        "load": number(fmt.sentence(unit), 62, "%g", "The measured load that the figures are of."),
        "capacity": number("Capacity", 70, "%g", f"Largest measured load that meets every limit, {unit}."),
        "output_tok_s": number("tok/s", 56, "%.1f", fmt.definition("output_tok_s")),
        "ttft_ms": number("TTFT (ms)", 74, "%.0f", f"p50. {fmt.definition('ttft_ms')}"),
        "tpot_ms": number("TPOT (ms)", 74, "%.1f", f"p50. {fmt.definition('tpot_ms')}"),
        "peak_gb": number("Peak (GB)", 72, "%.2f", fmt.definition("peak_bytes")),
        "kl": number("KL (nats)", 72, "%.4f", "Mean KL against the unquantized model on the same tokens."),
        "cost": number(
            "Cost / 1M", 76, "localized", "Price of the time of a million output tokens, energy where measured."
        ),
        "energy": number("J/token", 66, "%.3f", fmt.definition("energy_j_per_token")),
        "evidence": column.TextColumn(
            "Evidence",
            width=84,
            help="predicted → probed → measured on its engine → confirmed on what is deployed.",
        ),
        "starts": number("Starts", 52, "%d", "Fresh process starts behind the figures."),
        "run": _run_column(),
    }


def _row_px(texts: Iterable[str]) -> int:
    return _TALL_ROW_PX if any(len(each) > _LONG_TEXT for each in texts) else _ROW_PX


def _height(rows: Sequence[Any], row_px: int = _ROW_PX) -> int:
    return row_px * min(len(rows), _MOST_ROWS) + _ROW_PX + 2
