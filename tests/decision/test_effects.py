"""Which stored Runs and Fidelities belong to a Recipe, and which never do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mcp_core.decision.effects import Effects, baseline_of
from mcp_core.hardware import Device, Hardware
from mcp_core.recipe import Recipe
from mcp_core.results import Divergence, Fidelity, Measurement, Memory, Quantiles, Run, StoredFidelity
from mcp_core.workload import short_chat

START = datetime(2026, 11, 20, tzinfo=UTC)
NF4 = Recipe(dtype="fp32").replace({"quantization.scheme": "bnb-nf4"})
DENSE = Recipe(dtype="fp32")


def hardware(cpu: str = "One CPU") -> Hardware:
    device = Device(id="cpu", kind="cpu", name=cpu, memory_total_bytes=16 * 10**9, memory_free_bytes=10 * 10**9)
    return Hardware(
        host="h",
        os="Linux",
        python="3.11",
        cpu=cpu,
        cores=4,
        cpu_flags=(),
        devices=(device,),
        driver=None,
        torch_cuda=None,
        libraries={},
    )


def run(recipe: Recipe, minute: int, tpot_ms: float = 30.0, **changes: Any) -> Run:
    nothing = Quantiles()
    measurement = Measurement(
        ttft_ms=nothing,
        tpot_ms=Quantiles(p50=tpot_ms, n=8),
        itl_ms=nothing,
        e2e_ms=nothing,
        duration_s=1,
        requests=8,
        completed=8,
        failed=0,
        cancelled=0,
        prompt_tokens=1,
        output_tokens=1,
        output_tok_s=1000 / tpot_ms,
        total_tok_s=None,
        requests_s=None,
    )
    values: dict[str, Any] = {
        "id": f"run-{minute}",
        "created": START + timedelta(minutes=minute),
        "recipe": recipe,
        "workload": short_chat(),
        "hardware": hardware(),
        "status": "ok",
        "measurement": measurement,
        "memory": Memory(weights_bytes=120, peak_bytes=200),
    }
    return Run(**(values | changes))


def judged(recipe: Recipe, kl: float, status: Any = "measured", text: str | None = None) -> StoredFidelity:
    divergence = Divergence(mean=kl, median=kl, p99=kl, max=kl)
    fidelity = Fidelity(status=status, kl=divergence, text_sha256=text)
    return StoredFidelity(created=START, recipe=recipe, fidelity=fidelity)


def effects(*runs: Run, fidelities: tuple[StoredFidelity, ...] = (), recipe: Recipe = NF4) -> Effects:
    newest_first = sorted(runs, key=lambda each: each.created, reverse=True)
    return Effects(recipe, hardware(), newest_first, fidelities)


def test_the_newest_run_and_the_fidelity_of_a_recipe() -> None:
    found = effects(run(NF4, 1, 50.0), run(NF4, 2, 40.0), run(DENSE, 3), fidelities=(judged(NF4, 0.2),)).of(NF4)
    assert (found.tpot_ms, found.weights_bytes, found.peak_bytes, found.kl) == (40.0, 120, 200, 0.2)


def test_nothing_measured_is_none() -> None:
    found = effects().of(NF4)
    assert (found.run, found.fidelity, found.tpot_ms, found.peak_bytes, found.kl) == (None,) * 5


def test_a_worker_resolved_device_threads_and_content_hash() -> None:
    resolved = NF4.replace({"device": "cpu", "model.sha256": "a" * 64})
    assert effects(run(resolved, 1)).of(NF4).tpot_ms == 30.0


def test_another_content_under_the_same_name_does_not_count() -> None:
    old, new = (NF4.replace({"model.sha256": letter * 64}) for letter in "ab")
    assert effects(run(old, 1), recipe=new).of(new).run is None


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "failed", "measurement": None},
        {"hardware": hardware("Another CPU")},
        {"recipe": NF4.replace({"quantization.double_quant": True})},
        {"recipe": NF4.replace({"model": {"source": "hub", "id": "a/b"}})},
    ],
)
def test_what_is_another_configuration_does_not_count(changes: dict[str, Any]) -> None:
    assert effects(run(NF4, 1).model_copy(update=changes)).of(NF4).run is None


def test_what_only_serving_reads_shares_the_fidelity_but_not_the_run() -> None:
    fewer = NF4.replace({"kv.max_context": 512})
    found = effects(run(NF4, 1), fidelities=(judged(NF4, 0.2),)).of(fewer)
    assert (found.run, found.kl) == (None, 0.2)


def test_a_runs_own_fidelity_counts_first() -> None:
    own = judged(NF4, 0.3).fidelity
    assert effects(run(NF4, 1, fidelity=own), fidelities=(judged(NF4, 0.2),)).of(NF4).kl == 0.3


def test_lossless_is_zero_and_not_measurable_is_none() -> None:
    assert effects(fidelities=(judged(NF4, 9.0, "lossless-by-test"),)).of(NF4).kl == 0.0
    assert effects(fidelities=(judged(NF4, 9.0, "not-measurable"),)).of(NF4).kl is None


def test_one_workload_for_all_the_one_with_most_configurations() -> None:
    other = short_chat().replace({"name": "other", "seed": 7})
    found = effects(run(NF4, 1), run(DENSE, 2), run(NF4, 3, 99.0, workload=other))
    assert found.workload_name == short_chat().name
    assert found.of(NF4).tpot_ms == 30.0
    newest = effects(run(NF4, 1), run(NF4, 3, 99.0, workload=other))
    assert newest.workload_name == "other"


def test_one_text_for_all_the_one_on_which_most_were_judged() -> None:
    fidelities = (judged(NF4, 0.9, text="b"), judged(NF4, 0.2, text="a"), judged(DENSE, 0.1, text="a"))
    assert effects(fidelities=fidelities).of(NF4).kl == 0.2


def test_a_point_for_each_configuration_that_is_complete() -> None:
    found = effects(run(NF4, 1), run(NF4, 2), run(DENSE, 3), fidelities=(judged(NF4, 0.2),))
    assert [each.recipe for each in found.all()] == [DENSE, NF4]
    assert [each.recipe for each in found.complete()] == [NF4]


def test_the_baseline_keeps_all_but_the_quantization() -> None:
    recipe = NF4.replace({"quantization.skip": ["a.*"], "kv.kind": "static"})
    assert baseline_of(recipe) == DENSE.replace({"kv.kind": "static"})
