"""The advisor's checklist: each practice done, worth trying, or not applicable; and what it was worth."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from mcp_core.decision.advisor import GROUPS, Item, advise
from mcp_core.decision.counterparts import counterpart
from mcp_core.decision.recipe_changes import changed_fields, with_companions
from mcp_core.evaluation.experiment_values import Comparison, ExperimentResult, Ratio
from mcp_core.llama_cpp import with_engine
from mcp_core.recipe import Recipe
from mcp_core.results import Memory, Run, now
from tests.decision.planted import Law, machine, planted_run
from tests.evaluation.why_cases import MACHINE, recipe, run

LAPTOP = MACHINE.model_copy(update={"devices": MACHINE.devices[:1], "torch_cuda": None, "ceilings": ()})


def item(title: str, asked: Recipe, machine=MACHINE, **known: Any) -> Item:
    return next(each for each in advise(asked, machine, **known) if each.title == title)


def test_llama_cpp_is_told_what_its_flash_attention_costs():
    asked = with_engine(Recipe(), "llama.cpp")
    machine = LAPTOP.model_copy(update={"libraries": {"xllamacpp": "2026.10"}})
    assert item("Efficient attention", asked, machine).status == "done"
    found = item("Efficient attention", asked.replace({"attention": "eager"}), machine)
    assert (found.status, found.fields) == ("worth trying", {"attention": "sdpa"})
    assert "half as long again" in found.expected


def test_every_group_of_the_article_is_there_in_its_order():
    found = advise(recipe(), MACHINE)
    assert list(dict.fromkeys(each.group for each in found)) == list(GROUPS)
    assert all(each.reason for each in found)
    assert all((each.change is not None) == (each.status == "worth trying") for each in found)


@pytest.mark.parametrize("machine", [MACHINE, LAPTOP])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "fp32", "attention": "eager", "kv.kind": "off"},
        {"quantization.scheme": "bnb-nf4", "batching.mode": "continuous", "prefix_cache": True},
        {"model": {"source": "bundled", "id": "smollm2-135m-instruct"}, "dtype": "fp32"},
    ],
)
def test_what_is_worth_trying_can_run_here(machine, changes):
    asked = recipe().replace({"device": "auto"} | changes)
    before = set(asked.conflicts(machine))
    for each in advise(asked, machine):
        if each.change is not None:
            assert set(each.change.conflicts(machine)) <= before
            assert each.fields


@pytest.mark.parametrize(
    ("title", "changes", "status"),
    [
        ("Quantization", {}, "worth trying"),
        ("Quantization", {"quantization.scheme": "bnb-nf4"}, "done"),
        ("Gradient checkpointing", {}, "not applicable"),
        ("Efficient attention", {}, "done"),
        ("Efficient attention", {"attention": "eager"}, "worth trying"),
        ("Batching", {}, "worth trying"),
        ("Batching", {"batching.mode": "continuous"}, "done"),
        ("KV cache", {}, "done"),
        ("KV cache", {"kv.kind": "off"}, "worth trying"),
        ("Mixed precision", {}, "done"),
        ("Mixed precision", {"dtype": "fp32"}, "worth trying"),
        ("TF32", {"dtype": "fp32"}, "worth trying"),
        ("TF32", {"dtype": "fp32", "switches.tf32": True}, "done"),
        ("Load balancing", {}, "not applicable"),
        ("Levels", {}, "worth trying"),
        ("Levels", {"prefix_cache": True}, "done"),
        ("Hit rates", {}, "not applicable"),
    ],
)
def test_statuses(title, changes, status):
    assert item(title, recipe().replace(changes)).status == status


@pytest.mark.parametrize(
    ("title", "changes", "machine", "words"),
    [
        ("TF32", {}, MACHINE, "computes in bf16"),
        ("TF32", {"dtype": "fp32", "device": "auto"}, LAPTOP, "a CPU has none"),
        ("Automatic mixed precision (autocast)", {}, MACHINE, "bf16 already"),
        ("Several GPUs", {}, MACHINE, "one NVIDIA device"),
        ("Several GPUs", {"device": "auto"}, LAPTOP, "no NVIDIA device"),
    ],
)
def test_reasons_are_those_of_the_conflicts(title, changes, machine, words):
    found = item(title, recipe().replace(changes), machine)
    assert found.status == "not applicable"
    assert words in found.reason


def test_bf16_is_not_advised_where_it_was_measured_to_be_slower():
    (ceilings,) = MACHINE.ceilings
    slow = ceilings.model_copy(update={"matmul_flop_s": {"fp32": 100e9, "bf16": 20e9}})
    found = item("Mixed precision", recipe(dtype="fp32"), MACHINE.model_copy(update={"ceilings": (slow,)}))
    assert (found.status, "0.20 times" in found.reason) == ("not applicable", True)
    fast = item("Mixed precision", recipe(dtype="fp32"))
    assert "15.6 times the rate, measured here" in fast.expected


def kept(of: Run, run_id: str, peak: int) -> Run:
    return of.model_copy(update={"id": run_id, "memory": Memory(peak_bytes=peak)})


def test_what_two_runs_measured_stands_beside_the_advice():
    off = kept(run(clients=16, queue_ms=60_000.0), "off", 10_000)
    batched = kept(run(recipe(batching__mode="continuous"), clients=16, at_once=16), "batched", 12_000)
    found = item("Batching", recipe(), runs=(batched, off))
    assert (found.status, found.run_id) == ("worth trying", "batched")
    assert "12.7" in found.measured or "times the output tokens/s" in found.measured
    assert "1.20 times the peak memory" in found.measured
    done = item("Batching", recipe(batching__mode="continuous"), runs=(batched, off))
    assert (done.status, done.run_id, done.measured) == ("done", "off", found.measured)


def test_runs_of_another_machine_or_workload_do_not_count():
    off = kept(run(clients=16), "off", 10)
    batched = kept(run(recipe(batching__mode="continuous"), clients=16), "batched", 10)
    elsewhere = batched.model_copy(update={"hardware": MACHINE.model_copy(update={"host": "x"})})
    fewer = batched.model_copy(update={"workload": batched.workload.replace({"concurrency": 2})})
    assert item("Batching", recipe(), runs=(elsewhere, fewer, off)).measured == ""


def test_an_experiment_stands_where_there_are_no_runs():
    compared = Comparison(
        what="Prompt of 64 tokens",
        baseline="off",
        changed="on",
        baseline_ms=10.0,
        changed_ms=10.0,
        ratio=Ratio(value=1.0, low=0.99, high=1.01, coverage=0.97),
        repeats=7,
    )
    result = ExperimentResult(
        name="gradient-checkpointing",
        model="tiny",
        device="cpu",
        device_name="CPU",
        dtype="fp32",
        threads=1,
        created=now(),
        seconds=1.0,
        comparisons=(compared, compared),
    )
    found = item("Gradient checkpointing", recipe(), experiments={"gradient-checkpointing": result})
    assert "Inference: no measurable difference in time" in found.measured
    assert "Tried on tiny" in found.measured


@pytest.mark.parametrize(("preemptions", "status"), [(0, "done"), (8, "worth trying")])
def test_the_size_of_the_pool(preemptions, status):
    asked = recipe(batching__mode="continuous", batching__kv_blocks=64)
    of = run(asked, clients=16, kv_capacity_tokens=1024, preemptions=preemptions)
    found = item("Sizes", asked, runs=(of,))
    assert found.status == status
    if found.change is not None:
        assert found.change.batching.kv_blocks == 128
    assert item("Sizes", asked).status == "not applicable"  # nothing measured


def test_the_hit_rate_of_the_newest_run():
    asked = recipe(batching__mode="continuous", prefix_cache=True)
    of = run(asked, cached_prompt_tokens=6144, prompt_tokens=2048)
    assert "75% of 8,192 prompt tokens" in item("Hit rates", asked, runs=(of,)).reason


def test_counterparts_are_the_newest_and_of_the_same_work():
    one, other = run(), recipe(compile="graphs")
    old = run(other).model_copy(update={"id": "old"})
    new = old.model_copy(update={"id": "new", "created": old.created + timedelta(hours=1)})
    repeated = new.model_copy(update={"id": "repeated", "workload": new.workload.replace({"repeat": 3})})
    failed = new.model_copy(update={"id": "failed", "status": "failed"})
    found = counterpart(one, other, (old, new, failed))
    assert found is not None
    assert found.id == "new"
    assert counterpart(one, other, (repeated,)) == repeated  # new prompts of the same lengths
    assert counterpart(one, one.recipe, (one,)) is None  # not itself


def test_fields_of_a_change():
    before = recipe(attention="eager")
    first, second = with_companions(before, {"batching.mode": "continuous"})
    assert changed_fields(before, first) == {"batching.mode": "continuous"}
    assert changed_fields(before, second) == {"batching.mode": "continuous", "attention": "sdpa"}
    assert changed_fields(before, before) == {}


def test_a_counterpart_is_of_the_same_card():
    changed = Law(changes={"dtype": "fp16"})
    one, other = (planted_run(law, 8, requests=4, hardware=machine(card="a"))[0] for law in (Law(), changed))
    elsewhere, _ = planted_run(changed, 8, requests=4, hardware=machine(card="b"))
    moved, _ = planted_run(changed, 8, requests=4, hardware=machine(card="a", host="renamed"))
    unknown, _ = planted_run(changed, 8, requests=4)
    assert counterpart(one, changed.recipe, (other, elsewhere)) == other
    assert counterpart(one, changed.recipe, (elsewhere,)) is None
    assert counterpart(one, changed.recipe, (moved,)) == moved
    assert counterpart(one, changed.recipe, (unknown,)) == unknown  # as before cards were kept: by the host
