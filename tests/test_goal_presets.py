from __future__ import annotations

import pytest

from mcp_core.errors import ModelNotFound
from mcp_core.goal import Goal
from mcp_core.goal_presets import GOALS, goal_preset
from mcp_core.workload import WORKLOADS


@pytest.mark.parametrize("name", GOALS)
def test_a_goal_preset_is_of_its_workload_and_names_its_source(name):
    goal = goal_preset(name)
    assert goal.name == name
    assert goal.workload in WORKLOADS
    assert "MLPerf Inference" in GOALS[name].__doc__
    assert all(limit.statistic == "p99" for limit in goal.slo.limits())
    for limit in goal.slo.limits():
        assert f"{limit.limit_ms:,.0f} ms" in GOALS[name].__doc__
    assert Goal.from_json(goal.to_json()) == goal


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ModelNotFound, match="nonsense") as raised:
        goal_preset("nonsense")
    assert "summarization" in raised.value.hint
