"""What confirms an answer, and what it raises."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mcp_core.decision.confirmation import Confirmation, confirm, confirmed_decision, raise_evidence
from mcp_core.decision.decision import Decision
from mcp_core.decision.recommend import recommend
from mcp_core.decision.shipment import Shipment, of_decision, of_run
from mcp_core.decision.store import Store
from mcp_core.goal import Goal
from mcp_core.results import Comparable, Run
from tests.decision.planted import Law, machine, planted_run

FAST, SLOW = Law(tpot_ms=10, changes={"attention": "eager"}), Law(tpot_ms=20)


@pytest.fixture
def store() -> Iterator[Store]:
    with Store("sqlite://") as opened:
        yield opened


def decision(limit_ms: float = 500) -> Decision:
    """FAST wins over SLOW at 4 users."""
    with Store("sqlite://") as opened:
        for law in (FAST, SLOW):
            for start in range(2):
                opened.add(*planted_run(law, 4, start=start))
        goal = Goal.from_dict({"users": 4, "slo": {"ttft_ms": {"p95": limit_ms}}})
        return recommend(goal, opened.facts(), opened.samples, machine())


def measured(law: Law, seed: int = 9) -> Run:
    return planted_run(law, 4, seed=seed)[0]


def judged(what: Shipment, law: Law) -> Confirmation:
    return confirm(what, measured(law), "vllm", "vllm")


def test_figures_stand_beside_each_other_with_their_error() -> None:
    run, _ = planted_run(SLOW, 4)
    found = judged(of_run(run), Law(tpot_ms=22))
    tpot = next(each for each in found.figures if each.name == "p50 TPOT")
    assert tpot.predicted == pytest.approx(21.6, rel=0.03)
    assert tpot.measured == pytest.approx(23.76, rel=0.03)
    assert tpot.error == pytest.approx(0.1, abs=0.03)
    assert found.evidence == "confirmed on vllm"


def test_a_run_is_confirmed_unless_it_is_more_than_a_tenth_slower() -> None:
    run, _ = planted_run(SLOW, 4)
    assert judged(of_run(run), Law(tpot_ms=21)).holds
    slower = judged(of_run(run), Law(tpot_ms=30))
    assert not slower.holds
    assert "below the predicted" in slower.why
    failing = judged(of_run(run), Law(failing=0.05))
    assert "5.0% of requests failed" in failing.why


def test_what_disturbed_a_deployment_that_does_not_hold_is_said() -> None:
    run, _ = planted_run(SLOW, 4)
    reason = "client-limited: the load generator's own loop was 8.4 ms late (p99)"
    apart = Comparable(ok=False, reasons=("endpoint: not known here", reason))

    def why(law: Law) -> str:
        late = measured(law).model_copy(update={"comparable": apart})
        return confirm(of_run(run), late, "vllm", "vllm").why

    assert f"It was disturbed ({reason}): end what else runs" in why(Law(tpot_ms=30))
    assert "disturbed" not in why(Law(tpot_ms=21))  # what holds all the same needs no excuse
    assert "disturbed" not in judged(of_run(run), Law(tpot_ms=30)).why


def test_a_decision_is_confirmed_by_its_own_limits() -> None:
    what = of_decision(decision(limit_ms=150))
    assert judged(what, FAST).holds
    assert not judged(what, Law(tpot_ms=10, ttft_ms=200)).holds
    assert "p95 TTFT 240 > 150 ms" in judged(what, Law(tpot_ms=10, ttft_ms=200, noise=0.001, start_noise=0)).why


def test_a_deployment_that_falls_behind_the_runner_up_is_not_confirmed() -> None:
    found = judged(of_decision(decision()), Law(tpot_ms=40))
    assert not found.holds
    assert "fewer than the runner-up's" in found.why


def test_a_decision_without_limits_is_held_to_its_throughput() -> None:
    with Store("sqlite://") as opened:
        opened.add(*planted_run(FAST, 4))
        made = recommend(Goal(users=4), opened.facts(), opened.samples, machine())
    assert judged(of_decision(made), FAST).holds
    assert "below the predicted" in judged(of_decision(made), SLOW).why


def test_a_smoke_test_confirms_nothing() -> None:
    run, _ = planted_run(SLOW, 4)
    smoke = run.model_copy(update={"workload": run.workload.replace({"smoke_test": True})})
    assert "smoke test" in judged(of_run(smoke), SLOW).why


def test_a_probe_is_not_confirmed_by_another_short_look() -> None:
    run, _ = planted_run(SLOW, 4)
    probed = run.model_copy(update={"evidence": "probed on transformers"})
    found = judged(of_run(probed), SLOW)
    assert not found.holds
    assert "only probed" in found.why
    assert judged(of_run(run.model_copy(update={"evidence": "measured on transformers"})), SLOW).holds


def test_only_a_confirmed_answer_is_worded_as_a_recommendation() -> None:
    before = decision()
    assert not before.is_recommendation
    assert "a candidate" in before.answer
    after = confirmed_decision(before, judged(of_decision(before), FAST))
    assert after.is_recommendation
    assert after.answer.startswith("Confirmed on vllm, recommended: ")
    assert "candidate" not in after.answer
    assert after.winner is not None
    assert after.winner.evidence_text == "confirmed on vllm"
    assert Decision.from_json(after.to_json()) == after
    assert confirmed_decision(before, judged(of_decision(before), Law(tpot_ms=40))) == before


def test_the_stored_run_is_raised_and_keeps_its_records(store: Store) -> None:
    run, records = planted_run(SLOW, 4)
    store.add(run, records, {"a": 1})
    assert raise_evidence(store, run.id, "confirmed on vllm") is not None
    assert [each.evidence for each in store.facts()] == ["confirmed on vllm"]
    assert store.records(run.id) == tuple(records)
    assert store.telemetry(run.id) == {"a": 1}
    assert raise_evidence(store, "none", "confirmed on vllm") is None
    made = recommend(Goal(users=4), store.facts(), store.samples, machine())
    assert made.is_recommendation
