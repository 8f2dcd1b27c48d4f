"""Goal: read, refused by name, limits in order."""

from __future__ import annotations

import pytest

from mcp_core.errors import GoalError, ModelNotFound
from mcp_core.goal import Goal, Limit
from mcp_core.workload import Workload, chat

DESIGN = """{"workload": "chat", "slo": {"ttft_ms": {"p95": 500}, "tpot_ms": {"p95": 50}},
  "fidelity": {"top1_min": 0.98}, "users": 40, "memory_bytes": 80e9, "price_per_hour": 2.5}"""


def test_the_goal_of_the_design_reads_and_comes_back():
    goal = Goal.from_json(DESIGN)
    assert goal.slo.limits() == (Limit("ttft_ms", "p95", 500.0), Limit("tpot_ms", "p95", 50.0))
    assert goal.traffic() == chat()
    assert Goal.from_json(goal.to_json()) == goal
    assert Goal.from_json("{}") == Goal()


def test_rate_is_another_word_for_requests_a_second():
    assert Goal.from_dict({"rate": 2}).rate_s == Goal.from_dict({"rate_s": 2}).rate_s == 2


def test_a_workload_can_be_given_whole():
    given = Workload(name="mine", requests=7)
    assert Goal.from_dict({"workload": given.model_dump(mode="json")}).traffic() == given


def test_one_request_is_judged_by_the_limit_of_the_tail():
    slo = Goal.from_dict({"slo": {"ttft_ms": {"p50": 100, "p99": 900, "mean": 50}}}).slo
    assert slo.per_request() == (Limit("ttft_ms", "p99", 900.0),)
    assert [each.statistic for each in slo.limits()] == ["mean", "p50", "p99"]


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"users": 4, "rate_s": 2}, "not valid: users and rate_s"),
        ({"slo": {"ttft_ms": {"p50": 500, "p95": 400}}}, "p95 400 ms is below p50 500 ms"),
        ({"slo": {"ttft_ms": {"p95": -1}}}, "slo.ttft_ms.p95"),
        ({"slo": {"ttft": {"p95": 1}}}, "slo.ttft"),
        ({"slo": {"ttft_ms": {"p96": 1}}}, "slo.ttft_ms.p96"),
        ({"fidelity": {"top1_min": 98}}, "fidelity.top1_min"),
        ({"users": 0}, "users"),
        ([], "document"),
    ],
)
def test_what_is_wrong_is_named(document, named):
    with pytest.raises(GoalError, match=named.replace(".", r"\.")) as raised:
        Goal.from_dict(document)
    assert raised.value.hint


@pytest.mark.parametrize("text", ["{", "NaN", '{"memory_bytes": NaN}', '{"price_per_hour": Infinity}', ""])
def test_what_is_no_number_or_no_json_is_refused(text):
    with pytest.raises(GoalError):
        Goal.from_json(text)


def test_a_workload_of_no_preset_is_refused():
    with pytest.raises(ModelNotFound, match="nonsense"):
        Goal.from_dict({"workload": "nonsense"})
