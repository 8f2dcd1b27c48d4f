"""Six real endpoints with planted laws, measured by the load generator and decided from the store.

Limits stand far from what chance does to a busy machine; exact figures are planted in tests/decision. Server and
client share one process here, so that the client's lateness is no reason against a Run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from mcp_core import hardware
from mcp_core.decision.decision import Decision
from mcp_core.decision.store import Store
from mcp_core.decision.traffic import traffic_key
from mcp_core.decisions import Decisions
from mcp_core.evaluation.benchmark import measure
from mcp_core.evaluation.endpoint_recipe import endpoint_recipe
from mcp_core.evaluation.fake_server import FakeServer, LatencyLaw
from mcp_core.goal import Goal
from mcp_core.presets import bundled
from mcp_core.results import Comparable, RequestRecord, Run
from mcp_core.workload import Lengths, Workload

pytestmark = pytest.mark.slow

USERS = 8
ASKED = Workload(
    name="planted",
    requests=100,
    concurrency=USERS,
    prompt_tokens=Lengths(min=8, max=8),
    output_tokens=Lengths(min=6, max=6),
    warmup_requests=2,
)
# By name: its law, and the cause for which it is refused; None meets every limit.
PLANTED: dict[str, tuple[LatencyLaw, str | None]] = {
    "fast": (LatencyLaw(ttft_ms=20, tpot_ms=4), None),
    "slower": (LatencyLaw(ttft_ms=20, tpot_ms=12), None),
    "slow start": (LatencyLaw(ttft_ms=300, tpot_ms=1), "slo"),
    "slow tokens": (LatencyLaw(ttft_ms=10, tpot_ms=60), "slo"),
    "failing": (LatencyLaw(ttft_ms=5, tpot_ms=1, error_every=50), "failures"),
    "full": (LatencyLaw(ttft_ms=20, tpot_ms=12, slots=2), "slo"),  # six of eight wait for 80 ms, up to thrice
}
GOAL = {
    "users": USERS,
    "workload": ASKED.model_dump(mode="json"),
    "slo": {"ttft_ms": {"p90": 150}, "tpot_ms": {"p50": 40}},
}


@dataclass(frozen=True)
class Measured:
    """The decision, and by name each endpoint's URL."""

    decision: Decision
    urls: dict[str, str]

    def cause(self, name: str) -> str | None:
        found = {each.recipe.model.id: each.cause for each in self.decision.refused}
        return found.get(self.urls[name])


def _measure(url: str) -> tuple[Run, Sequence[RequestRecord]]:
    kept: list[tuple[Run, Sequence[RequestRecord]]] = []
    recipe, machine = endpoint_recipe(bundled(), url), hardware.detect()
    asyncio.run(
        measure(url, None, recipe, ASKED, machine, keep=lambda run, records, _: kept.append((run, records)))
    )
    run, records = kept[0]
    reasons = tuple(each for each in run.comparable.reasons if each.startswith("endpoint"))
    return run.model_copy(update={"comparable": Comparable(ok=False, reasons=reasons)}), records


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    path: Path = tmp_path_factory.mktemp("endpoints") / "runs.sqlite"
    servers = {name: FakeServer(law) for name, (law, _) in PLANTED.items()}
    urls = {}
    with Store(f"sqlite:///{path}") as store:
        for name, server in servers.items():
            with server:
                urls[name] = server.url
                store.add(*_measure(server.url))
        decision = Decisions(lambda: store).recommend(Goal.from_dict(GOAL))
    return Measured(decision, urls)


def test_the_winner_is_the_planted_one(measured: Measured) -> None:
    assert measured.decision.winner is not None
    assert measured.decision.winner.recipe.model.id == measured.urls["fast"]
    assert [each.recipe.model.id for each in measured.decision.runners_up] == [measured.urls["slower"]]


@pytest.mark.parametrize(("name", "cause"), [(name, cause) for name, (_, cause) in PLANTED.items()])
def test_every_refusal_has_its_planted_cause(measured: Measured, name: str, cause: str | None) -> None:
    assert measured.cause(name) == cause


def test_the_failing_one_is_refused_by_the_share_that_was_planted(measured: Measured) -> None:
    reason = next(each.reason for each in measured.decision.refused if each.cause == "failures")
    assert reason.endswith("% of requests failed > 1.0%")
    assert 0.015 <= float(reason.split("%")[0]) / 100 <= 0.025


def test_traffic_is_the_same_at_every_load() -> None:
    assert traffic_key(ASKED) == traffic_key(ASKED.at_load(40).replace({"requests": 7, "seed": 3}))
    assert traffic_key(ASKED) != traffic_key(ASKED.replace({"output_tokens": 7}))
