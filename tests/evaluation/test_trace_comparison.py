from __future__ import annotations

from mcp_core.evaluation.trace_comparison import differences, part_differences
from mcp_core.evaluation.trace_reading import summarize
from tests.evaluation.traces import MadeTrace


def summary(steps: int, *operators: tuple[str, float]):
    trace = MadeTrace()
    for number in range(steps):
        at = 1000.0 * number
        trace.step(at, 900)
        for name, dur in operators:
            trace.span(name, at := at + 10, dur)
            at += dur
    return summarize(trace.document())


BF16 = summary(4, ("aten::mm", 300), ("aten::silu", 50), ("aten::relu", 20))
INT8 = summary(2, ("aten::mm", 200), ("aten::silu", 51), ("torchao::dequantize_affine", 400))


def test_what_came_went_and_changed_is_told_a_step():
    rows = {row.name: row for row in differences(BF16, INT8, "decode")}
    assert {name: row.change for name, row in rows.items()} == {
        "torchao::dequantize_affine": "appeared",
        "aten::mm": "less",
        "aten::relu": "vanished",
        "aten::silu": "same",
    }
    assert list(rows)[:2] == ["torchao::dequantize_affine", "aten::mm"]  # the largest difference first
    assert round(rows["aten::mm"].delta_ms, 6) == -0.1
    assert (rows["aten::mm"].before_calls, rows["aten::mm"].after_calls) == (1, 1)


def test_parts_are_compared_in_their_order():
    rows = [(row.part, row.change) for row in part_differences(BF16, INT8, "decode")]
    assert rows == [("gemm", "less"), ("dequantization", "appeared"), ("elementwise", "less")]


def test_a_phase_that_neither_has_gives_nothing():
    assert differences(BF16, INT8, "prefill") == ()
    assert part_differences(BF16, INT8, "prefill") == ()


def test_kernels_are_compared_where_both_ran_on_a_gpu():
    trace = MadeTrace()
    trace.step(0, 900)
    trace.span("aten::mm", 10, 20)
    trace.launch("nvjet", 12, 20, 100)
    on_gpu = summarize(trace.document())
    assert [row.name for row in differences(on_gpu, on_gpu, "decode")] == ["nvjet"]
    assert "aten::mm" in [row.name for row in differences(BF16, on_gpu, "decode")]
