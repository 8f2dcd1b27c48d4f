"""decide: the answer in a sentence, refusals with figure and limit, other loads, what to add; and the form."""

from __future__ import annotations

import json
from collections.abc import Callable

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core.goal import Goal
from tests.decision.planted import TRAFFIC, Law, machine, planted_run

OpenPage = Callable[[str], AppTest]
FAST = Law(tpot_ms=10, changes={"batching.max_requests": 7})
SLOW = Law(tpot_ms=40, changes={"batching.max_requests": 8})
NEAR = Law(tpot_ms=10.4, changes={"batching.max_requests": 9})
GOAL = {
    "users": 8,
    "workload": TRAFFIC.model_dump(mode="json"),
    "slo": {"tpot_ms": {"p95": 30}},
    "price_per_hour": 2,
}


@pytest.fixture
def planted(wb: fakes.FakeWorkbench) -> fakes.FakeWorkbench:
    """Two configurations at two loads."""
    wb.machine = machine()
    for law in (FAST, SLOW):
        _plant(wb, law, (8, 16))
    return wb


def _plant(wb: fakes.FakeWorkbench, law: Law, loads: tuple[int, ...]) -> None:
    for users in loads:
        run, records = planted_run(law, users, requests=220)
        wb.add(run)
        wb.request_records[run.id] = tuple(records)


def _open(page: OpenPage, goal: dict) -> AppTest:
    at = page("decide")
    at.query_params["goal"] = json.dumps(goal)
    return at.run()


def _texts(at: AppTest) -> str:
    return "\n".join(each.value for each in (*at.markdown, *at.caption)).replace("\\", "")


def test_empty_says_what_a_decision_needs(page: OpenPage) -> None:
    at = page("decide").run()
    assert not at.exception
    assert at.header[0].value == "Nothing has been measured yet"


def test_the_answer_the_refusal_and_the_figures(page: OpenPage, planted: fakes.FakeWorkbench) -> None:
    at = _open(page, GOAL)
    assert not at.exception
    text = _texts(at)
    assert "Measured on transformers, a candidate: fp32 · max_requests 7 serves 8 users of chat-like" in text
    assert "Holds: p95 TPOT" in text
    meets, refused = at.dataframe[0].value, at.dataframe[1].value
    assert list(meets["name"]) == ["fp32 · max_requests 7"]
    assert list(refused["cause"]) == ["latency"]
    assert refused["run"][0].startswith("runs?run=")
    assert refused["reason"][0].endswith("> 30 ms")
    figures = {each.label: each.value for each in at.metric}
    assert figures["Goodput"].endswith(" requests/s")
    assert "Cost per 1M tokens" in figures


def test_a_high_cost_is_no_power_of_ten(page: OpenPage, planted: fakes.FakeWorkbench) -> None:
    at = _open(page, GOAL | {"price_per_hour": 40_000.0})
    (cost,) = at.dataframe[0].value["cost"]
    assert cost >= 1000
    assert cost == float(f"{cost:.3g}")
    assert json.loads(at.dataframe[0].proto.columns)["cost"]["type_config"]["format"] == "localized"
    assert "e+" not in _texts(at)


def test_columns_that_tell_nothing_leave_their_room_and_commands_are_whole(
    page: OpenPage, planted: fakes.FakeWorkbench
) -> None:
    """Every row is at the users that were asked for: only a capacity beyond them has a column."""
    _plant(planted, NEAR, (8,))
    at = _open(page, GOAL | {"slo": {"tpot_ms": {"p95": 90}}})
    assert not at.exception
    meets = at.dataframe[0]
    assert len(meets.value) == 3
    assert "load" not in meets.proto.column_order
    assert ("capacity" in meets.proto.column_order) == any(meets.value["capacity"] != meets.value["load"])
    (lacking,) = [each for each in at.dataframe if "repeats" in each.value]
    assert "command" not in lacking.proto.column_order
    shown = "\n".join(each.value for each in at.code)
    assert all(command in shown for command in lacking.value["command"])


def test_a_change_of_the_form_decides_anew_and_the_link_carries_it(
    page: OpenPage, planted: fakes.FakeWorkbench
) -> None:
    at = _open(page, GOAL)
    next(each for each in at.number_input if each.label == "TPOT (ms)").set_value(100.0).run()
    assert not at.exception
    assert len(at.dataframe[0].value) == 2
    assert Goal.from_json(at.query_params["goal"]).slo.tpot_ms.p95 == 100
    assert "Runner-up: **fp32" in _texts(at)


def test_another_load_is_ranked_from_measured_points(page: OpenPage, planted: fakes.FakeWorkbench) -> None:
    at = _open(page, GOAL)
    slider = at.select_slider[0]
    assert list(slider.options) == ["8", "16"]
    slider.set_value(16).run()
    assert not at.exception
    assert "At 16 users: **fp32 · max_requests 7**; 1 refused." in _texts(at)


def test_another_load_is_of_the_same_workload_and_model(page: OpenPage, planted: fakes.FakeWorkbench) -> None:
    """Without a workload in the Goal: one load more of another traffic, and more configurations under it."""
    for number in range(3):
        run, _ = planted_run(Law(changes={"batching.max_requests": 20 + number}), 4, requests=220)
        planted.add(
            run.model_copy(update={"workload": run.workload.replace({"prompt_tokens": 7, "name": "other"})})
        )
    at = _open(page, {"users": 16})
    slider = at.select_slider[0]
    assert list(slider.options) == ["8", "16"]
    slider.set_value(8).run()
    assert "At 8 users: **fp32 · max_requests 7**" in _texts(at)


def test_one_user_is_one_user(page: OpenPage, planted: fakes.FakeWorkbench) -> None:
    _plant(planted, FAST, (1,))
    at = _open(page, GOAL)
    assert at.select_slider[0].value == 8
    at.select_slider[0].set_value(1).run()
    assert "At 1 user: **fp32" in _texts(at)


def test_near_ones_are_undecided_with_a_button_that_queues_in_turn(
    page: OpenPage, planted: fakes.FakeWorkbench
) -> None:
    _plant(planted, NEAR, (8,))
    at = _open(page, GOAL)
    assert "the data cannot tell it from" in _texts(at)
    button = at.button(key="queue-missing")
    assert button.label.startswith("Queue ")
    button.click().run()
    assert not at.exception
    plans = [call[1] for call in planted.calls if call[0] == "start_sweep"]
    assert {plan.base.batching.max_requests for plan in plans} == {7, 9}
    assert plans[0].base != plans[1].base  # A B A B
    assert plans[0].workload.repeat < plans[2].workload.repeat


def test_what_only_another_machine_can_measure_is_not_queued_here(
    page: OpenPage, planted: fakes.FakeWorkbench
) -> None:
    _plant(planted, NEAR, (8,))
    planted.machine = fakes.hardware()
    at = _open(page, GOAL)
    assert not at.exception
    assert "This machine has no Planted GPU: measure them there" in _texts(at)
    assert "queue-missing" not in {each.key for each in at.button}
    assert "mcp-core bench" in at.code[0].value


def test_a_fidelity_that_a_limit_lacks_is_queued_with_the_runs(
    page: OpenPage, planted: fakes.FakeWorkbench
) -> None:
    """FAST and SLOW have the same numbers, so that one judgement tells of both."""
    at = _open(page, GOAL | {"slo": {"tpot_ms": {"p95": 90}}, "fidelity": {"kl_over_floor_max": 30}})
    assert not at.exception
    (lacking,) = [each.value for each in at.dataframe if "repeats" in each.value]
    assert list(lacking["name"]) == ["fidelity of fp32 · max_requests 7"]
    assert lacking["why"][0] == "KL not measured; it holds for 1 more of the same numbers"
    assert lacking["time"][0].startswith("about ")
    button = at.button(key="queue-missing")
    assert button.label.startswith("Queue 1 fidelity measurement, about ")
    button.click().run()
    assert not at.exception
    ((_, recipe, *_),) = [call for call in planted.calls if call[0] == "start_fidelity"]
    assert recipe == FAST.recipe
    assert not [call for call in planted.calls if call[0] == "start_sweep"]


def test_a_contradiction_is_said_and_nothing_decided(page: OpenPage, planted: fakes.FakeWorkbench) -> None:
    at = _open(page, {"users": 8, "rate_s": 2})
    assert not at.exception
    assert "users and rate" in at.warning[0].value
    assert len(at.dataframe) == 0


def test_an_impossible_limit_is_named(page: OpenPage, planted: fakes.FakeWorkbench) -> None:
    at = _open(page, GOAL | {"slo": {"tpot_ms": {"p50": 0.5}}})
    assert not at.exception
    assert "p50 TPOT alone excludes every configuration" in _texts(at)
    assert len(at.dataframe[0].value) == 2


@pytest.mark.parametrize(
    "limits",
    [
        {"memory_bytes": 1},
        {"rate_s": 0.001, "users": None},
        {"slo": {"ttft_ms": {"p95": 0.0001}}},
        {"fidelity": {"kl_max": 0.00001}},
        {"fidelity": {"kl_max": 0.02, "top1_min": 0.98}},
        {"models": ["never-measured"]},
    ],
)
def test_a_link_decides_by_all_that_it_says(page: OpenPage, planted: fakes.FakeWorkbench, limits: dict) -> None:
    """Also by what is less than one can type here, or more than this form shows."""
    at = _open(page, GOAL | limits)
    assert not at.exception
    asked = Goal.from_dict({name: each for name, each in (GOAL | limits).items() if each is not None})
    assert Goal.from_json(at.query_params["goal"]) == asked


def test_published_limits_fill_the_form(page: OpenPage, planted: fakes.FakeWorkbench) -> None:
    at = _open(page, GOAL)
    at.button(key="goal-preset-mlperf-chat").click().run()
    assert not at.exception
    limits = {each.label: each.value for each in at.number_input}
    assert limits["TTFT (ms)"] == 500
    assert limits["TPOT (ms)"] == 30


def test_use_this_recipe(page: OpenPage, planted: fakes.FakeWorkbench) -> None:
    at = _open(page, GOAL)
    at.button(key="use-winner").click().run()
    assert at.session_state["mcp_recipe"] == FAST.recipe


MANY = GOAL | {
    "slo": {"tpot_ms": {"p50": 20, "p90": 25, "p95": 30}, "ttft_ms": {"p95": 5000}},
    "fidelity": {"kl_max": 0.02, "top1_min": 0.98},
    "device": "Example CPU",
    "name": "for the desk",
}


def _dropped(at: AppTest, words: str) -> AppTest:
    (button,) = [each for each in at.button if each.label.replace("\\", "") == words]
    return button.click().run()


def test_every_limit_that_holds_is_shown_and_can_be_dropped(page: OpenPage, planted: fakes.FakeWorkbench) -> None:
    at = _open(page, MANY)
    assert not at.exception
    drops = {each.label.replace("\\", "") for each in at.button if each.key and each.key.startswith("drop-")}
    shown = {"p50 TPOT ≤ 20 ms", "p90 TPOT ≤ 25 ms", "KL ≤ 0.02 nats", "Measured on Example CPU"}
    assert drops == shown
    assert "These limits hold too" in _texts(at)
    at = _dropped(at, "p50 TPOT ≤ 20 ms")
    at = _dropped(at, "Measured on Example CPU")
    at = _dropped(at, "KL ≤ 0.02 nats")
    assert not at.exception
    asked = Goal.from_json(at.query_params["goal"])
    assert asked.slo.tpot_ms.model_dump(exclude_none=True) == {"p90": 25, "p95": 30}
    assert asked.fidelity.model_dump(exclude_none=True) == {"top1_min": 0.98}
    assert (asked.device, asked.name) == (None, "for the desk")


def test_emptying_a_field_drops_its_own_limit_only(page: OpenPage, planted: fakes.FakeWorkbench) -> None:
    at = _open(page, MANY)
    next(each for each in at.number_input if each.label == "TPOT (ms)").set_value(None).run()
    at.run()
    at.run()
    assert not at.exception
    asked = Goal.from_json(at.query_params["goal"])
    assert asked.slo.tpot_ms.model_dump(exclude_none=True) == {"p50": 20, "p90": 25}
    assert asked.slo.ttft_ms.p95 == 5000


def test_a_field_cannot_choose_what_is_listed_beside_it(page: OpenPage, planted: fakes.FakeWorkbench) -> None:
    at = _open(page, MANY)
    choices = {each.key: each.options for each in at.selectbox if each.key}
    (tpot,) = [options for key, options in choices.items() if key.startswith("goal-tpot_ms-of")]
    assert tpot == ["p95", "p99", "mean"]
