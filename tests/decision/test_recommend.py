"""Recommend on planted truth: winner, every refusal by the name of its cause, capacity, and what cannot be told."""

from __future__ import annotations

import math

import pytest

from mcp_core.decision.decision import Decision
from mcp_core.decision.facts import configuration_name
from mcp_core.decision.missing import plans_of, recipes_to_judge
from mcp_core.decision.recommend import evidence_of, recommend
from mcp_core.goal import Goal
from mcp_core.presets import bundled
from mcp_core.results import Divergence, Failure, Fidelity, Mean, Quantiles, Run, StoredFidelity, TopKTruncation
from tests.decision.planted import BEGIN, TRAFFIC, Law, Planted, machine, planted_run

LOADS = (4, 8, 16, 32)


def law(number: int, **rest) -> Law:
    """A law of a configuration of its own."""
    return Law(changes={"batching.max_requests": 10 + number}, **rest)


def runs(one: Law, loads=LOADS, starts=3, requests=250, **rest) -> list:
    return [
        planted_run(one, users, start=start, requests=requests, **rest)
        for users in loads
        for start in range(starts)
    ]


def decide(goal: dict, pairs: list, fidelities=()) -> Decision:
    planted = Planted(sorted(pairs, key=lambda pair: pair[0].created, reverse=True))
    document = {"workload": TRAFFIC.model_dump(mode="json"), **goal}
    return recommend(Goal.from_dict(document), planted.facts, planted.samples, machine(), fidelities)


def refusal(decision: Decision, one: Law):
    return next(each for each in decision.refused if each.recipe == one.recipe)


SIX = {
    "fast": law(1, tpot_ms=15, ttft_ms=80),
    "slow": law(2, tpot_ms=25, ttft_ms=90),
    "bad tail": law(3, tpot_ms=10, ttft_ms=60, slow=0.08, slow_factor=12),
    "failing": law(4, tpot_ms=10, ttft_ms=60, failing=0.02),
    "full": law(5, tpot_ms=14, ttft_ms=70, kv_users=10),
    "heavy": law(6, tpot_ms=14, ttft_ms=70, peak_bytes=90 * 10**9),
}
GOAL = {
    "users": 32,
    "slo": {"ttft_ms": {"p95": 500}, "tpot_ms": {"p50": 30}},
    "memory_bytes": 80e9,
    "price_per_hour": 2.5,
}


@pytest.fixture(scope="module")
def six() -> list:
    return [pair for one in SIX.values() for pair in runs(one)]


def test_winner_and_every_refusal_come_out_as_planted(six):
    found = decide(GOAL, six)
    assert found.winner is not None
    assert found.winner.recipe == SIX["fast"].recipe
    assert found.runners_up == ()
    causes = {name: refusal(found, one).cause for name, one in SIX.items() if name != "fast"}
    assert causes == {"slow": "slo", "bad tail": "slo", "failing": "failures", "full": "slo", "heavy": "memory"}
    slow = refusal(found, SIX["slow"])
    planted_ms = SIX["slow"].tpot(32)
    assert slow.limit == "p50 TPOT"
    assert slow.figure == pytest.approx(planted_ms, rel=0.03)
    assert slow.reason == f"p50 TPOT {slow.figure:.3g} > 30 ms"
    assert refusal(found, SIX["bad tail"]).limit == "p95 TTFT"
    assert refusal(found, SIX["failing"]).reason == "2.0% of requests failed > 1.0%"
    assert refusal(found, SIX["heavy"]).reason == "peak memory 90.00 > 80.00 GB"
    assert refusal(found, SIX["full"]).figure == pytest.approx(SIX["full"].ttft(32), rel=0.1)


def test_the_answer_is_a_sentence_with_its_evidence_and_no_recommendation_unless_confirmed(six):
    found = decide(GOAL, six)
    assert found.answer.startswith("Measured on transformers, a candidate: ")
    assert "serves 32 users of chat-like within every limit at " in found.answer
    assert not found.is_recommendation
    confirmed = [(run.model_copy(update={"evidence": "confirmed on vllm"}), records) for run, records in six]
    found = decide(GOAL, confirmed)
    assert found.answer.startswith("Confirmed on vllm, recommended: ")
    assert found.is_recommendation


@pytest.mark.parametrize(
    "limit",
    [{"slo": {"tpot_ms": {"p50": 1000}}}, {"memory_bytes": 10**12}, {"gpus": 8}, {}],
)
def test_limits_are_claimed_only_where_the_goal_sets_some(six, limit):
    found = decide({"users": 32} | limit, six)
    assert ("within every limit" in found.answer) == bool(limit)
    assert "serves 32 users of chat-like" in found.answer


def test_figures_are_recomputed_from_the_records(six):
    winner = decide(GOAL, six).winner
    assert winner is not None
    fast = SIX["fast"]
    seconds = (fast.ttft(32) + 49 * fast.tpot(32)) / 1e3
    assert winner.figures.requests_s == pytest.approx(32 / seconds, rel=0.02)
    assert winner.figures.goodput_s == pytest.approx(winner.figures.requests_s, rel=0.1)
    assert winner.figures.attainment == pytest.approx(1.0, abs=0.1)
    per_million = 2.5 / 3600 / (32 * 50 / seconds) * 1e6
    assert winner.figures.cost_per_million_tokens == pytest.approx(per_million, rel=0.02)
    assert winner.figures.cost_per_request == pytest.approx(2.5 / 3600 / (32 / seconds), rel=0.02)


def test_capacity_is_the_largest_load_that_meets_as_planted():
    """Its TTFT crosses 500 ms at 80 * (1 + n / 20) = 500, n = 105: measured at every fifth user around it."""
    one = law(1, ttft_ms=80, tpot_ms=15, users_tpot=1e9)
    planted_users = 20 * (500 / 80 - 1)
    pairs = runs(one, loads=range(60, 141, 5), starts=1)
    winner = decide({"slo": {"ttft_ms": {"p50": 500}}}, pairs).winner
    assert winner is not None
    assert winner.capacity == pytest.approx(planted_users, rel=0.05)
    assert winner.broken_at == pytest.approx(planted_users, rel=0.06)
    assert winner.capacity < winner.broken_at


def test_two_identical_ones_are_equivalent_and_the_smaller_wins():
    big, small = law(1), law(2, peak_bytes=8 * 10**9)
    found = decide({"users": 8}, runs(big, (8,), 5) + runs(small, (8,), 5, seed=1))
    assert found.winner is not None
    assert found.winner.recipe == small.recipe
    assert [each.recipe for each in found.runners_up] == [big.recipe]
    assert found.equivalent == (found.runners_up[0].run,)
    assert found.missing == ()


def test_one_start_of_near_ones_is_undecided_with_the_runs_to_add_and_their_time():
    one, two = law(1), law(2, tpot_ms=19)
    found = decide({"users": 8}, runs(one, (8,), 1) + runs(two, (8,), 1))
    assert found.winner is not None
    assert found.winner.recipe == two.recipe
    assert found.undecided == (found.runners_up[0].run,)
    assert "the data cannot tell it from" in found.answer
    assert {each.recipe.fingerprint for each in found.missing} == {one.recipe.fingerprint, two.recipe.fingerprint}
    for each in found.missing:
        assert each.repeats >= 2
        assert each.seconds is not None
        assert each.seconds > 0
        assert each.workload.repeat == 1
        assert "mcp-core bench" in each.command
        assert "--set batching.max_requests=1" in each.command


def test_one_that_wins_on_a_warm_cache_only_is_refused_by_that_name():
    warm = runs(law(1, ttft_ms=5), (8,), 3, reasons=("warm cache: 25000 prompt tokens were not computed",))
    cold = runs(law(2), (8,), 3)
    found = decide({"users": 8}, warm + cold)
    assert found.winner is not None
    assert found.winner.recipe == law(2).recipe
    assert found.refused[0].cause == "not comparable"
    assert found.refused[0].reason.startswith("not comparable: warm cache")


def test_a_good_median_with_a_bad_tail_loses_to_a_p99_limit():
    bait = runs(law(1, ttft_ms=20, slow=0.03, slow_factor=100), (8,), 1, requests=1000)
    steady = runs(law(2, ttft_ms=100), (8,), 1, requests=1000)
    found = decide({"users": 8, "slo": {"ttft_ms": {"p99": 400}}}, bait + steady)
    assert found.winner is not None
    assert found.winner.recipe == law(2).recipe
    assert (found.refused[0].cause, found.refused[0].limit) == ("slo", "p99 TTFT")


@pytest.mark.parametrize(
    ("users", "cause", "words"),
    [
        (40, "not measured at this load", "not measured at 40 users (measured at 4, 8, 16, 32)"),
        (20, "", ""),  # between two measured loads that both meet
    ],
)
def test_loads_that_were_not_measured(users, cause, words):
    found = decide({"users": users, "slo": {"ttft_ms": {"p95": 500}}}, runs(law(1), starts=1))
    if not cause:
        assert found.winner is not None
        assert found.winner.load == 32
        return
    assert found.winner is None
    assert (found.refused[0].cause, found.refused[0].reason) == (cause, words)
    assert "workload.concurrency=40" in found.refused[0].command
    assert found.missing[0].workload.concurrency == 40


def test_between_a_load_that_meets_and_one_that_does_not_nothing_is_said():
    full = law(1, kv_users=10)
    found = decide({"users": 12, "slo": {"ttft_ms": {"p95": 400}}}, runs(full, (8, 32), 1))
    assert found.refused[0].cause == "not measured at this load"
    higher = decide({"users": 64, "slo": {"ttft_ms": {"p95": 400}}}, runs(full, (8, 32), 1))
    assert higher.refused[0].cause == "slo"
    assert higher.refused[0].reason.endswith("at 32 users already")


def _judged(kl: float, se: float = 0.0001, top1: float = 0.97) -> Fidelity:
    return Fidelity(
        status="measured",
        text_sha256="a" * 64,
        kl=Divergence(mean=kl, mean_se=se, median=kl, max=1),
        top1=Mean(mean=top1, se=0.001),
        noise_floor=Mean(mean=0.001),
        kl_over_floor=kl / 0.001,
    )


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"kl_max": 0.01}, "KL 0.05 > 0.01 nats"),
        ({"kl_over_floor_max": 20}, "KL 50 > 20 times the noise floor"),
        ({"top1_min": 0.98}, "top-1 0.97 < 0.98"),
        ({"top1_min": 0.97001}, "top-1 0.97 < 0.97001"),
    ],
)
def test_fidelity_limits_refuse_with_figure_and_limit(limit, reason):
    lossy, close, unknown = law(1, tpot_ms=10), law(2), law(3, tpot_ms=10)
    pairs = [
        *runs(lossy, (8,), 2, fidelity=_judged(0.05)),
        *runs(close, (8,), 2, fidelity=_judged(0.005, top1=0.99)),
        *runs(unknown, (8,), 2),
    ]
    found = decide({"users": 8, "fidelity": limit}, pairs)
    assert found.winner is not None
    assert found.winner.recipe == close.recipe
    assert (refusal(found, lossy).cause, refusal(found, lossy).reason) == ("fidelity", reason)
    lacking = refusal(found, unknown)
    assert lacking.cause == "not measured"
    assert "not measured" in lacking.reason
    assert lacking.command.startswith("mcp-core fidelity bundled")


def test_why_a_fidelity_could_not_be_measured_is_said_and_figures_judged_apart_count_before_it():
    silent = Fidelity(status="not-measurable", reason="The server gives no log-probabilities of a prompt.")
    pairs = runs(law(1), (8,), 2, fidelity=silent)
    goal = {"users": 8, "fidelity": {"kl_max": 0.01}}
    (refused,) = decide(goal, pairs).refused
    assert (refused.cause, refused.reason) == (
        "not measured",
        "KL not measured: The server gives no log-probabilities of a prompt",
    )
    apart = StoredFidelity(created=BEGIN, recipe=law(1).recipe, fidelity=_judged(0.005))
    assert decide(goal, pairs, (apart,)).winner is not None


LIMITED = {"users": 8, "fidelity": {"kl_over_floor_max": 30}}


def test_a_fidelity_that_a_limit_needs_is_lacking_once_for_all_of_the_same_numbers():
    other = Law(changes={"quantization.scheme": "bnb-nf4"})
    found = decide(LIMITED, [*runs(law(1), (8,), 2), *runs(law(2), (8,), 2), *runs(other, (8,), 2)])
    assert [(each.recipe.quantization.scheme, each.workload, each.repeats) for each in found.missing] == [
        ("none", None, 1),
        ("bnb-nf4", None, 1),
    ]
    first, second = found.missing
    assert first.why == "KL not measured; it holds for 1 more of the same numbers"
    assert second.why == "KL not measured"
    assert second.title == f"fidelity of {second.name}"
    assert second.command.startswith("mcp-core fidelity bundled --set ")
    assert "quantization.scheme=bnb-nf4" in second.command
    assert recipes_to_judge(found.missing) == (first.recipe, second.recipe)
    assert plans_of(found.missing) == ()
    assert Decision.from_json(found.to_json()) == found


def test_a_run_and_a_fidelity_are_lacking_together():
    found = decide(LIMITED | {"slo": {"ttft_ms": {"p99": 500}}}, runs(law(1), (8,), 2))
    run, fidelity = found.missing
    assert run.workload is not None
    assert (run.why.startswith("p99 TTFT not measured"), fidelity.workload) == (True, None)
    assert len(plans_of(found.missing)) == 1


def test_what_llama_cpp_serves_is_lacking_its_fidelity_only_and_its_bound_says_by_how_many_tokens():
    law = Law(changes={"engine": "llama.cpp", "quantization.scheme": "gguf", "batching.mode": "continuous"})
    found = decide(LIMITED, runs(law, (8,), 2))
    (refused,), (lacking,) = found.refused, found.missing
    assert (refused.cause, refused.reason) == ("not measured", "KL not measured")
    assert refused.command.startswith("mcp-core fidelity bundled-llama.cpp ")
    assert lacking.command == refused.command
    bound = {"truncation": TopKTruncation(top_k=20, tail_mass=0.1)}
    winner = decide(LIMITED, runs(law, (8,), 2, fidelity=_judged(0.005).model_copy(update=bound))).winner
    assert winner is not None
    assert winner.recipe.engine == "llama.cpp"
    (lost,) = decide(LIMITED, runs(law, (8,), 2, fidelity=_judged(0.05).model_copy(update=bound))).refused
    assert lost.reason == "KL 50 > 30 times the noise floor, by the top 20 tokens"


def test_a_fidelity_that_can_never_be_measured_is_called_so_and_no_command_is_named():
    changes = {"model": {"source": "shape", "id": "llama-3.1-8b"}}
    why = "KL cannot be measured: random weights say nothing"
    (refused,) = decide(LIMITED, runs(Law(changes=changes), (8,), 2)).refused
    assert (refused.cause, refused.reason, refused.command) == ("not measured", why, "")
    # Neither a quieter machine nor another load makes it known, so that no Run is asked for.
    noisy = runs(Law(changes=changes), (8,), 2, reasons=("noisy: other processes used 0.9 cores meanwhile",))
    for found in (decide(LIMITED, noisy), decide(LIMITED | {"users": 7}, runs(Law(changes=changes), (4,), 2))):
        assert found.refused[0].reason.startswith(f"{why}; not ")
        assert found.missing == ()


@pytest.mark.parametrize(
    ("goal", "changes", "fields"),
    [
        ({"users": 8}, {}, {}),  # nothing asks for it
        (LIMITED, {"model": {"source": "shape", "id": "llama-3.1-8b"}}, {}),  # random weights
        (LIMITED, {}, {"fidelity": Fidelity(status="not-measurable", reason="Memory ran out.")}),  # sought in vain
        (LIMITED | {"slo": {"ttft_ms": {"p50": 1}}}, {}, {}),  # refused whatever its fidelity is
    ],
    ids=["no limit", "random weights", "in vain", "too slow"],
)
def test_no_fidelity_is_lacking_where_it_would_change_nothing(goal, changes, fields):
    one = Law(changes=changes)
    assert decide(goal, runs(one, (8,), 2, **fields)).missing == ()


def test_a_lost_fidelity_is_the_reason_also_where_the_speed_does_not_count():
    noisy = runs(
        law(1), (8,), 2, fidelity=_judged(0.05), reasons=("noisy: other processes used 0.9 cores meanwhile",)
    )
    goal = {"users": 8, "fidelity": {"kl_max": 0.01}}
    (refused,) = decide(goal, noisy).refused
    assert (refused.cause, refused.command) == ("fidelity", "")
    assert refused.reason.startswith("KL 0.05 > 0.01 nats; not comparable: noisy")
    (held,) = decide(goal | {"fidelity": {"kl_max": 0.1}}, noisy).refused
    assert held.cause == "not comparable"


def test_a_fidelity_judged_apart_counts_for_every_run_of_the_same_numbers():
    apart = StoredFidelity(created=BEGIN, recipe=bundled().replace({"device": "cuda:0"}), fidelity=_judged(0.05))
    found = decide({"users": 8, "fidelity": {"kl_max": 0.01}}, runs(law(1), (8,), 2), (apart,))
    assert found.refused[0].reason == "KL 0.05 > 0.01 nats"


@pytest.mark.parametrize(
    ("difference", "truncation", "closer_wins"),
    [(0.00005, None, False), (0.01, None, True), (0.01, TopKTruncation(top_k=20, tail_mass=0.1), False)],
    ids=["near", "closer", "a bound beside a figure"],
)
def test_fidelity_breaks_ties_but_never_near_ties_of_its_own(difference, truncation, closer_wins):
    first, closer = law(1, tpot_ms=19.99), law(2)
    told = _judged(0.02 - difference).model_copy(update={"truncation": truncation})
    pairs = [
        *runs(first, (8,), 5, fidelity=_judged(0.02)),
        *runs(closer, (8,), 5, seed=3, fidelity=told),
    ]
    # Which of the two equals leads by a hair is chance: the closer one must win in either case, or in neither.
    winners = {
        decide({"users": 8}, pairs).winner.recipe.fingerprint,
        decide({"users": 8, "objective": "latency"}, pairs).winner.recipe.fingerprint,
    }
    if closer_wins:
        assert winners == {closer.recipe.fingerprint}
    else:
        swapped = [(run.model_copy(update={"fidelity": None}), records) for run, records in pairs]
        assert winners == {
            decide({"users": 8}, swapped).winner.recipe.fingerprint,
            decide({"users": 8, "objective": "latency"}, swapped).winner.recipe.fingerprint,
        }


@pytest.mark.parametrize(("difference", "closer_wins"), [(0.00005, False), (0.01, True)], ids=["near", "closer"])
def test_of_two_equals_the_faster_one_stays_unless_the_other_is_closer_beyond_its_error(difference, closer_wins):
    """One in a hundred faster, so that chance has no part in who leads."""
    first, closer = law(1, tpot_ms=19.8), law(2, tpot_ms=20)
    pairs = [
        *runs(first, (8,), 5, fidelity=_judged(0.02)),
        *runs(closer, (8,), 5, seed=3, fidelity=_judged(0.02 - difference)),
    ]
    found = decide({"users": 8}, pairs)
    assert [each.run for each in found.runners_up] == list(found.equivalent)
    assert found.winner.recipe == (closer if closer_wins else first).recipe


def test_an_impossible_limit_is_named_with_how_far_off_the_best_is(six):
    found = decide({**GOAL, "slo": {"ttft_ms": {"p50": 1}}}, six)
    assert found.winner is None
    assert found.answer.startswith(
        "No measured configuration of smollm2-135m-instruct meets the Goal under chat-like. Nearest is "
    )
    best = min(one.ttft(32) for one in SIX.values())
    note = next(each for each in found.notes if each.startswith("p50 TTFT alone excludes every configuration"))
    times = float(note.rsplit(", ", 1)[1].split(" times")[0])
    assert times == pytest.approx(best, rel=0.1)


def test_limits_that_contradict_each_other_are_named_together():
    quick_but_big, small_but_slow = law(1, ttft_ms=10, peak_bytes=50 * 10**9), law(2, ttft_ms=500)
    pairs = runs(quick_but_big, (8,), 1) + runs(small_but_slow, (8,), 1)
    found = decide({"users": 8, "slo": {"ttft_ms": {"p50": 100}}, "memory_bytes": 20e9}, pairs)
    assert found.winner is None
    assert "No single limit excludes everything; together p50 TTFT and peak memory do." in found.notes


def test_an_empty_store_and_failures_only_have_an_answer():
    nothing = recommend(Goal(users=4), [], lambda _: {}, machine())
    assert nothing.winner is None
    assert nothing.answer.startswith("Nothing has been measured yet")
    run, _ = planted_run(law(1), 8, requests=10)
    failed = run.model_copy(
        update={"status": "failed", "measurement": None, "failure": Failure(kind="oom", message="Memory ran out.")}
    )
    found = decide({"users": 8}, [(failed, []), *runs(law(2), (8,), 1)])
    assert (found.refused[0].cause, found.refused[0].reason) == ("failed", "failed: Memory ran out")


def test_runs_of_other_hardware_other_traffic_and_old_versions_are_refused_by_cause():
    def changed(number: int, **rest):
        return runs(law(number), (8,), 1, **rest)

    other = [
        (run.model_copy(update={"workload": run.workload.replace({"prompt_tokens": 7})}), records)
        for run, records in changed(4)
    ]
    pairs = [
        *changed(1),
        *changed(2, hardware=machine("Another GPU")),
        *changed(3, versions={"torch": "2.11.0"}, minutes=-5),
        *other,
    ]
    found = decide({"users": 8}, pairs)
    causes = {number: refusal(found, law(number)).cause for number in (2, 3, 4)}
    assert causes == {2: "other hardware", 3: "stale", 4: "other workload"}
    assert refusal(found, law(3)).reason == "stale: torch 2.11.0 then, 2.12.0 now"
    assert "Another GPU" in refusal(found, law(2)).reason
    assert refusal(found, law(4)).reason == (
        "measured under another chat-like only: of other prompts, lengths or arrivals"
    )


def test_a_device_without_runs_is_named_as_the_reason():
    found = decide({"users": 8, "device": "H100"}, runs(law(1), (8,), 1))
    assert found.winner is None
    assert refusal(found, law(1)).reason == f"measured on {machine().devices[1].name}, not on H100"


def test_runs_that_do_not_name_their_device_decide_and_nothing_is_said_of_a_device_without_a_name():
    """A store that was merged from a host where the device could not be read."""
    pairs = [*runs(law(1, tpot_ms=15), (8,), 1), *runs(law(2, tpot_ms=25), (8,), 1)]
    nameless = machine().model_copy(update={"devices": ()})
    found = decide({"users": 8}, [(run.model_copy(update={"hardware": nameless}), it) for run, it in pairs])
    assert found.winner is not None
    assert found.winner.recipe == law(1).recipe
    assert found.device == ""
    assert found.notes == ("The Runs do not name their device: the answer holds for where they were made.",)
    named = decide(
        {"users": 8, "device": "H100"}, [(run.model_copy(update={"hardware": nameless}), it) for run, it in pairs]
    )
    assert refusal(named, law(1)).reason == "measured on a device that is not named, not on H100"


@pytest.mark.parametrize(
    ("prices", "joules", "note"),
    [
        ({"price_per_hour": 2.0, "energy_price": 0.3}, (None, None), "Energy was not measured: costs are of time"),
        (
            {"price_per_hour": 2.0, "energy_price": 0.3},
            (1.5, None),
            "Energy of 1 of 2 was not measured: their cost",
        ),
        ({"price_per_hour": 2.0, "energy_price": 0.3}, (1.5, 1.5), ""),
        ({"energy_price": 0.3}, (1.5, 1.5), "A price of energy alone makes no cost: price_per_hour is lacking."),
        ({"price_per_hour": 2.0}, (None, None), ""),
    ],
)
def test_a_price_that_came_into_no_cost_is_told(prices, joules, note):
    pairs = [
        (run.model_copy(update={"energy_j_per_token": each}), records)
        for number, each in enumerate(joules, 1)
        for run, records in runs(law(number, tpot_ms=10 * number), (8,), 1)
    ]
    found = decide({"users": 8, **prices}, pairs)
    assert found.winner is not None
    assert any(each.startswith(note) for each in found.notes) if note else found.notes == ()


def test_energy_is_in_the_cost_as_its_price_says():
    """1.5 J a token at 0.30 a kWh are 0.125 for a million, whatever the time costs."""
    pairs = runs(law(1), (8,), 1)
    with_energy = [(run.model_copy(update={"energy_j_per_token": 1.5}), records) for run, records in pairs]
    goal = {"users": 8, "price_per_hour": 2.0}
    time_alone = decide(goal, with_energy).winner.figures.cost_per_million_tokens
    both = decide(goal | {"energy_price": 0.3}, with_energy).winner.figures.cost_per_million_tokens
    assert both - time_alone == pytest.approx(0.125, rel=1e-6)


def test_a_request_costs_the_energy_of_its_tokens():
    """Of 50 tokens each, 1.5 J a token at 0.30 a kWh."""
    with_energy = [(run.model_copy(update={"energy_j_per_token": 1.5}), it) for run, it in runs(law(1), (8,), 1)]
    goal = {"users": 8, "price_per_hour": 2.0}
    time_alone = decide(goal, with_energy).winner.figures.cost_per_request
    both = decide(goal | {"energy_price": 0.3}, with_energy).winner.figures.cost_per_request
    assert both - time_alone == pytest.approx(50 * 0.125e-6, rel=1e-4)


def test_without_a_workload_the_one_with_the_asked_load_is_decided_for():
    def under(number: int, tokens: int, users: int) -> list:
        return [
            (
                run.model_copy(
                    update={"workload": run.workload.replace({"prompt_tokens": tokens, "name": f"t{tokens}"})}
                ),
                r,
            )
            for run, r in runs(law(number), (users,), 1)
        ]

    pairs = [*under(1, 7, 8), *under(2, 7, 8), *under(3, 7, 8), *under(4, 9, 16)]
    assert decide({"users": 16, "workload": None}, pairs).workload == "t9"
    assert decide({"users": 12, "workload": None}, pairs).workload == "t9"
    assert decide({"users": 32, "workload": None}, pairs).workload == "t7"
    found = decide({"users": 16, "workload": None}, pairs)
    assert refusal(found, law(1)).reason == "measured under t7 only, not under t9"


def test_a_run_to_add_lasts_as_long_as_its_workload_and_long_enough_for_the_percentile():
    def timed(number: int, **rest) -> list:
        return [
            (run.model_copy(update={"workload": run.workload.replace({"duration_s": 5.0, "requests": 2000})}), r)
            for run, r in runs(law(number), (8,), 1, requests=60, **rest)
        ]

    run, slo = timed(1)[0][0], {"ttft_ms": {"p50": 500}}
    again = decide({"users": 8, "slo": slo}, [*timed(1), *timed(2)]).missing
    assert again
    for each in again:
        assert each.workload.duration_s == 5.0
        assert each.seconds / each.repeats == pytest.approx(5 + run.load_s, abs=1)
    (few,) = decide({"users": 8, "slo": {"ttft_ms": {"p95": 500}}}, timed(1)).missing
    assert few.workload.duration_s == pytest.approx(run.measurement.duration_s / 60 * 200 * 1.1, abs=1)


def test_runs_by_users_do_not_answer_for_a_rate_and_say_so():
    found = decide({"rate_s": 2.0}, runs(law(1), (8,), 1))
    assert found.refused[0].reason == "measured under chat-like by users only, not by requests/s"


def test_nan_is_not_measured_and_percentiles_of_few_requests_are_said_to_be():
    run, records = planted_run(law(1), 8, requests=60)
    broken = run.measurement.model_copy(update={"ttft_ms": Quantiles(p50=math.nan, n=60), "output_tok_s": math.nan})
    pairs = [(run.model_copy(update={"measurement": broken}), records)]
    found = decide({"users": 8, "slo": {"ttft_ms": {"p50": 500}}}, pairs)
    assert (found.refused[0].cause, found.refused[0].reason) == ("not measured", "p50 TTFT not measured")
    few = decide({"users": 8, "slo": {"ttft_ms": {"p95": 500}}}, [(run, records)])
    assert few.refused[0].reason == "p95 TTFT not measured: it takes 200 requests, this Run has 60"
    assert few.missing[0].workload.requests == 200
    assert decide({"users": 8}, pairs).winner is not None


def test_another_model_answers_only_when_it_is_named():
    """A smaller model would win every time."""
    small = {"changes": {"model": {"source": "hub", "id": "org/small"}}}
    pairs = runs(law(1), (8,), 1) + runs(law(2), (8,), 1) + runs(Law(tpot_ms=1, **small), (8,), 1)
    found = decide({"users": 8}, pairs)
    assert found.winner is not None
    assert found.winner.recipe.model == bundled().model
    other = found.refused[-1]
    assert (other.cause, other.name.split(" · ")[0]) == ("other model", "org/small")
    both = decide({"users": 8, "models": ["org/small", bundled().model.id]}, pairs)
    assert both.winner is not None
    assert both.winner.name.startswith("small · ")


def test_gpus_none_leaves_only_the_cpu():
    on_cpu = Law(tpot_ms=200, changes={"device": "cpu"})
    pairs = runs(law(1), (8,), 1) + runs(on_cpu, (8,), 1)
    found = decide({"users": 8, "gpus": 0}, pairs)
    assert found.winner is not None
    assert found.winner.recipe == on_cpu.recipe


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("noisy: other processes used 0.9 cores meanwhile", "(noisy): end what else runs on that machine"),
        (
            "client-limited: the load generator's own loop was 3.1 ms late (p99)",
            "(client-limited): give the load generator more of the machine by fewer threads, users or requests/s",
        ),
        (
            "client-limited: the load generator's own loop was 3.1 ms late (p99); other processes used 0.3 cores "
            "meanwhile",
            "(noisy): end what else runs on that machine",
        ),
        (
            "not pinned: 2 threads leave no core of 2 to the load generator",
            "(not pinned): leave the load generator",
        ),
    ],
)
def test_what_makes_figures_not_count_is_told_with_what_helps(reason, told):
    voided, good = runs(law(1), (8,), 2, reasons=(reason,)), runs(law(2), (8,), 2)
    all_of_it = decide({"users": 8}, voided)
    assert all_of_it.winner is None
    assert any(note.startswith(f"1 of 1 do not count {told}") for note in all_of_it.notes)
    # One that counts still wins, and one void Run of a configuration does not cost the others.
    some = decide({"users": 8}, voided + good)
    assert (some.winner.recipe, len(some.notes)) == (law(2).recipe, 1)
    mixed = decide({"users": 8}, [*voided[:1], *runs(law(1), (8,), 1)])
    assert (mixed.winner.recipe, mixed.notes) == (law(1).recipe, ())


def test_smoke_tests_are_no_evidence():
    pairs = runs(law(1), (8,), 1, reasons=("smoke test: too small to decide anything",))
    found = decide({"users": 8}, pairs)
    assert found.winner is None
    assert found.refused[0].reason == "not comparable: smoke test: too small to decide anything"
    assert found.answer.endswith(" All: not comparable: smoke test: too small to decide anything.")


def test_what_would_tell_more_than_a_smoke_test_is_no_smoke_test():
    run, records = planted_run(law(1), 8, requests=16, reasons=("smoke test: too small to decide anything",))
    run = run.model_copy(update={"workload": run.workload.replace({"smoke_test": True})})
    asked = decide({"users": 8}, [(run, records)]).missing[0].workload
    assert (asked.smoke_test, asked.requests) == (False, 200)


def test_endpoints_are_compared_with_one_another():
    def endpoint(port: int, **rest) -> Law:
        model = {"source": "endpoint", "id": f"http://127.0.0.1:{port}"}
        return Law(changes={"model": model, "engine": "endpoint"}, **rest)

    reason = ("endpoint: the settings and the machine behind it are not known here",)
    fast, slow = endpoint(1), endpoint(2, tpot_ms=40)
    found = decide({"users": 8}, runs(fast, (8,), 1, reasons=reason) + runs(slow, (8,), 1, reasons=reason))
    assert found.winner is not None
    assert found.winner.recipe == fast.recipe
    assert found.winner.name == "http://127.0.0.1:1"
    assert [each.recipe for each in found.runners_up] == [slow.recipe]


def test_a_decision_survives_json(six):
    found = decide(GOAL, six)
    assert Decision.from_json(found.to_json()) == found


def test_a_name_says_only_what_sets_a_configuration_apart():
    shared = {"kv.max_context": 512, "batching.max_requests": 8}
    plain, packed = Law(changes=shared), Law(changes=shared | {"quantization.scheme": "bnb-nf4"})
    found = decide({"users": 8}, runs(plain, (8,), 1) + runs(packed, (8,), 1, seed=1))
    assert {each.name for each in (found.winner, *found.runners_up)} == {"fp32", "fp32 · bnb-nf4"}
    assert configuration_name(packed.recipe) == "fp32 · bnb-nf4 · kv.max_context 512 · max_requests 8"


def test_evidence_levels_by_their_words():
    assert [evidence_of(text) for text in ("confirmed on vllm", "measured on llama.cpp", "probed", "guessed")] == [
        "confirmed",
        "measured",
        "probed",
        "none",
    ]
    assert Run.model_fields["evidence"].default.startswith("measured")


def test_runs_of_several_cards_of_a_kind_decide_together_and_it_is_said():
    pairs = [
        *runs(law(1), (8,), 2, hardware=machine(card="a")),
        *runs(law(2, tpot_ms=30), (8,), 2, hardware=machine(card="b", host="elsewhere")),
    ]
    found = decide({"users": 8}, pairs)
    assert found.winner is not None
    assert (found.winner.recipe, len(found.runners_up)) == (law(1).recipe, 1)
    said = "The Runs are of 2 cards of one kind: what differs between cards is in their figures."
    assert said in found.notes
    assert said not in decide({"users": 8}, pairs[:2]).notes
