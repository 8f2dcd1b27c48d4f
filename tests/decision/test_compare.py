"""Comparison on planted Runs: every verdict, by name of its cause."""

from __future__ import annotations

import pytest

from mcp_core.decision.compare import QUANTITIES, compare, obstacles, starts_of
from mcp_core.results import Conditions, DeviceConditions
from tests.decision.planted import Law, Planted, machine, planted_run

TPOT = QUANTITIES["tpot_ms"]


def _planted(law: Law, starts: int, users: int = 8, **rest) -> Planted:
    return Planted([planted_run(law, users, start=start, requests=60, **rest) for start in range(starts)])


def _compare(a: Planted, b: Planted, quantity=TPOT):
    ids = [each.id for each in (*a.facts, *b.facts)]
    return compare(a.facts, b.facts, a.samples(ids) | b.samples(ids), quantity)


def test_faster_is_better_and_more_tokens_are_too():
    slow, fast = _planted(Law(), 4), _planted(Law(tpot_ms=18, changes={"dtype": "fp16"}), 4)
    found = _compare(slow, fast)
    assert found.verdict == "better"
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(0.9, rel=0.02)
    assert _compare(fast, slow).verdict == "worse"
    assert _compare(slow, fast, QUANTITIES["output_tok_s"]).verdict == "better"
    assert _compare(fast, slow, QUANTITIES["output_tok_s"]).verdict == "worse"


def test_identical_ones_are_equivalent_in_95_of_100_seeds():
    twin = Law(changes={"attention": "eager"})
    verdicts = [
        _compare(_planted(Law(), 5, seed=2 * seed), _planted(twin, 5, seed=2 * seed + 1)).verdict
        for seed in range(100)
    ]
    assert verdicts.count("equivalent") >= 95
    assert verdicts.count("better") + verdicts.count("worse") == 0


def test_repeats_of_one_configuration_are_not_compared_with_themselves():
    found = _compare(_planted(Law(), 5), _planted(Law(), 5))
    assert (found.verdict, found.ratio) == ("undecided", None)
    assert "both are repeats" in found.why


def test_overlapping_intervals_hide_a_difference_that_pairs_show():
    """The machine is up to 40 % slower in some hours than in others; B is 6 % faster than A in every one."""
    hours = (0.0, 0.3, -0.1, 0.2, 0.1)
    fast = Law(tpot_ms=18.8, changes={"attention": "eager"})
    a = Planted([planted_run(Law(), 8, start=hour, drift=drift, requests=60) for hour, drift in enumerate(hours)])
    b = Planted([planted_run(fast, 8, start=hour, drift=drift, requests=60) for hour, drift in enumerate(hours)])
    values_a = [facts.figure("tpot_ms", "p50") for facts in a.facts]
    values_b = [facts.figure("tpot_ms", "p50") for facts in b.facts]
    assert min(values_a) < max(values_b)  # so that intervals of the two would overlap widely
    found = _compare(a, b)
    assert found.verdict == "better"
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(0.94, abs=0.02)


def test_one_start_of_each_decides_nothing_however_many_requests():
    found = _compare(_planted(Law(), 1), _planted(Law(tpot_ms=10, changes={"dtype": "fp16"}), 1))
    assert (found.verdict, found.pairs) == ("undecided", 1)
    assert found.ratio is not None
    assert (found.ratio.value, found.ratio.low) == (pytest.approx(0.5, rel=0.05), None)
    assert found.why.startswith("one start of each")
    assert found.more >= 2


def test_the_repeats_that_are_asked_for_do_tell():
    rough = {"start_noise": 0.05}
    fast = Law(tpot_ms=18.0, changes={"dtype": "fp16"}, **rough)
    told, asked = 0, 0
    for seed in range(20):
        few = _compare(_planted(Law(**rough), 4, seed=seed), _planted(fast, 4, seed=seed))
        if few.verdict == "undecided":
            starts = 4 + few.more
            found = _compare(_planted(Law(**rough), starts, seed=seed), _planted(fast, starts, seed=seed))
            asked, told = asked + 1, told + (found.verdict == "better")
    assert asked >= 5
    assert told >= 0.6 * asked


def test_even_after_many_starts_a_further_one_is_asked_for():
    rough = {"start_noise": 0.3}
    slow, fast = _planted(Law(**rough), 60), _planted(Law(tpot_ms=19.3, changes={"dtype": "fp16"}, **rough), 60)
    found = _compare(slow, fast)
    assert found.verdict == "undecided"
    assert found.more > 0


def test_runs_of_the_same_start_are_no_repetition():
    pairs = [planted_run(Law(), 8, start=start, requests=60) for start in range(3)]
    one_start = Planted([(run.model_copy(update={"load_s": 10.0}), records) for run, records in pairs])
    assert _compare(one_start, _planted(Law(tpot_ms=10, changes={"dtype": "fp16"}), 3)).pairs == 1


@pytest.mark.parametrize(
    ("rest", "users", "cause"),
    [
        ({"reasons": ["warm cache: 900 prompt tokens were not computed"]}, 8, "warm cache"),
        ({"reasons": ["noisy: other processes used 0.9 cores meanwhile"]}, 8, "noisy"),
        ({"reasons": ["throttled: power cap"]}, 8, "throttled"),
        ({"hardware": machine("Another GPU")}, 8, "other hardware"),
        ({"hardware": machine(driver="999")}, 8, "stale: driver"),
        ({"versions": {"torch": "2.11.0"}}, 8, "stale: torch"),
        ({}, 16, "other load"),
        ({"conditions": Conditions(device=DeviceConditions(sm_clock_mhz=1410))}, 8, "clocks: 1,980 and 1,410 MHz"),
    ],
)
def test_what_keeps_two_sides_apart_is_named(rest, users, cause):
    usual = _planted(Law(), 3, conditions=Conditions(device=DeviceConditions(sm_clock_mhz=1980)))
    other = _planted(Law(changes={"dtype": "fp16"}), 3, users, **rest)
    found = _compare(usual, other)
    assert found.verdict == "undecided"
    assert found.why.startswith(cause)
    assert any(each.startswith(cause) for each in obstacles(usual.facts, other.facts))


FP16 = Law(tpot_ms=18, changes={"dtype": "fp16"})


def _device(**figures: object) -> dict[str, Conditions]:
    known = {"power_limit_w": 700.0, "power_limit_default_w": 700.0, "slowed": 0.0} | figures
    return {"conditions": Conditions(device=DeviceConditions(**known))}


CAPPED = {"power_capped": 0.67, "throttled": 0.67, "throttle_reasons": ("software power cap",)}


@pytest.mark.parametrize("uncapped", [1980.0, None])
def test_a_clock_that_the_cards_own_power_cap_took_down_sets_nobody_apart(uncapped):
    usual = _planted(Law(), 3, **_device(sm_clock_mhz=1980.0, power_capped=0.0))
    thirsty = _device(sm_clock_mhz=1650.0, uncapped_clock_mhz=uncapped, **CAPPED)
    found = _compare(usual, _planted(FP16, 3, **thirsty))
    assert (found.verdict, found.why) == ("better", "")


@pytest.mark.parametrize(
    "other",
    [
        {"sm_clock_mhz": 1350.0, "uncapped_clock_mhz": 1410.0},  # a lock besides
        {"sm_clock_mhz": 1410.0, "power_limit_default_w": 800.0, "uncapped_clock_mhz": 1980.0},  # a lowered limit
        {"sm_clock_mhz": 1410.0, "power_limit_default_w": None, "uncapped_clock_mhz": 1980.0},
        {"sm_clock_mhz": 1410.0, "throttle_reasons": ("clocks set by an application", "software power cap")},
    ],
)
def test_any_other_difference_of_clocks_still_sets_two_sides_apart(other):
    usual = _planted(Law(), 3, **_device(sm_clock_mhz=1980.0, power_capped=0.0))
    found = _compare(usual, _planted(FP16, 3, **_device(**CAPPED | other)))
    assert (found.verdict, found.why) == ("undecided", "clocks: 1,980 and 1,410 MHz")


def test_two_power_limits_set_two_sides_apart_capped_or_not():
    usual = _planted(Law(), 3, **_device(sm_clock_mhz=1980.0))
    found = _compare(usual, _planted(FP16, 3, **_device(sm_clock_mhz=1980.0, power_limit_w=500.0)))
    assert (found.verdict, found.why) == ("undecided", "power limit: 500 W and 700 W")
    unknown = _planted(FP16, 3, **_device(sm_clock_mhz=1980.0, power_limit_w=None))
    assert _compare(usual, unknown).verdict == "better"


def test_what_was_not_measured_is_said():
    other = _planted(Law(changes={"dtype": "fp16"}), 2)
    found = _compare(_planted(Law(), 2), other, QUANTITIES["energy_j_per_token"])
    assert (found.verdict, found.ratio, found.why) == ("undecided", None, "energy was not measured on both")


def _on_cards(law: Law, cards: str, drifts: dict[str, float] | None = None, **rest) -> Planted:
    """A start on each of these cards, in this order."""
    slower = drifts or {}
    return Planted(
        [
            planted_run(
                law, 8, start=start, requests=60, drift=slower.get(card, 0.0), hardware=machine(card=card, **rest)
            )
            for start, card in enumerate(cards)
        ]
    )


def test_another_card_of_the_same_kind_is_compared_and_named_whatever_its_host_is_called():
    for host in ("planted", "elsewhere"):
        found = _compare(_on_cards(Law(), "aaaa"), _on_cards(FP16, "bbbb", host=host))
        assert (found.verdict, found.pairs) == ("better", 4)
        assert found.caveat.startswith("Another card of the same kind: the two were measured on two Planted GPU")
    same = _compare(_on_cards(Law(), "aaaa"), _on_cards(FP16, "aaaa", host="renamed"))
    assert (same.verdict, same.caveat) == ("better", "")


def test_a_card_of_another_host_kind_or_unknown_is_not_taken_for_one():
    beside = _compare(_on_cards(Law(), "aaa"), _on_cards(FP16, "bbb", cpu="Another CPU"))
    assert beside.why == "other hardware: Planted GPU beside Another CPU and Planted GPU beside CPU"
    unknown = _planted(FP16, 3, hardware=machine(host="elsewhere"))
    assert _compare(_on_cards(Law(), "aaa"), unknown).why.startswith("other hardware: Planted GPU of elsewhere")
    before_cards_were_kept = _planted(FP16, 3)
    found = _compare(_on_cards(Law(), "aaa"), before_cards_were_kept)
    assert (found.verdict, found.caveat) == ("better", "")


def test_starts_are_paired_card_by_card():
    """Card b is 30 % slower; B, 6 % faster, was measured on it first. In order of time its ratios would swing."""
    slow = {"b": 0.3}
    fast = Law(tpot_ms=18.8, changes={"attention": "eager"})
    found = _compare(_on_cards(Law(), "abab", slow), _on_cards(fast, "baba", slow))
    assert (found.verdict, found.pairs, found.caveat) == ("better", 4, "")
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(0.94, abs=0.02)
    assert found.ratio.high < 0.99


def test_one_load_time_on_two_cards_is_two_starts():
    pairs = [
        planted_run(Law(), 8, start=n, requests=60, hardware=machine(card=card)) for n, card in enumerate("ab")
    ]
    alike = Planted([(run.model_copy(update={"load_s": 10.0}), records) for run, records in pairs])
    assert len(starts_of(alike.facts, TPOT)) == 2
