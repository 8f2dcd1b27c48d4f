from __future__ import annotations

import math
import statistics

import pytest

from mcp_core.errors import InputError
from mcp_core.evaluation import experiment_results
from mcp_core.evaluation.experiment_values import Agreement, Comparison, ExperimentResult, Ratio, median_ratio
from mcp_core.evaluation.experiments import EXPERIMENTS, experiment, verdict, why_not
from mcp_core.hardware import Device, Hardware
from mcp_core.recipe import Recipe
from mcp_core.results import now


def machine(name: str = "Test CPU") -> Hardware:
    cpu = Device(id="cpu", kind="cpu", name=name, memory_total_bytes=16 * 10**9, memory_free_bytes=8 * 10**9)
    return Hardware(
        host="laptop",
        os="Linux",
        python="3.11",
        cpu=name,
        cores=4,
        cpu_flags=(),
        devices=(cpu,),
        libraries={"torch": "2.13"},
    )


def comparison(
    value: float, low: float, high: float, before: int | None = 100, after: int | None = 100
) -> Comparison:
    return Comparison(
        what="Prompt",
        baseline="a",
        changed="b",
        baseline_ms=1,
        changed_ms=value,
        ratio=Ratio(value=value, low=low, high=high, coverage=0.98),
        repeats=7,
        baseline_peak_bytes=before,
        changed_peak_bytes=after,
    )


def result(name: str, *comparisons: Comparison, **changes: object) -> ExperimentResult:
    base = ExperimentResult(
        name=name,
        model="m",
        device="cpu",
        device_name="Test CPU",
        dtype="fp32",
        threads=1,
        created=now(),
        seconds=1,
        comparisons=comparisons,
    )
    return base.model_copy(update=changes)


def test_the_median_ratio_is_of_pairs_and_its_interval_of_order_statistics() -> None:
    baseline = [1.0, 2.0, 4.0, 1.0, 1.0, 1.0, 1.0]  # a machine that slows down for a while slows both ways
    planted = [3.0, 2.9, 3.1, 3.05, 2.95, 3.2, 2.8]
    ratio = median_ratio(baseline, [b * r for b, r in zip(baseline, planted, strict=True)])
    assert ratio.value == pytest.approx(3.0)
    assert (ratio.low, ratio.high) == (pytest.approx(2.8), pytest.approx(3.2))
    assert ratio.coverage == pytest.approx(1 - 2 / 2**7)


def test_more_pairs_leave_outliers_out_of_the_interval() -> None:
    ratios = [*[1.0 + at / 100 for at in range(19)], 50.0]
    found = median_ratio([1.0] * 20, ratios)
    assert found.value == pytest.approx(statistics.median(ratios))
    assert found.high < 2
    below = sum(math.comb(20, k) for k in range(6))  # the 6th smallest and largest of twenty: 95.9 %
    assert (found.low, found.coverage) == (pytest.approx(1.05), pytest.approx(1 - 2 * below / 2**20))


def test_few_pairs_give_their_range_and_say_how_sure_that_is() -> None:
    found = median_ratio([1, 1, 1], [2, 3, 4])
    assert (found.low, found.high, found.coverage) == (2, 4, 0.75)


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (1.2, 0.9, 1.3, "no measurable difference in time"),
        (1.01, 1.005, 1.02, "no measurable difference in time"),
        (1.22, 1.2, 1.25, "22% more time"),
        (0.7, 0.6, 0.8, "30% less time"),
        (12.3, 11, 13, "12 times the time"),
        (0.25, 0.2, 0.3, "4.0 times as fast"),
    ],
)
def test_verdicts_in_words(value: float, low: float, high: float, words: str) -> None:
    assert f"Prompt: {words}; no difference in memory." in verdict(result("autocast", comparison(value, low, high)))


def test_verdicts_of_memory_and_answers() -> None:
    less = result("tf32", comparison(1, 0.9, 1.1, 100, 56), agreement=Agreement(tokens=9, identical=True))
    assert verdict(less).endswith("44% less memory. The same tokens.")
    unknown = result("tf32", comparison(1, 0.9, 1.1, None, None), agreement=Agreement(tokens=9, identical=False))
    assert "memory was not measured. Other tokens" in verdict(unknown)
    lossy = result("tf32", comparison(1, 0.9, 1.1), agreement=Agreement(tokens=9, top1=0.5, kl_mean=0.25))
    assert verdict(lossy).endswith("Top-1 agreement 50.0%, KL 0.25 nats.")


def test_gradient_checkpointing_is_training_only() -> None:
    training, serving = comparison(1.22, 1.2, 1.25, 100, 56), comparison(1.0, 0.99, 1.01)
    assert verdict(result("gradient-checkpointing", training, serving)) == (
        "Training only: 44% less memory, 22% more time. Inference: no measurable difference in time."
    )


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_both_ways_differ_in_what_is_tried_and_in_nothing_else(name: str) -> None:
    asked = Recipe(threads=3).replace({"model.id": "llama-2-7b", "model.source": "shape", "kv.kind": "static"})
    what = experiment(name)
    before, after = what.recipes(asked)
    assert (before.model, before.threads, before.kv.kind) == (asked.model, 3, "dynamic")
    assert after == before.replace(what.changed)
    assert (before == after) == (name == "gradient-checkpointing")


def test_what_this_machine_cannot_do_has_its_reason() -> None:
    assert "a CPU has none" in str(why_not("tf32", Recipe(), machine()))
    assert "cuDNN" in str(why_not("cudnn-benchmark", Recipe(), machine()))
    assert why_not("kv-cache-off", Recipe(), machine()) is None


def test_an_unknown_name_is_an_input_error() -> None:
    with pytest.raises(InputError, match='no experiment "magic"'):
        experiment("magic")


def test_the_latest_result_on_this_machine_survives_a_restart() -> None:
    first, second = (result("autocast", comparison(value, 0.9, 1.1)) for value in (1.0, 1.05))
    elsewhere = result("tf32", comparison(1, 0.9, 1.1), device_name="H100")
    for each in (first, second, elsewhere):
        experiment_results.keep(each)
    assert experiment_results.latest(machine()) == {"autocast": second}
    assert experiment_results.latest(machine("Other CPU")) == {}
    assert set(experiment_results.latest(machine("H100"))) == {"tf32"}


def test_a_wreck_is_passed_over(home) -> None:
    experiment_results.keep(result("autocast", comparison(1, 0.9, 1.1)))
    next((home / "experiments").glob("*.json")).write_text("{")
    assert experiment_results.latest(machine()) == {}
