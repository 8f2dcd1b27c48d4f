"""verify: fake servers that changed since the Decision was made, and planted Runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mcp_core.cli import main
from mcp_core.decision.decision import Decision
from mcp_core.decision.recommend import recommend
from mcp_core.decision.store import Store
from mcp_core.errors import InputError
from mcp_core.evaluation.benchmark import measure
from mcp_core.evaluation.endpoint_recipe import endpoint_recipe
from mcp_core.evaluation.fake_server import FakeServer, LatencyLaw
from mcp_core.evaluation.verification import Verification, verify
from mcp_core.goal import Goal
from mcp_core.hardware import detect
from mcp_core.presets import bundled
from mcp_core.recipe import Recipe
from mcp_core.results import RequestRecord, Run
from mcp_core.workload import Workload
from tests.decision.planted import Law, machine, planted_run

FAST, SLOW = Law(tpot_ms=10, changes={"attention": "eager"}), Law(tpot_ms=20)


def decided(*laws: Law, **goal: Any) -> Decision:
    with Store("sqlite://") as opened:
        for law in laws:
            for start in range(3):
                opened.add(*planted_run(law, 4, start=start))
        return recommend(Goal.from_dict({"users": 4, **goal}), opened.facts(), opened.samples, machine())


def verified(decision: Decision, *laws: Law, starts: int = 3, **rest: Any) -> tuple[Verification, list[str]]:
    """``laws`` are how the machine is now, by the attention of the Recipe; and the order of what was measured."""
    order: list[str] = []

    async def one(recipe: Recipe, workload: Workload) -> tuple[Run, Sequence[RequestRecord]]:
        law = next(each for each in laws if each.recipe.attention == recipe.attention)
        order.append(recipe.attention)
        run, records = planted_run(
            law, 4, seed=workload.seed, start=workload.repeat, minutes=len(order), tag="again", **rest
        )
        return run.model_copy(update={"workload": workload}), records

    return asyncio.run(verify(decision, one, machine(), seed=77, starts=starts)), order


def test_a_machine_that_is_as_it_was_keeps_the_choice() -> None:
    found, order = verified(decided(FAST, SLOW), FAST, SLOW)
    assert found.holds
    assert found.changes == ()
    assert order == ["eager", "sdpa"] * 3
    assert len(found.winner_runs) == len(found.runner_up_runs) == 3


def test_a_runner_up_that_became_better_ends_it() -> None:
    found, _ = verified(decided(FAST, SLOW), FAST, Law(tpot_ms=5))
    assert not found.holds
    assert "is better now" in found.why
    assert found.changes[0].breaks
    assert any("p50 TPOT" in each.text and "-7" in each.text for each in found.changes[1:])


@pytest.mark.parametrize(("tpot_ms", "holds"), [(19.5, True), (12, False)])
def test_sides_with_a_load_of_their_own_each_are_told_by_what_they_reach(tpot_ms: float, holds: bool) -> None:
    """Without users in the Goal each stands at its own largest load, where no pair compares them."""
    first, second = Law(tpot_ms=10, changes={"attention": "eager"}), Law(tpot_ms=40)
    with Store("sqlite://") as opened:
        for start in range(3):
            opened.add(*planted_run(first, 4, start=start))
            opened.add(*planted_run(second, 8, start=start))
        decision = recommend(Goal(), opened.facts(), opened.samples, machine())
    assert decision.winner is not None
    assert (decision.winner.load, decision.winner.recipe.attention) == (4, "eager")
    now = {"eager": first, "sdpa": Law(tpot_ms=tpot_ms)}

    async def one(recipe: Recipe, workload: Workload) -> tuple[Run, Sequence[RequestRecord]]:
        run, records = planted_run(
            now[recipe.attention], workload.concurrency, seed=77, start=workload.repeat, tag="again"
        )
        return run.model_copy(update={"workload": workload}), records

    assert asyncio.run(verify(decision, one, machine(), seed=77, starts=3)).holds is holds


def test_a_winner_that_breaks_its_limit_says_figure_and_limit() -> None:
    slower = Law(tpot_ms=10, ttft_ms=300, changes={"attention": "eager"})
    found, _ = verified(decided(FAST, SLOW, slo={"ttft_ms": {"p95": 200}}), slower, SLOW)
    assert not found.holds
    assert found.why.startswith("The choice no longer holds: p95 TTFT")
    assert "> 200 ms" in found.why


def test_a_winner_that_fails_requests_is_none() -> None:
    failing = Law(tpot_ms=10, failing=0.05, changes={"attention": "eager"})
    found, _ = verified(decided(FAST, SLOW), failing, SLOW)
    assert "5.0% of requests failed" in found.why


def test_two_that_cannot_be_told_apart_are_both_right() -> None:
    same = Law(tpot_ms=10)
    found, _ = verified(decided(FAST, SLOW), FAST, same)
    assert found.holds


def test_a_winner_without_a_runner_up_is_judged_by_its_limits() -> None:
    found, order = verified(decided(FAST, slo={"tpot_ms": {"p50": 15}}), FAST)
    assert found.holds
    assert order == ["eager"] * 3
    slower, _ = verified(
        decided(FAST, slo={"tpot_ms": {"p50": 15}}), Law(tpot_ms=30, changes={"attention": "eager"})
    )
    assert "p50 TPOT" in slower.why


def test_a_noisy_machine_leaves_it_open_and_says_so() -> None:
    found, _ = verified(
        decided(FAST, SLOW), FAST, SLOW, reasons=("noisy: other processes used 0.9 cores meanwhile",)
    )
    assert not found.holds
    assert not found.told
    assert found.why.startswith("It cannot be told whether the choice holds: not comparable: noisy")


def test_nothing_to_verify_is_said() -> None:
    with pytest.raises(InputError, match="no winner"):
        verified(decided(FAST, slo={"tpot_ms": {"p50": 1}}))


TRAFFIC = Workload(
    name="small", requests=12, prompt_tokens={"min": 8, "max": 8}, output_tokens={"min": 4, "max": 4}, concurrency=2
)


def decided_over(*servers: FakeServer) -> Decision:
    """By Runs of these servers, two each."""
    with Store("sqlite://") as store:
        for repeat in range(2):
            for server in servers:
                recipe = endpoint_recipe(bundled(), server.url)
                asked = TRAFFIC.replace({"repeat": repeat})
                asyncio.run(measure(server.url, None, recipe, asked, detect(), keep=store.add))
        return recommend(Goal(users=2), store.facts(), store.samples, detect())


def test_the_command_over_servers_that_changed_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MCP_HOME", str(tmp_path))
    # What a busy machine adds to the client's own loop is not what is tested here.
    monkeypatch.setattr("mcp_core.evaluation.comparability.MAX_CLIENT_LAG_MS", 1e9)
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(FakeServer(LatencyLaw(ttft_ms=5, tpot_ms=each))) for each in (4.0, 30.0)
        )
        decision = decided_over(first, second)
        assert decision.winner is not None
        assert decision.winner.recipe.model.id == first.url
        file = tmp_path / "decision.json"
        file.write_text(decision.to_json())
        assert main(["verify", str(file), "--starts", "2", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["holds"] is True
        first.law = LatencyLaw(ttft_ms=5, tpot_ms=80.0)
        assert main(["verify", str(file), "--starts", "2", "--json"]) == 1
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["holds"] is False
    assert document["changes"][0]["breaks"] is True
    assert document["told"] is True
    assert "no longer holds" in said.err
    assert "Decide again" in said.err
    with Store() as store:
        assert store.count() == 8
