from __future__ import annotations

import json

import pytest

from mcp_core.errors import InputError, WorkloadError
from mcp_core.goal import Goal, Slo
from mcp_core.goal_presets import goal_preset
from mcp_core.hardware import detect
from mcp_core.presets import recipe_preset
from mcp_core.recipe import Recipe
from mcp_core.sweep_plan import Axes, BatchingChoice, SweepPlan
from mcp_core.sweep_presets import PLANS, sweep_preset
from mcp_core.workload import Workload, workload_preset

WORKLOAD = Workload(name="w", concurrency=4)


def plan(**fields: object) -> SweepPlan:
    return SweepPlan.from_dict({"base": {"dtype": "fp32"}, "workload": {"name": "w", "concurrency": 4}} | fields)


def test_cells_are_the_product_and_neighbours_share_a_worker() -> None:
    axes = {"scheme": ["none", "bnb-nf4"], "batching": ["off", {"mode": "continuous", "max_requests": 16}]}
    cells = plan(axes=axes).cells()
    assert [cell.name for cell in cells] == [
        "unquantized · off",
        "unquantized · continuous 16",
        "bnb-nf4 · off",
        "bnb-nf4 · continuous 16",
    ]
    keys = [cell.load_key for cell in cells]
    assert keys[0] == keys[1] != keys[2] == keys[3]
    assert cells[3].recipe.batching.max_requests == 16
    assert cells[3].recipe.quantization.scheme == "bnb-nf4"


def test_an_axis_left_empty_keeps_the_base() -> None:
    (cell,) = plan().cells()
    assert (cell.name, cell.recipe) == ("as it is", Recipe(dtype="fp32"))


def test_llama_cpp_takes_over_what_it_reads_and_shares_no_worker_between_slots() -> None:
    sizes = [{"mode": "continuous", "max_requests": 4}, {"mode": "continuous", "max_requests": 8}]
    axes = {"engine": ["llama.cpp"], "scheme": ["gguf"], "batching": sizes}
    four, eight = plan(axes=axes).cells()
    assert four.recipe.engine == "llama.cpp"
    assert four.recipe.load_key == eight.recipe.load_key
    assert four.load_key != eight.load_key


def test_each_stage_has_prompts_of_its_own_and_cells_are_paired() -> None:
    asked = plan(axes={"scheme": ["none", "bnb-nf4"]}, probe_s=5, capacity_s=50, confirm_s=20)
    one, other = asked.cells()
    probe, measure = asked.workload_of("probe", one), asked.workload_of("measure", one)
    confirms = [asked.workload_of("confirm", one, start) for start in range(3)]
    assert (probe.duration_s, measure.duration_s, confirms[0].duration_s) == (5, 50, 20)
    assert (probe.timeout_s, measure.timeout_s) == (60, 150)
    assert len({each.repeat for each in (probe, measure, *confirms)}) == 5
    assert asked.workload_of("probe", other) == probe
    cached = plan(base={"prefix_cache": True, "batching": {"mode": "continuous"}}, axes={"dtype": ["fp32", "bf16"]})
    first, second = cached.cells()
    assert cached.workload_of("probe", first).repeat != cached.workload_of("probe", second).repeat


def test_the_goal_sets_the_load() -> None:
    def load(goal: Goal) -> Workload:
        return SweepPlan(workload=WORKLOAD, goal=goal).load()

    assert load(Goal(users=9)).concurrency == 9
    assert (load(Goal(rate_s=2.5)).arrivals.kind, load(Goal(rate_s=2.5)).arrivals.rate_s) == ("poisson", 2.5)
    assert load(Goal()) == WORKLOAD
    limits = Slo.model_validate({"ttft_ms": {"p90": 500}})
    assert SweepPlan(workload=WORKLOAD, goal=Goal(slo=limits)).seeks_capacity
    assert not SweepPlan(workload=WORKLOAD, goal=Goal(slo=limits, users=4)).seeks_capacity


def test_a_plan_survives_json_and_its_fingerprint_is_not_its_name() -> None:
    axes = Axes(scheme=("none", "bnb-nf4"), batching=(BatchingChoice(mode="off"),))
    asked = SweepPlan(name="a", workload=WORKLOAD, axes=axes, goal=Goal(users=4))
    again = SweepPlan.from_json(asked.to_json())
    assert again == asked
    assert again.model_copy(update={"name": "b"}).fingerprint == asked.fingerprint
    assert again.model_copy(update={"keep": 2}).fingerprint != asked.fingerprint


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "document"),
        ("{}", "workload"),
        ({"axes": {"scheme": ["nf5"]}}, "axes.scheme"),
        ({"axes": {"scheme": ["none", "none"]}}, "names a value twice"),
        ({"axes": {"colour": ["red"]}}, "axes.colour"),
        ({"axes": {"max_context": list(range(100, 2200))}}, "at most 2,000"),
        ({"keep": 0}, "keep"),
    ],
)
def test_a_bad_plan_names_its_field(document: object, said: str) -> None:
    if isinstance(document, dict):
        document = json.dumps({"workload": {"name": "w"}} | document)
    with pytest.raises(InputError, match=said):
        SweepPlan.from_json(str(document))


def test_a_preset_stands_for_its_document() -> None:
    by_name = SweepPlan.from_json('{"base": "bundled", "workload": "chat", "goal": "mlperf-chat"}')
    whole = SweepPlan(
        base=recipe_preset("bundled"), workload=workload_preset("chat"), goal=goal_preset("mlperf-chat")
    )
    assert by_name == whole
    assert by_name.fingerprint == whole.fingerprint
    assert '"prompt_tokens"' in by_name.to_json()
    for field in ("base", "workload", "goal"):
        with pytest.raises(InputError, match=rf'{field}: There is no .*"nowhere". There are: ') as caught:
            SweepPlan.from_dict({"workload": "chat"} | {field: "nowhere"})
        assert ".." not in caught.value.message


@pytest.mark.parametrize("name", PLANS)
def test_every_preset_makes_cells(name: str) -> None:
    asked = sweep_preset(name, detect())
    assert len({cell.recipe.fingerprint for cell in asked.cells()}) == len(asked.cells())


def test_an_open_ramp_has_no_users() -> None:
    ramp = Workload(name="ramp", arrivals={"kind": "ramp", "rate_s": 1, "end_rate_s": 2})
    assert SweepPlan(workload=ramp, goal=Goal(users=3)).load().concurrency == 3
    with pytest.raises(WorkloadError):
        SweepPlan(workload=ramp, goal=Goal(rate_s=3)).load()
