from __future__ import annotations

import pytest

from mcp_core.errors import InputError
from mcp_core.evaluation.speedscope import flame_graph
from tests.evaluation.traces import LOOP, MadeTrace


def test_every_call_opens_and_closes_in_order_on_the_engine_s_thread():
    trace = MadeTrace()
    trace.step(1000, 100)
    trace.span("aten::linear", 1010, 50)
    trace.span("aten::mm", 1020, 41)  # outlasts its caller by a rounding
    trace.span("aten::silu", 1070, 5)
    trace.section("tokenization", 1000, 10, tid=LOOP)
    document = flame_graph(trace.document(), "t")
    names = [frame["name"] for frame in document["shared"]["frames"]]
    (profile,) = document["profiles"]
    marks = [(mark["type"], names[mark["frame"]], mark["at"]) for mark in profile["events"]]
    assert marks == [
        ("O", "decode", 0),
        ("O", "aten::linear", 10),
        ("O", "aten::mm", 20),
        ("C", "aten::mm", 60),
        ("C", "aten::linear", 60),
        ("O", "aten::silu", 70),
        ("C", "aten::silu", 75),
        ("C", "decode", 100),
    ]
    assert (profile["startValue"], profile["endValue"]) == (0, 100)


def test_a_trace_without_steps_is_refused():
    with pytest.raises(InputError):
        flame_graph({"traceEvents": []}, "t")
