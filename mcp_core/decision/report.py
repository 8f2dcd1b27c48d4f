"""Report: a Decision or a comparison of Runs as one HTML file that needs no network, as CSV and as JSON.

Everything that came from outside (names, reasons, model ids) is text in it, never markup. This file does not know
how a Decision is made, or how the HTML looks (``report_page.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mcp_core.decision.compare import QUANTITIES, Comparison
from mcp_core.decision.decision import Choice, Decision, Refused
from mcp_core.decision.facts import RunFacts
from mcp_core.decision.figures import figure, known_columns
from mcp_core.decision.remarks import Remarks
from mcp_core.decision.report_page import Chart, Section, page
from mcp_core.decision.spreadsheet import csv_text

__all__ = ["Report", "as_csv", "as_html", "as_json"]

_UNITS = {"concurrency": "users", "rate_s": "requests/s"}
_CAUSES = {"slo": "latency"}
_GB = 1e9
_LACKING = "–"


@dataclass(frozen=True, slots=True)
class Report:
    """What a report is about: a Decision, or Runs of which the first is the baseline.

    ``comparisons`` are of each further Run against the first, by its id; ``remarks`` are people's, by a Run's id.
    """

    decision: Decision | None = None
    runs: Sequence[RunFacts] = ()
    comparisons: dict[str, Sequence[Comparison]] | None = None
    remarks: Mapping[str, Remarks] = field(default_factory=dict)

    def remarks_of(self, run: RunFacts) -> Remarks:
        """Empty where nobody said anything."""
        return self.remarks.get(run.id, Remarks())

    @property
    def title(self) -> str:
        """Of the page."""
        if self.decision is None:
            return f"Comparison of {len(self.runs)} Runs"
        return self.decision.goal.name or f"Decision for {self.decision.workload or 'a workload'}"


def as_html(report: Report) -> str:
    """One file: styles, figures and the library that draws them are in it."""
    decision = report.decision
    summary = decision.answer if decision else "Figures as they were measured; each Run is against the first."
    badge = decision.winner.evidence_text if decision and decision.winner else ""
    return page(report.title, summary, badge, list(_sections(report)), list(_charts(report)))


def as_json(report: Report) -> str:
    """The Decision's own document, or Runs in a line each with their comparisons."""
    if report.decision is not None:
        return report.decision.to_json()
    found = {
        "runs": [asdict(each) for each in report.runs],
        "comparisons": {
            run: [each.model_dump(mode="json") for each in made] for run, made in (report.comparisons or {}).items()
        },
        "remarks": {
            each.id: report.remarks[each.id].model_dump(mode="json")
            for each in report.runs
            if each.id in report.remarks
        },
    }
    return json.dumps(found, indent=2) + "\n"


def as_csv(report: Report) -> str:
    """A line a configuration: of a Decision what it is (winner, runner-up, refused) and why."""
    rows = list(_decision_rows(report.decision)) if report.decision else list(_run_rows(report))
    return csv_text(rows)


def _run_rows(report: Report) -> Iterator[dict[str, Any]]:
    for each in report.runs:
        remarks = report.remarks_of(each)
        yield _run_row(each) | {"tags": ", ".join(remarks.tags), "note": remarks.note}


def _decision_rows(decision: Decision) -> Iterator[dict[str, Any]]:
    choices = [*([decision.winner] if decision.winner else []), *decision.runners_up]
    for choice in choices:
        yield {"role": _role(choice, decision), **_choice_row(choice), "reason": "; ".join(choice.figures.within)}
    for each in decision.refused:
        yield {
            "role": "refused",
            "configuration": each.name,
            "run": each.run,
            "cause": each.cause,
            "reason": each.reason,
        }


def _role(choice: Choice, decision: Decision) -> str:
    if choice is decision.winner:
        return "winner"
    if choice.run in decision.equivalent:
        return "runner-up (equivalent)"
    return "runner-up (undecided)" if choice.run in decision.undecided else "runner-up"


def _choice_row(choice: Choice) -> dict[str, Any]:
    figures = choice.figures
    return {
        "configuration": choice.name,
        "run": choice.run,
        "evidence": choice.evidence_text,
        "load": choice.load,
        "output_tok_s": figures.output_tok_s,
        "ttft_p50_ms": figures.ttft_ms,
        "tpot_p50_ms": figures.tpot_ms,
        "goodput_s": figures.goodput_s,
        "attainment": figures.attainment,
        "peak_bytes": figures.peak_bytes,
        "kl": figures.kl,
        "cost_per_million_tokens": figures.cost_per_million_tokens,
        "energy_j_per_token": figures.energy_j_per_token,
    }


def _run_row(run: RunFacts) -> dict[str, Any]:
    return {
        "run": run.id,
        "created": run.created,
        "status": run.status,
        "model": run.model,
        "configuration": run.name,
        "engine": run.engine,
        "device": run.device,
        "evidence": run.evidence,
        "workload": run.workload,
        "load": run.load,
        "output_tok_s": run.output_tok_s,
        "requests_s": run.requests_s,
        **{
            f"{name}_{each}": run.figure(name, each)
            for name in ("ttft_ms", "tpot_ms", "e2e_ms")
            for each in ("p50", "p95")
        },
        "completed": run.completed,
        "failed": run.failed,
        "peak_bytes": run.peak_bytes,
        "energy_j_per_token": run.energy_j_per_token,
        "kl": run.fidelity.get("kl") if run.fidelity else None,
        "not_comparable": "; ".join(run.reasons),
        "power_cap": run.power_cap,
    }


def _sections(report: Report) -> Iterator[Section]:
    if report.decision is not None:
        yield from _decision_sections(report.decision)
    else:
        rows = [(*_shown_run(each), *_shown_remarks(report.remarks_of(each))) for each in report.runs]
        yield _known("Runs", _RUN_HEADING, rows)
        for run, made in (report.comparisons or {}).items():
            yield Section(f"{run} against {report.runs[0].id}", _COMPARED, [_compared(each) for each in made])


_RUN_HEADING = (
    "Run",
    "Configuration",
    "Evidence",
    "Load",
    "tok/s",
    "p50 TTFT ms",
    "p50 TPOT ms",
    "Peak GB",
    "J/token",
    "Failed",
    "Not comparable",
    "Power cap",
    "Tags",
    "Note",
)
_COMPARED = ("Quantity", "First", "This", "Ratio", "95 % interval", "Starts", "This is", "Why")


def _shown_run(run: RunFacts) -> tuple[str, ...]:
    unit = _UNITS.get(run.load_kind, "")
    latencies = (run.figure("ttft_ms", "p50"), run.figure("tpot_ms", "p50"))
    figures = (run.output_tok_s, *latencies, _gb(run.peak_bytes), run.energy_j_per_token)
    load = _LACKING if run.load is None else f"{run.load:g} {unit}"
    return (
        *(run.id, f"{run.model} · {run.name}", run.evidence, load),
        *map(_number, figures),
        *(f"{run.failed} of {run.failed + run.completed}", "; ".join(run.reasons) or _LACKING),
        run.power_cap.removeprefix("power cap: ") or _LACKING,
    )


def _shown_remarks(remarks: Remarks) -> tuple[str, str]:
    return ", ".join(remarks.tags) or _LACKING, remarks.note or _LACKING


def _compared(each: Comparison) -> tuple[str, ...]:
    ratio, quantity = each.ratio, QUANTITIES[each.quantity]
    in_bytes = quantity.unit == "bytes"
    a, b = (_gb(each.a), _gb(each.b)) if in_bytes else (each.a, each.b)
    low = ratio.low if ratio else None
    between = f"{low:.3f} to {ratio.high:.3f}" if ratio and low is not None and ratio.high is not None else _LACKING
    return (
        f"{quantity.label}, {'GB' if in_bytes else quantity.unit}",
        *(_number(a), _number(b), f"{ratio.value:.3f}" if ratio else _LACKING),
        *(between, str(each.pairs), each.verdict, " ".join(filter(None, (each.why, each.caveat))) or _LACKING),
    )


def _decision_sections(decision: Decision) -> Iterator[Section]:
    choices = [*([decision.winner] if decision.winner else []), *decision.runners_up]
    if choices:
        yield _known("Meets the Goal", _MEETS, [_shown_choice(each, decision) for each in choices])
    if held := [(each.name, "; ".join(each.figures.within)) for each in choices if each.figures.within]:
        yield Section("Limits that hold", ("Configuration", "Figure and limit"), held)
    if decision.refused:
        yield Section(
            "Refused, and why",
            ("Configuration", "Cause", "Figure and limit", "Run"),
            [*map(_shown, decision.refused)],
        )
    if decision.missing:
        rows = [
            (each.title, each.why, str(each.repeats) if each.workload else "", _number(each.seconds), each.command)
            for each in decision.missing
        ]
        yield Section("What would tell more", ("Configuration", "Why", "Starts", "Seconds", "Command"), rows)
    goal = decision.goal.model_dump(mode="json", exclude_defaults=True)
    asked = [(name, json.dumps(value)) for name, value in goal.items()]
    about = [
        ("device", decision.device),
        ("workload", decision.workload),
        ("decided", f"{decision.created:%Y-%m-%d %H:%M} UTC"),
    ]
    yield Section("What was asked", ("", ""), [*asked, *about])
    if decision.notes:
        yield Section("Notes", ("",), [(note,) for note in decision.notes])


_MEETS = (
    "",
    "Configuration",
    "Evidence",
    "Load",
    "tok/s",
    "p50 TTFT ms",
    "p50 TPOT ms",
    "Peak GB",
    "Goodput/s",
    "J/token",
    "Cost/1M",
    "Starts",
    "Run",
)


def _shown_choice(choice: Choice, decision: Decision) -> tuple[str, ...]:
    figures = choice.figures
    numbers = (
        figures.output_tok_s,
        figures.ttft_ms,
        figures.tpot_ms,
        _gb(figures.peak_bytes),
        figures.goodput_s,
        figures.energy_j_per_token,
        figures.cost_per_million_tokens,
    )
    load = f"{choice.load:g} {_UNITS[decision.load_kind]}"
    return (
        _role(choice, decision),
        choice.name,
        choice.evidence_text,
        load,
        *map(_number, numbers),
        str(choice.starts),
        choice.run,
    )


def _shown(each: Refused) -> tuple[str, ...]:
    return each.name, _CAUSES.get(each.cause, each.cause), each.reason, each.run or _LACKING


def _known(title: str, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Section:
    kept, *others = known_columns([heading, *rows], _LACKING)
    return Section(title, kept, others)


def _gb(size: float | None) -> float | None:
    return None if size is None else size / _GB


def _number(value: float | None) -> str:
    return figure(value, lacking=_LACKING)


def _charts(report: Report) -> Iterator[Chart]:
    if report.decision is not None:
        yield from _decision_charts(report.decision)
        return
    drawn = [(each.name, each.output_tok_s, each.figure("ttft_ms", "p50")) for each in report.runs]
    points = [(name, ttft, rate) for name, rate, ttft in drawn if rate is not None and ttft is not None]
    if points:
        series = [(name, [ttft], [rate]) for name, ttft, rate in points]
        yield Chart("Throughput against first token", "p50 TTFT, ms", "output tokens/s", series, lines=False)


def _decision_charts(decision: Decision) -> Iterator[Chart]:
    choices = [*([decision.winner] if decision.winner else []), *decision.runners_up][:8]
    unit = _UNITS[decision.load_kind]
    for label, name in (("output tokens/s", "output_tok_s"), ("requests/s within every limit", "goodput_s")):
        series = []
        for choice in choices:
            points = [(point.load, getattr(point, name)) for point in choice.points]
            known = [(load, value) for load, value in points if value is not None]
            if known:
                series.append((choice.name, [load for load, _ in known], [value for _, value in known]))
        if sum(len(loads) for _, loads, _ in series) > 1:
            yield Chart(f"{label[:1].upper()}{label[1:]} by load", unit, label, series)
