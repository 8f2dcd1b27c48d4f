"""Ranking by the Goal, and the article's table, from Runs with known figures."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from mcp_core.decision.store import Store
from mcp_core.decision.sweep_record import CellRecord
from mcp_core.errors import Cancelled
from mcp_core.evaluation.article_table import ArticleFigures, article_rows, is_full_size, stored_rows
from mcp_core.evaluation.benchmark import unmeasured
from mcp_core.evaluation.sweep_ranking import median_score, score, unit
from mcp_core.evaluation.sweep_table import SweepRow
from mcp_core.goal import Goal
from mcp_core.hardware import Hardware, detect
from mcp_core.recipe import Recipe
from mcp_core.results import Failure, Measurement, Memory, Quantiles, RequestRecord, Run
from mcp_core.sweep_presets import article, article_plan
from mcp_core.workload import Workload

NOTHING = Quantiles()


def run(tok_s: float = 100.0, e2e_ms: float = 50.0, *, failed: int = 0, **changes: Any) -> Run:
    made = unmeasured(Recipe(), Workload(name="w"), detect(), Cancelled("planted"))
    measurement = Measurement(
        ttft_ms=NOTHING,
        tpot_ms=Quantiles(p50=e2e_ms / 10, n=10),
        itl_ms=NOTHING,
        e2e_ms=Quantiles(p50=e2e_ms, n=10),
        duration_s=2.0,
        requests=10 + failed,
        completed=10,
        failed=failed,
        cancelled=0,
        prompt_tokens=100,
        output_tokens=200,
        output_tok_s=tok_s,
        total_tok_s=None,
        requests_s=5.0,
    )
    memory = Memory(weights_bytes=7_000_000_000, peak_bytes=8_000_000_000)
    fields = {"status": "ok", "failure": None, "measurement": measurement, "memory": memory}
    return made.model_copy(update=fields | changes)


def records(*e2e_ms: float) -> list[RequestRecord]:
    return [
        RequestRecord(index=index, status="ok", sent_ms=0.0, ttft_ms=1.0, e2e_ms=each)
        for index, each in enumerate(e2e_ms)
    ]


def test_without_limits_throughput_counts_and_for_latency_the_fast_win() -> None:
    fast, slow = run(200.0, 50.0), run(100.0, 40.0)
    assert score(fast, [], None) > score(slow, [], None)  # type: ignore[operator]
    latency = Goal(objective="latency")
    assert score(fast, [], latency) < score(slow, [], latency)  # type: ignore[operator]
    assert (unit(None), unit(latency)) == ("output tok/s", "ms TPOT p50")


def test_with_limits_goodput_counts_before_throughput() -> None:
    goal = Goal.from_dict({"slo": {"e2e_ms": {"p50": 60}}})
    found = score(run(200.0), records(50, 70, 80, 90), goal)
    assert found == (0.5, 200.0)  # one good request in 2 s
    assert unit(goal) == "good requests/s"


@pytest.mark.parametrize(
    "bad",
    [run(status="failed"), run(measurement=None), run(failed=1), run(memory=Memory(peak_bytes=9_000_000_000))],
    ids=["failed", "no figures", "one request in eleven failed", "too large"],
)
def test_what_cannot_win_has_no_score(bad: Run) -> None:
    goal = Goal(memory_bytes=8_500_000_000)
    assert score(bad, [], goal) is None
    assert score(run(), [], goal) is not None


def test_the_median_of_starts_is_none_where_one_failed() -> None:
    assert median_score([(1.0, 5.0), (3.0, 1.0), (2.0, 9.0)]) == (2.0, 5.0)
    assert median_score([(1.0, 5.0), None]) is None
    assert median_score([]) is None


def test_the_articles_rows_stand_beside_measured_ones() -> None:
    cells = article(detect()).cells()
    rows = [
        SweepRow(
            CellRecord(cell.position, cell.name, cell.recipe, "done"), "measure", run(), (run(),), (1.0, 1.0), ""
        )
        for cell in cells
    ]
    failed = CellRecord(9, "x", cells[9].recipe, "failed", failure=Failure(kind="oom", message="Memory ran out."))
    rows[9] = SweepRow(failed, None, None, (), None, "failed")
    table = article_rows(list(reversed(rows)))
    assert [(row.size, row.bits) for row in table[:5]] == [
        ("7B", each) for each in ("none", *["8-bit"] * 2, *["4-bit"] * 2)
    ]
    assert table[0].article == ArticleFigures(14, 250, 20)
    assert table[0].measured == ArticleFigures(7.0, 50.0, 5.0)
    assert (table[9].size, table[9].measured, table[9].reason) == (
        "13B",
        ArticleFigures(None, None, None),
        "Memory ran out.",
    )
    assert not is_full_size(table)
    assert table[0].model == "0.11B shape"


def test_with_a_gpu_the_article_is_measured_at_its_own_sizes() -> None:
    machine = detect()
    cuda = machine.devices[0].model_copy(update={"id": "cuda:0", "kind": "cuda", "compute_capability": (9, 0)})
    host = machine.model_copy(update={"devices": (*machine.devices, cuda), "torch_cuda": "13.0"})
    plan = article(host)
    assert [model.id for model in plan.axes.model] == ["llama-2-7b", "llama-2-13b"]
    assert plan.base.device == "cuda:0"


def gpu_host(name: str) -> Hardware:
    machine = detect()
    gpu = machine.devices[0].model_copy(update={"id": "cuda:0", "kind": "cuda", "name": name})
    return machine.model_copy(update={"devices": (*machine.devices, gpu), "torch_cuda": "13.0"})


def stored_article(position: int, hour: int, **changes: Any) -> Run:
    """A Run of one of the article's cells, its Recipe resolved as a worker reads it back."""
    plan = article_plan(on_gpu=True)
    cell = plan.cells()[position]
    recipe = cell.recipe.replace({"threads": 15, "model.sha256": "ab" * 32})
    fields = {
        "recipe": recipe,
        "workload": plan.workload_of("measure", cell),
        "hardware": gpu_host("H"),
        "created": datetime(2026, 11, 26, hour, tzinfo=UTC),
    }
    return run(**(fields | changes))


def test_the_articles_table_is_drawn_from_stored_runs_the_newest_of_each_cell_on_one_device() -> None:
    failed = {"status": "failed", "measurement": None, "failure": Failure(kind="oom", message="Memory ran out.")}
    old, new = stored_article(0, 1), stored_article(0, 2, tok_s=300.0)
    others = [
        stored_article(1, 3, **failed),
        stored_article(5, 4),
        stored_article(2, 3, hardware=gpu_host("Another GPU")),
        stored_article(3, 3, workload=Workload(name="article", concurrency=9)),
        stored_article(4, 3, status="cancelled", measurement=None),
    ]
    with Store() as store:
        assert stored_rows(store) == ()
        for each in (new, old, *others):
            store.add(each)
        rows = stored_rows(store)
    assert [row.run.id if row.run else None for row in rows[:2]] == [new.id, others[0].id]
    table = article_rows(rows)
    assert is_full_size(table)
    assert [(each.size, each.scheme) for each in table if each.measured.requests_s] == [
        ("7B", "none"),
        ("13B", "none"),
    ]
    assert table[1].reason == "Memory ran out."
    assert {each.reason for each in (*table[2:5], *table[6:])} == {"No Run of it is stored."}


def test_the_small_shapes_of_a_cpu_are_drawn_too() -> None:
    plan = article_plan(on_gpu=False)
    cell = plan.cells()[3]
    with Store() as store:
        store.add(run(recipe=cell.recipe.replace({"threads": 1}), workload=plan.workload_of("measure", cell)))
        table = article_rows(stored_rows(store))
    assert not is_full_size(table)
    assert [each.scheme for each in table if each.run_id] == ["bnb-nf4"]
