"""One Run in full: headline, every percentile with its n, memory, requests, settings, the documents behind it.

This file does not know how the Run was chosen.
"""

from __future__ import annotations

import streamlit as st

from mcp_core.errors import McpError
from mcp_core.evaluation.conditions import remarks
from mcp_core.results import Effective, Fidelity, Measurement, Memory, Quantiles, Run
from pages._ui import charts, frame, run_machine, run_remarks, workbench
from pages._ui import format as fmt
from pages._ui.fidelity_result import DEFINITIONS, headline
from pages._ui.memory_panel import draw_run_memory
from pages._ui.recipe_adoption import adopt_button
from pages._ui.run_table import STATUS_WORDS

__all__ = ["draw", "draw_counts", "draw_headline", "draw_latencies", "draw_worth"]

_LATENCIES = {"TTFT": "ttft_ms", "TPOT": "tpot_ms", "ITL": "itl_ms", "E2E": "e2e_ms"}
_POWER_CAP = (
    "The driver lowered the SM clock to keep the board within its power limit, which is not below the one that the "
    "card came with: this configuration runs like that on every such card, so the Run stays comparable. With a "
    "lowered limit, heat, or a slowdown by the board it would not."
)
_COLOURS = {"ok": "green", "failed": "red", "refused": "red"}


def draw(run: Run, stale: str = "") -> None:
    """Everything that is stored of ``run``; what was not measured says so. ``stale``: what changed since."""
    st.header(f"{fmt.model_name(run.recipe)} · {fmt.recipe_line(run.recipe)}")
    _draw_badges(run, stale)
    run_remarks.draw(run.id)
    _draw_actions(run)
    if run.failure is not None:
        frame.show_error(run.failure)
    if not run.comparable.ok:
        draw_worth(run)
    else:
        _draw_remarks(run)
    if run.measurement is not None:
        draw_headline(run)
        draw_counts(run.measurement)
        draw_latencies(run.measurement)
        _draw_requests(run)
    run_machine.draw(run)
    if run.fidelity is not None:
        _draw_fidelity(run.fidelity)
    if run.memory is not None:
        _draw_memory(run.memory)
        draw_run_memory(run)
    _draw_settings(run)
    _draw_documents(run)


def _draw_badges(run: Run, stale: str) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge(STATUS_WORDS[run.status], color=_COLOURS.get(run.status, "gray"))  # type: ignore[arg-type]
        for note in filter(None, fmt.run_notes(run).split(" · ")):
            st.badge(note, color="orange")
        if stale:
            st.badge("stale", color="orange", help=f"Its machine has other versions now: {frame.plain(stale)}.")
        st.caption(
            f"{run.workload.name} · {run.created:%Y-%m-%d %H:%M} UTC · {fmt.device_of(run)} · {run.evidence}",
            width="content",
        )


def _draw_actions(run: Run) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        adopt_button(run.recipe, f"Run {run.id}", key=f"use-{run.id}")
        st.download_button(
            "Download JSON",
            data=run.model_dump_json(indent=2) + "\n",
            file_name=f"run-{run.id}.json",
            mime="application/json",
            on_click="ignore",
            icon=":material/download:",
            help="The whole Run: Recipe, Workload, Hardware, Measurement.",
        )
        frame.link("why", "Why", icon=":material/query_stats:", help="What its time went to.", run=run.id)
        with st.popover("Delete", icon=":material/delete:"):
            st.markdown("The Run and its request records are deleted for good.")
            if st.button("Delete this Run", type="primary", key=f"delete-{run.id}"):
                _delete(run)


def _delete(run: Run) -> None:
    with frame.errors_shown():
        workbench.get_workbench().delete_run(run.id)
        st.query_params.pop("run", None)
        st.toast("The Run was deleted.")
        st.rerun()


def draw_headline(run: Run) -> None:
    """The main figures of a Run, and how many requests are behind them; nothing for a Run without any."""
    speed, memory = run.measurement, run.memory
    if speed is None:
        return
    figures = (
        ("TTFT p50", fmt.ms(speed.ttft_ms.p50), "ttft_ms"),
        ("TPOT p50", fmt.ms(speed.tpot_ms.p50), "tpot_ms"),
        ("Throughput", fmt.rate(speed.output_tok_s), "output_tok_s"),
        ("Peak memory", fmt.size(memory.peak_bytes if memory else None), "peak_bytes"),
    )
    if run.energy_j_per_token is not None:
        figures = (*figures, ("Energy / token", f"{fmt.number(run.energy_j_per_token)} J", "energy_j_per_token"))
    with st.container(horizontal=True):
        for label, value, name in figures:
            # 150: two beside each other in a card on a phone of 390
            st.metric(label, value, help=fmt.definition(name), border=True, width=150)


def draw_counts(speed: Measurement) -> None:
    """How many requests ended how, and how long it took."""
    st.caption(
        f"{fmt.count(speed.completed, 'request')} completed, {speed.failed} failed, {speed.cancelled} cancelled "
        f"in {fmt.duration(speed.duration_s)} ({fmt.number(speed.requests_s)} requests/s) · "
        f"{fmt.count(speed.prompt_tokens, 'prompt token')}, {fmt.count(speed.output_tokens, 'output token')}"
    )


def draw_worth(run: Run) -> None:
    """Why the Run may not be compared, or what else to bear in mind."""
    if not run.comparable.ok:
        listed = "\n".join(f"- {reason[:1].upper()}{reason[1:]}" for reason in run.comparable.reasons)
        st.warning(f"**Not to be compared with other Runs**\n\n{listed}", icon=":material/warning:")
    elif notes := fmt.run_notes(run):
        st.caption(f":material/info: {notes[:1].upper() + notes[1:]}.")
    for note in run.imported.notes if run.imported else ():
        st.caption(f":material/info: {frame.plain(note)}")
    _draw_remarks(run)


def _draw_remarks(run: Run) -> None:
    for remark in remarks(run.conditions):
        st.caption(f":material/info: {frame.plain(remark[:1].upper() + remark[1:])}.", help=_POWER_CAP)


def draw_latencies(speed: Measurement) -> None:
    """Percentiles of every latency with their n, and what they mean."""
    st.subheader("Latency")
    latencies = _LATENCIES | ({"First answer token": "first_answer_ms"} if speed.first_answer_ms else {})
    st.table(
        [{"": name} | _cells(getattr(speed, field)) for name, field in latencies.items()],
        border="horizontal",
        hide_index=True,
    )
    with st.expander("What these mean"):
        for name, field in {**latencies, "p95, p99": "p95"}.items():
            st.markdown(f"**{name}**: {fmt.definition(field)}")
        st.markdown(_engine_clock(speed))


def _draw_fidelity(fidelity: Fidelity) -> None:
    """The answer in one sentence; its figures, kinds of text and token map are on the Quality page."""
    st.subheader("Fidelity")
    if fidelity.status == "measured":
        st.markdown(f"{headline(fidelity)}.", help=DEFINITIONS["kl"])
    else:
        st.markdown(frame.plain(fidelity.reason or fidelity.status))
    if fidelity.notes:
        st.caption(frame.plain(". ".join(fmt.sentence(note.rstrip(".")) for note in fidelity.notes) + "."))
    if fidelity.key is not None:
        label = "By kind of text, token by token"
        frame.link("quality", label, icon=":material/compare:", fidelity=fidelity.key)


def _cells(values: Quantiles) -> dict[str, str]:
    """One row of percentiles, ms; p95 and p99 of too few requests say so."""
    few = "too few" if values.n else fmt.NOT_MEASURED
    return {
        "mean": fmt.ms(values.mean),
        "p50": fmt.ms(values.p50),
        "p90": fmt.ms(values.p90),
        "p95": few if values.p95 is None else fmt.ms(values.p95),
        "p99": few if values.p99 is None else fmt.ms(values.p99),
        "max": fmt.ms(values.max),
        "n": f"{values.n:,}",
    }


def _engine_clock(speed: Measurement) -> str:
    return (
        f"By the engine's own clock: TPOT {fmt.ms(speed.engine_tpot_ms)}, throughput "
        f"{fmt.rate(speed.engine_output_tok_s)}. The load generator was late by at most "
        f"{fmt.ms(speed.client_lag_p99_ms)} (p99)."
    )


def _draw_requests(run: Run) -> None:
    try:
        records = workbench.get_workbench().records(run.id)
    except McpError as error:
        frame.show_error(error)
        return
    if not records:
        return
    st.subheader("Requests over time")
    if len(records) > charts.MOST_REQUESTS:
        st.caption(f"The first {charts.MOST_REQUESTS} of {len(records):,} requests.")
    failed = sum(record.status != "ok" for record in records)
    st.plotly_chart(
        charts.requests_figure(records, charts.colour_of(run.recipe.fingerprint)),
        key=f"requests-{run.id}",
        alt=f"{fmt.count(len(records), 'request')}, each from sent to last token; {failed} did not end well.",
    )


_MEMORY_WORDS = {
    "peak_bytes": "Peak",
    "weights_bytes": "Weights",
    "baseline_bytes": "Before loading",
    "load_peak_bytes": "Process, peak while loading",
    "process_peak_bytes": "Process, peak while serving",
    "device_allocated_peak_bytes": "Device, allocated peak",
    "device_reserved_peak_bytes": "Device, reserved peak",
    "kv_bytes_per_token": "Keys and values of one token",
}


def _draw_memory(memory: Memory) -> None:
    """What was measured of it, with what each figure means."""
    st.subheader("Memory")
    rows = [
        {"": words, "size": fmt.size(value), "meaning": fmt.definition(name) or ""}
        for name, words in _MEMORY_WORDS.items()
        if (value := getattr(memory, name)) is not None
    ]
    st.table(rows, border="horizontal", hide_index=True)


def _draw_settings(run: Run) -> None:
    with st.expander("Effective settings, read back from the worker"):
        if run.effective is None:
            st.markdown("The worker did not get as far as reporting them.")
        else:
            st.table(_setting_rows(run.effective), border="horizontal", hide_index=True)
    with st.expander("Machine and versions"):
        rows = {"host": run.hardware.host, "cpu": run.hardware.cpu, "os": run.hardware.os}
        rows |= {each.id: each.name for each in run.hardware.cuda_devices}
        rows |= ({"driver": run.hardware.driver} if run.hardware.driver else {}) | run.versions | _conditions(run)
        st.table(
            [{"what": name, "value": value} for name, value in rows.items()], border="horizontal", hide_index=True
        )


def _conditions(run: Run) -> dict[str, str]:
    """The machine meanwhile, by name with its unit."""
    found = run.conditions
    if found is None:
        return {}
    values = found.model_dump(exclude_none=True, exclude={"device"})
    values |= found.device.model_dump(exclude_none=True) if found.device else {}
    words = {
        name: ", ".join(value) or "none" if isinstance(value, tuple) else f"{value:,.4g}"
        for name, value in values.items()
    }
    return {f"{name.replace('_', ' ')} while measured": value for name, value in words.items()}


def _setting_rows(effective: Effective) -> list[dict[str, str]]:
    skipped = ", ".join(effective.skipped_modules) or "none"
    values = effective.model_dump(exclude_none=True) | {
        "skipped_modules": skipped,
        "not_carried": " ".join(effective.not_carried) or "none",
    }
    return [
        {"setting": name.replace("_", " "), "value": f"{value:,}" if isinstance(value, int) else str(value)}
        for name, value in values.items()
    ]


def _draw_documents(run: Run) -> None:
    with st.expander("Recipe as JSON"):
        st.code(run.recipe.to_json(), language="json")
        st.download_button(
            "Download Recipe",
            data=run.recipe.to_json(),
            file_name=f"recipe-{run.recipe.fingerprint[:12]}.json",
            mime="application/json",
            on_click="ignore",
            icon=":material/download:",
            help="mcp-core serve and bench read this file.",
        )
    with st.expander("Workload as JSON"):
        st.code(run.workload.model_dump_json(indent=2), language="json")
