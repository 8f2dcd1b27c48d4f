"""A Decision goes to JSON and back unchanged; a broken one is refused by its field."""

from __future__ import annotations

import json

import pytest

from mcp_core.decision.decision import Choice, Decision, Figures, LoadPoint, Missing, Refused
from mcp_core.errors import InputError
from mcp_core.goal import Goal
from mcp_core.presets import bundled
from mcp_core.workload import chat


def _choice(run: str) -> Choice:
    return Choice(
        run=run,
        runs=(run,),
        name="bf16",
        recipe=bundled(),
        workload=chat(),
        load=8,
        starts=1,
        figures=Figures(output_tok_s=12.5),
        evidence="measured",
        evidence_text="measured on transformers",
        points=(LoadPoint(load=8, run=run, meets=True),),
        capacity=8,
    )


def _decision() -> Decision:
    return Decision(
        goal=Goal(users=8),
        answer="Candidate: bf16.",
        winner=_choice("a"),
        runners_up=(_choice("b"),),
        refused=(Refused(run="c", name="int8", recipe=bundled(), cause="slo", reason="p95 TTFT 812 > 500 ms"),),
        missing=(Missing(name="int8", recipe=bundled(), workload=chat(), why="one start", seconds=60.0),),
        evidence="measured",
    )


def test_round_trip():
    decision = _decision()
    assert Decision.from_json(decision.to_json()) == decision
    assert decision.runner_up is not None
    assert decision.runner_up.run == "b"
    assert not decision.is_recommendation


def test_the_keys_that_others_rely_on():
    document = json.loads(_decision().to_json())
    assert {"winner", "runners_up", "refused", "evidence"} <= document.keys()
    assert {"run", "reason"} <= document["refused"][0].keys()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"goal": {}, "answer": "x", "winner": 3}'])
def test_what_is_no_decision_is_refused(text):
    with pytest.raises(InputError, match="Decision"):
        Decision.from_json(text)
