"""Overview: the frontier, where the ranking flips, and goodput over load, each on points whose answer is known."""

from __future__ import annotations

import pytest

from mcp_core.decision.overview import crossover, goodputs, groups, pareto, points_of
from mcp_core.goal import Goal
from tests.decision.planted import GPU, TRAFFIC, Law, Planted, planted_run

# Faster alone, slower in company.
LATENCY = Law(tpot_ms=10, users_tpot=5, changes={"attention": "eager"})
THROUGHPUT = Law(tpot_ms=20, users_tpot=100, changes={"dtype": "bf16"})
WORSE = Law(tpot_ms=30, users_tpot=5, changes={"dtype": "fp16"})


@pytest.fixture(scope="module")
def planted() -> Planted:
    pairs = [planted_run(law, users, requests=60) for law in (LATENCY, THROUGHPUT, WORSE) for users in (1, 4, 16)]
    return Planted(pairs)


def _points(planted: Planted):
    return points_of(planted.facts, next(iter(groups(planted.facts))))


def test_points_are_of_one_traffic_and_device(planted):
    assert len(groups(planted.facts)) == 1
    assert len(_points(planted)) == 9


def test_nothing_on_the_frontier_is_beaten_and_all_else_is(planted):
    points = _points(planted)
    front = pareto(points)
    for point in points:
        beaten = any(o.per_user > point.per_user and o.per_device > point.per_device for o in points)
        assert beaten != (point in front)
    assert all(point.facts.name != "fp16" for point in front)
    assert [point.per_user for point in front] == sorted(point.per_user for point in front)


def test_the_ranking_flips_where_it_was_planted(planted):
    """10 * (1 + n / 5) = 20 * (1 + n / 100) at n = 5.6: between 4 and 16."""
    flips = crossover(_points(planted))
    assert [(flip.below, flip.above) for flip in flips] == [(4, 16)]
    assert (flips[0].before, flips[0].after) == ("fp32 · eager", "bf16")


def test_goodput_falls_to_nothing_where_the_limit_breaks(planted):
    points = _points(planted)
    slo = Goal.from_dict({"slo": {"tpot_ms": {"p95": 25}}}).slo
    curves = goodputs(points, slo, planted.samples([point.facts.id for point in points]))
    assert [load for load, _ in curves["bf16"]] == [1, 4, 16]
    assert curves["bf16"][2][1] > curves["bf16"][0][1]
    assert curves["fp32 · eager"][2][1] == 0
    assert goodputs(points, slo, {}) == {}


def _shape(layers: int) -> dict[str, object]:
    sizes = {"layers": layers, "hidden": 64, "intermediate": 128, "heads": 2, "kv_heads": 2, "vocab": 500}
    return {"source": "shape", "id": "custom", "shape": sizes | {"context": 512}}


def test_each_model_has_a_picture_of_its_own_whatever_its_speed():
    small, large = Law(tpot_ms=5, changes={"model": _shape(2)}), Law(tpot_ms=20, changes={"model": _shape(8)})
    packed = Law(tpot_ms=15, changes={"model": _shape(8), "dtype": "bf16"})
    hashed = Law(tpot_ms=25, changes={"model": _shape(8) | {"sha256": "ab" * 32}, "dtype": "fp16"})
    facts = Planted([planted_run(law, 4, requests=60) for law in (small, large, packed, hashed)]).facts
    found = groups(facts)
    assert list(found.values()) == [f"custom {n} × 64 · {TRAFFIC.name} · {GPU}" for n in (8, 2)]
    fronts = [[point.facts.dtype for point in pareto(points_of(facts, group))] for group in found]
    assert fronts == [["bf16"], ["fp32"]]
    assert [len(points_of(facts, group)) for group in found] == [3, 1]


def _named(name: str, number: int):
    run, records = planted_run(Law(changes={"batching.max_requests": number}), 4, requests=60)
    return run.model_copy(update={"workload": run.workload.replace({"name": name})}), records


def test_one_traffic_is_named_by_what_most_were_measured_under_not_by_the_newest():
    facts = Planted([_named("newest", 5), _named("chat", 6), _named("chat", 7)]).facts
    assert list(groups(facts).values()) == [
        f"{facts[0].model.rsplit('/', 1)[-1]} · chat (also named newest) · {GPU}"
    ]
    many = Planted([_named(name, 8 + at) for at, name in enumerate("dcba")]).facts
    assert " · a (also named b, c, ...) · " in next(iter(groups(many).values()))
