"""Pruning and the estimate of device time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from mcp_core.conflicts import resolve
from mcp_core.errors import Cancelled
from mcp_core.evaluation.benchmark import unmeasured
from mcp_core.evaluation.sweep_budget import budget_of, drain_s, load_time
from mcp_core.evaluation.sweep_cells import CheckedCell, check_cells
from mcp_core.hardware import Hardware, detect
from mcp_core.models import catalog
from mcp_core.recipe import ModelRef, Recipe
from mcp_core.results import Quantiles, Run
from mcp_core.sweep_plan import SweepPlan
from mcp_core.workload import short_chat
from tests.decision.planted import Law, planted_run

SHAPE = {"layers": 2, "hidden": 64, "intermediate": 128, "heads": 4, "kv_heads": 2, "vocab": 300, "context": 512}
BASE = {
    "model": {"source": "shape", "id": "custom", "shape": SHAPE},
    "dtype": "fp32",
    "device": "cpu",
    "threads": 1,
}
WORKLOAD = {"name": "w", "concurrency": 4, "prompt_tokens": 16, "output_tokens": 8}


def plan(**fields: Any) -> SweepPlan:
    return SweepPlan.from_dict({"base": BASE, "workload": WORKLOAD} | fields)


def run_of(recipe: Recipe, load_s: float, machine: Hardware) -> Run:
    """As a worker reports it: device, threads and hash filled in."""
    run = unmeasured(resolve(recipe, machine), short_chat(), machine, Cancelled("planted"))
    resolved = run.recipe.model_copy(update={"model": run.recipe.model.model_copy(update={"sha256": "ab" * 32})})
    return run.model_copy(update={"status": "ok", "failure": None, "load_s": load_s, "recipe": resolved})


@pytest.fixture
def machine() -> Hardware:
    return detect()


def refusals(checked: Sequence[CheckedCell]) -> dict[str, str | None]:
    return {each.cell.name: each.refused.message if each.refused else None for each in checked}


def test_each_refusal_has_its_reason_and_looks_the_model_up_once(machine: Hardware) -> None:
    asked: list[ModelRef] = []

    def look_up(ref: ModelRef) -> Any:
        asked.append(ref)
        return catalog.resolve(ref)

    checked = check_cells(
        plan(axes={"scheme": ["none", "torchao-int4-weight-only"], "max_context": [16, 128, 1024]}),
        machine,
        look_up,
    )
    found = refusals(checked)
    assert found["unquantized · context 128"] is None
    assert "longest request has 24 tokens; the context 16" in (found["unquantized · context 16"] or "")
    assert "1,024 tokens asked" in (found["unquantized · context 1024"] or "")
    assert "bf16 only" in (found["torchao-int4-weight-only · context 128"] or "")
    assert len(asked) == 1
    fits = checked[1].footprint
    assert fits is not None
    assert (fits.concurrency, fits.context_tokens) == (1, 24)


def test_what_does_not_fit_says_the_bytes(machine: Hardware) -> None:
    cpu = machine.devices[0].model_copy(update={"memory_free_bytes": 1_000_000})
    small = machine.model_copy(update={"devices": (cpu,)})
    (checked,) = check_cells(plan(), small)
    assert checked.refused is not None
    assert (checked.refused.kind, "0.00 GB free" in checked.refused.message) == ("memory", True)
    assert checked.footprint is not None


def test_a_model_that_is_not_there_refuses_its_cells_only(machine: Hardware) -> None:
    gone = {"source": "folder", "id": "/nowhere/at/all"}
    found = check_cells(plan(axes={"model": [BASE["model"], gone]}), machine)
    assert [each.refused is None for each in found] == [True, False]


def test_device_time_is_counted_from_stages_and_known_loads(machine: Hardware) -> None:
    asked = plan(
        axes={"scheme": ["none", "bnb-nf4"], "batching": ["off", "continuous"]},
        probe_s=10,
        keep=3,
        capacity_s=100,
        confirm=2,
        starts=3,
        confirm_s=50,
    )
    checked = check_cells(asked, machine)
    guessed = budget_of(asked, checked, ())
    assert (guessed.cells, guessed.refused, guessed.loads, guessed.known_loads) == (4, 0, 2, 0)
    assert (guessed.probe_s, guessed.measure_s, guessed.confirm_s) == (4 * 15, 3 * 123, 6 * 63)
    assert "estimated: there is no earlier Run" in guessed.in_words()
    runs = [
        run_of(cell.cell.recipe, seconds, machine) for cell, seconds in zip(checked[::2], (5.0, 7.0), strict=True)
    ]
    known = budget_of(asked, checked, runs)
    # each once for its probes, again (6 s on average) for measuring, and six confirmations
    assert known.load_s == pytest.approx(5 + 7 + 6 * (2 + 6))
    assert "those of earlier Runs here" in known.in_words()
    assert "repeats on a noisy machine, come on top" in known.in_words()
    assert known.seconds == known.load_s + 60 + 369 + 378


def test_a_long_queue_of_earlier_runs_is_counted_for_the_same_configuration_and_load_only(
    machine: Hardware,
) -> None:
    asked = plan(axes={"batching": ["off", "continuous"]}, probe_s=10, confirm=0, capacity_s=100)
    checked = check_cells(asked, machine)
    off, continuous = checked
    before = budget_of(asked, checked, ())
    found = planted_run(Law(), 4, requests=9)[0].measurement
    assert found is not None
    queued = run_of(off.cell.recipe, 5.0, machine).model_copy(
        update={
            "workload": asked.workload,
            "measurement": found.model_copy(update={"e2e_ms": Quantiles(max=40_000, n=9)}),
        }
    )
    other = queued.model_copy(update={"workload": asked.workload.at_load(64)})
    assert drain_s(off, asked.load(), [queued, other]) == 40
    assert drain_s(continuous, asked.load(), [queued]) is None
    assert drain_s(off, asked.load(), [other]) is None
    known = budget_of(asked, checked, [queued])
    assert known.probe_s == (10 + 40 + 3) + (10 + 2 + 3)
    # Who is measured is not known before: 20 s each on average, which the share of 100 s holds already.
    assert known.measure_s == before.measure_s


def test_a_load_time_is_of_the_same_load_before_one_of_its_scheme(machine: Hardware) -> None:
    other = plan(axes={"kv": ["dynamic", "static"]})
    dynamic, static = check_cells(other, machine)
    runs = [run_of(dynamic.cell.recipe, 4.0, machine)]
    assert (load_time(dynamic, runs).seconds, load_time(static, runs).seconds) == (4.0, 4.0)
    runs.append(run_of(static.cell.recipe, 9.0, machine))
    assert (load_time(dynamic, runs).seconds, load_time(static, runs).seconds) == (4.0, 9.0)
    assert load_time(static, runs).measured
    assert not load_time(static, ()).measured


def test_random_weights_are_ready_sooner_on_a_gpu_than_any_that_are_read(machine: Hardware) -> None:
    (shape,) = check_cells(plan(), machine)
    assert shape.footprint is not None
    read = replace(shape, footprint=replace(shape.footprint, weights_bytes=13_400_000_000))
    drawn = replace(read, footprint=replace(read.footprint, device="cuda:0"))
    assert load_time(read, ()).seconds == pytest.approx(98, abs=1)
    assert 38 < load_time(drawn, ()).seconds < 60  # LLM.int8 of the 13B shape: 37.5 s on an H100


@pytest.mark.parametrize(
    ("slo", "fields", "said"),
    [
        ({"ttft_ms": {"p95": 500}}, {}, "takes 200 requests a Run: what answers fewer than 3.33 a second for 60 s"),
        (
            {"ttft_ms": {"p95": 500, "p99": 900}},
            {"confirm_s": 100},
            "takes 1,000 requests a Run: what answers fewer",
        ),
        ({"ttft_ms": {"p95": 500}}, {"confirm": 0}, "fewer than 1.67 a second for 120 s"),
        ({"ttft_ms": {"p50": 500}}, {}, ""),
        ({}, {}, ""),
    ],
)
def test_stages_too_short_for_a_limited_percentile_are_told_before_the_start(
    slo: dict[str, Any], fields: dict[str, Any], said: str, machine: Hardware
) -> None:
    asked = plan(goal={"users": 4, "slo": slo}, **fields)
    words = budget_of(asked, check_cells(asked, machine, catalog.resolve), ()).in_words()
    assert said in words
    assert ("ends as not measured" in words) == bool(said)


def test_a_search_that_is_not_confirmed_takes_as_many_requests_as_it_needs(machine: Hardware) -> None:
    asked = plan(goal={"slo": {"ttft_ms": {"p95": 500}}}, confirm=0)
    assert budget_of(asked, check_cells(asked, machine, catalog.resolve), ()).too_few == ""
