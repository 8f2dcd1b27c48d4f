"""One Run explained: which ceilings and trace belong to it, its decode step as a bar, two Runs compared."""

from __future__ import annotations

import pytest

from mcp_core.evaluation.step_bar import UNEXPLAINED, bar_of, why_slower
from mcp_core.evaluation.why import Explanation, as_document, explain, fitting_trace
from mcp_core.hardware import Hardware
from mcp_core.models.catalog import resolve
from mcp_core.results import Run
from tests.evaluation.why_cases import H100, MACHINE, phase, recipe, run, trace

EAGER = trace(phase(38.0, launches=1200, busy_ms=6.2, gemm=5.3, attention=0.4, elementwise=0.5))


def explained(of: Run, **known) -> Explanation:
    return explain(of, MACHINE, model=resolve(of.recipe.model), **known)


def test_a_runs_own_ceilings_count_before_this_machines():
    own = MACHINE.model_copy(update={"ceilings": (H100.model_copy(update={"copy_bytes_s": 3.2e12}),)})
    found = explained(run().model_copy(update={"hardware": own}))
    assert found.case.ceilings is not None
    assert found.case.ceilings.copy_bytes_s == 3.2e12
    assert found.notes == ()


def test_ceilings_measured_later_are_said_to_be():
    bare = MACHINE.model_copy(update={"ceilings": ()})
    found = explained(run().model_copy(update={"hardware": bare}))
    assert found.case.ceilings == H100
    assert found.notes == ("The device's ceilings were measured after this Run.",)
    elsewhere = bare.model_copy(update={"host": "another"})
    assert explained(run().model_copy(update={"hardware": elsewhere})).case.ceilings is None


def with_card(machine: Hardware, uuid: str) -> Hardware:
    cards = tuple(
        each.model_copy(update={"uuid": uuid}) if each.kind == "cuda" else each for each in machine.devices
    )
    return machine.model_copy(update={"devices": cards})


@pytest.mark.parametrize(("here", "known"), [("GPU-a", True), ("GPU-b", False)])
def test_ceilings_of_another_card_in_a_host_of_the_same_name_are_not_this_ones(here, known):
    bare = with_card(MACHINE.model_copy(update={"ceilings": ()}), "GPU-a")
    of = run().model_copy(update={"hardware": bare})
    found = explain(of, with_card(MACHINE, here), model=resolve(of.recipe.model))
    assert (found.case.ceilings is not None) == known


def test_the_trace_of_a_run():
    of = run()
    other = EAGER.model_copy(update={"trace_id": "other", "recipe_fingerprint": "f" * 64})
    alike = EAGER.model_copy(update={"trace_id": "alike", "recipe_fingerprint": of.recipe.fingerprint})
    own = EAGER.model_copy(update={"trace_id": "own", "run_id": of.id})
    assert fitting_trace(of, (other, alike, own)) == own
    assert fitting_trace(of, (other, alike)) == alike
    assert fitting_trace(of, (other,)) is None
    named = of.model_copy(update={"trace_id": "other"})
    assert fitting_trace(named, (other, alike)) == other


def test_of_a_recipes_traces_the_one_with_steps_like_the_runs():
    of = run(step_ms=38.0)
    mark = {"recipe_fingerprint": of.recipe.fingerprint}
    near = EAGER.model_copy(update=mark | {"trace_id": "near"})
    far = trace(phase(300.0, launches=1200, busy_ms=6.2, gemm=5.3)).model_copy(update=mark | {"trace_id": "far"})
    found = fitting_trace(of, (far, near))
    assert found == near
    bar = bar_of(explained(of, trace=far))
    assert bar is not None
    assert not bar.measured  # eight times as long: another load's steps


def test_a_trace_of_another_run_is_noted():
    assert "not of this very Run" in explained(run(step_ms=38.0), trace=EAGER).notes[0]
    assert explained(run(), trace=EAGER.model_copy(update={"run_id": run().id})).notes == ()


def test_without_the_models_sizes_there_is_no_roofline():
    found = explain(run(clients=16, queue_ms=80_000.0), MACHINE)
    assert found.roofline is None
    assert found.verdict.cause == "queue"  # which needs no sizes
    assert as_document(found)["roofline"] is None


def test_a_bar_from_a_trace_is_the_whole_step():
    bar = bar_of(explained(run(step_ms=38.1), trace=EAGER))
    assert bar is not None
    assert bar.measured
    assert sum(took for _, took in bar.parts) == pytest.approx(38.0)
    assert dict(bar.parts)["weights"] == 5.3
    assert dict(bar.parts)["host gap"] == pytest.approx(31.8)


def test_a_bar_without_a_trace_is_a_floor():
    bar = bar_of(explained(run(step_ms=38.1)))
    assert bar is not None
    assert not bar.measured
    parts = dict(bar.parts)
    assert parts["weights"] == pytest.approx(4.42, abs=0.01)
    assert sum(parts.values()) == pytest.approx(38.1)
    assert UNEXPLAINED in parts
    bare = MACHINE.model_copy(update={"ceilings": (), "host": "elsewhere"})
    assert bar_of(explained(run().model_copy(update={"hardware": bare}))) is None


def test_why_int8_is_slower():
    """The same step with 40 % of its bytes, and 30 ms of unpacking."""
    int8 = recipe(quantization__scheme="torchao-int8-weight-only")
    steps = phase(60.0, launches=1600, busy_ms=33.0, gemm=0.5, dequantization=31.5, attention=0.5, elementwise=0.5)
    dense = explained(run(step_ms=38.1), trace=EAGER)
    packed = explained(run(int8, step_ms=60.0), trace=trace(steps))
    words = why_slower(dense, packed)
    assert "1.57 times as long: 60 ms against 38.1 ms" in words
    assert "51% of the bytes" in words
    assert "Most of the difference is dequantization: 31.5 ms more" in words
    assert "A profile of both" in why_slower(dense, explained(run(int8, step_ms=60.0)))
    assert "takes as long" in why_slower(dense, dense)


def test_a_server_elsewhere_has_no_ceilings_here():
    endpoint = {"model": {"source": "endpoint", "id": "http://elsewhere"}, "engine": "endpoint", "device": "auto"}
    found = explain(
        run(clients=16, queue_ms=80_000.0).model_copy(update={"recipe": recipe().replace(endpoint)}), MACHINE
    )
    assert found.case.ceilings is None
    assert (found.verdict.cause, found.verdict.change) == ("queue", None)
