"""Times of judging: which fidelities a decision lacks get one, which are known to be in vain."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_core.decision.decision import Missing
from mcp_core.decision.store import Store
from mcp_core.evaluation.fidelity_plan import make_plan
from mcp_core.evaluation.fidelity_time import fidelity_seconds, with_times
from mcp_core.evaluation.sweep_cells import check_cells
from mcp_core.hardware import detect
from mcp_core.models.catalog import resolve
from mcp_core.recipe import Recipe
from mcp_core.results import Mean
from mcp_core.sweep_plan import Axes, SweepPlan
from mcp_core.workload import Workload
from tests.tiny_llama import build_tiny_llama

SHORT = Workload(name="w", prompt_tokens=4, output_tokens=8)


@pytest.fixture
def base(tmp_path: Path) -> Recipe:
    model = {"source": "folder", "id": str(build_tiny_llama(tmp_path / "tiny"))}
    return Recipe.from_dict({"model": model, "dtype": "fp32", "threads": 1, "device": "cpu"})


def lacking(recipe: Recipe, **changes: object) -> Missing:
    return Missing(name="planted", recipe=recipe.replace(changes), why="KL not measured")


def seconds(store: Store, *missing: Missing) -> list[float | None]:
    return [each.seconds for each in with_times(missing, detect(), resolve, store)]


def test_times_are_those_of_a_sweep_and_the_noise_floor_is_found_once(base: Recipe) -> None:
    plan = SweepPlan(base=base, axes=Axes(scheme=("bnb-nf4", "bnb-int8")), workload=SHORT, fidelity=True)
    with Store() as store:
        told = fidelity_seconds(plan, check_cells(plan, detect()), detect(), store)
        found = seconds(store, *(lacking(base, **{"quantization.scheme": each}) for each in plan.axes.scheme))
        assert found == list(told)
        assert told[0] > told[1] > 0
        key = make_plan(base, detect()).floor_key
        assert key is not None
        store.keep_noise_floor(key, Mean(mean=0.001))
        assert seconds(store, lacking(base, **{"quantization.scheme": "bnb-nf4"})) == [told[1]]


def test_what_needs_no_measuring_takes_a_start_and_what_tells_nothing_is_left_out(base: Recipe) -> None:
    run = Missing(name="a Run", recipe=base, workload=SHORT, why="one start", seconds=60.0)
    random = lacking(base, model={"source": "shape", "id": "llama-3.1-8b"})
    gone = lacking(base, model={"source": "folder", "id": "/nowhere"})
    lossless = lacking(base, **{"kv.kind": "off"})
    with Store() as store:
        measured = seconds(store, lacking(base, **{"quantization.scheme": "bnb-nf4"}))[0]
        found = seconds(store, run, random, gone, lossless)
    assert measured is not None
    assert (found[:2], len(found)) == ([60.0, None], 3)
    assert found[2] is not None
    assert 0 < found[2] < measured
