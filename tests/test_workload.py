from __future__ import annotations

import math
import random
import statistics

import pytest

from mcp_core.errors import ModelNotFound, WorkloadError
from mcp_core.workload import WORKLOADS, Chats, Lengths, SharedPrefix, Workload, workload_preset


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_preset_survives_a_json_round_trip(name):
    workload = workload_preset(name)
    assert workload.name == name
    assert Workload.from_json(workload.model_dump_json()) == workload


def test_the_presets_that_others_rely_on():
    chat, burst = workload_preset("short-chat"), workload_preset("burst")
    assert (chat.requests, chat.concurrency, chat.prompt_tokens, chat.output_tokens) == (
        16,
        1,
        Lengths(min=64, max=64),
        Lengths(min=32, max=32),
    )
    assert (burst.requests, burst.concurrency, burst.prompt_tokens, burst.output_tokens) == (
        32,
        32,
        Lengths(min=16, max=96),
        Lengths(min=4, max=24),
    )
    assert chat.smoke_test
    assert burst.smoke_test


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"requests": 0}, "requests"),
        ({"prompt_tokens": {"min": 9, "max": 3}}, "prompt_tokens"),
        ({"slo": {}}, "slo"),
        ([], "document"),
    ],
)
def test_a_malformed_workload_names_the_field(document, words):
    with pytest.raises(WorkloadError, match=words):
        Workload.from_dict(document)


def test_replace_and_unknown_names():
    assert Workload().replace({"prompt_tokens.max": 80, "seed": 3}).prompt_tokens.max == 80
    with pytest.raises(WorkloadError, match="colour"):
        Workload().replace({"colour": 1})
    with pytest.raises(ModelNotFound, match="burst"):
        workload_preset("nonsense")


def test_fingerprint_ignores_the_name_and_sees_the_rest():
    base = Workload()
    assert base.replace({"name": "other"}).fingerprint == base.fingerprint
    assert base.replace({"repeat": 1}).fingerprint != base.fingerprint


# As they were before there were distributions, arrivals and chats: stored Runs are found by them.
FINGERPRINTS = {
    "short-chat": "dccf6f6ef53a",
    "burst": "1e5e0210c559",
    "chat": "8622f0c3d3fc",
    "rag": "0a953c2199f3",
    "code": "39c99f419181",
}


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_older_workloads_keep_their_fingerprints_and_their_form(name):
    workload = workload_preset(name)
    assert workload.fingerprint.startswith(FINGERPRINTS[name])
    document = workload.model_dump(mode="json")
    for later in ("arrivals", "duration_s", "prompts", "prefix", "chats"):
        del document[later]
    for lengths in (document["prompt_tokens"], document["output_tokens"]):
        for later in ("kind", "median", "sigma", "exponent", "values"):
            del lengths[later]
    assert Workload.from_dict(document) == workload


@pytest.mark.parametrize(
    "change",
    [
        {"arrivals": {"kind": "poisson", "rate_s": 2}},
        {"duration_s": 30},
        {"prompts.kind": "sample"},
        {"prefix": {"tokens": 9}},
        {"chats": {}},
        {"prompt_tokens": [64, 64]},
        {"output_tokens": {"min": 32, "max": 32, "kind": "zipf"}},
    ],
)
def test_whatever_changes_what_is_sent_changes_the_fingerprint(change):
    changed = Workload().replace(change)
    assert changed.fingerprint != Workload().fingerprint
    assert Workload.from_json(changed.model_dump_json()) == changed


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"arrivals": {"kind": "poisson"}}, "rate_s is missing"),
        ({"arrivals": {"rate_s": 2}}, "does not go with"),
        ({"arrivals": {"kind": "ramp", "rate_s": 2}}, "end_rate_s"),
        ({"arrivals": {"kind": "replay"}}, "recording"),
        ({"prompts": {"kind": "file"}}, "sha256"),
        ({"prompts": {"kind": "file", "sha256": "a" * 64}, "chats": {}}, "one turn"),
        ({"prompt_tokens": {"min": 5, "max": 9, "kind": "lognormal"}}, "median"),
        ({"prompt_tokens": {"min": 5, "max": 9, "kind": "lognormal", "median": 20}}, "not between"),
        ({"prompt_tokens": {"min": 5, "max": 9, "values": [5]}}, "values"),
        ({"prompt_tokens": []}, "prompt_tokens"),
        ({"duration_s": 0}, "duration_s"),
    ],
)
def test_parts_that_contradict_each_other_are_named(document, words):
    with pytest.raises(WorkloadError, match=words):
        Workload.from_dict(document)


def test_lognormal_and_zipf_lengths_have_their_planted_shape():
    def drawn(lengths):
        by = random.Random(1)
        return sorted(lengths.draw(by) for _ in range(20_000))

    lognormal = Lengths(min=10, max=100_000, kind="lognormal", median=200, sigma=1.0)
    counts = drawn(lognormal)
    assert counts[10_000] == pytest.approx(200, rel=0.05)
    assert counts[16_827] == pytest.approx(200 * math.e, rel=0.08)  # one standard deviation above
    assert statistics.fmean(counts) == pytest.approx(lognormal.mean, rel=0.05)
    zipf = Lengths(min=1, max=1000, kind="zipf", exponent=1.0)
    counts = drawn(zipf)
    assert counts[0] == 1
    assert counts[-1] <= 1000
    assert counts.count(1) / counts.count(4) == pytest.approx(4, rel=0.2)
    assert statistics.fmean(counts) == pytest.approx(1000 / 7.485, rel=0.05)  # n / harmonic number of n
    listed = Lengths.model_validate([3, 3, 90])
    assert (listed.min, listed.max, listed.mean) == (3, 90, 32)
    assert drawn(listed).count(3) == pytest.approx(20_000 * 2 / 3, rel=0.05)


def test_bounds_hold_whatever_is_drawn():
    by = random.Random(2)
    for kind in ({"kind": "lognormal", "median": 6, "sigma": 3}, {"kind": "zipf", "exponent": 2}):
        counts = {Lengths(min=4, max=8, **kind).draw(by) for _ in range(500)}
        assert counts == {4, 5, 6, 7, 8}


def test_load_and_longest_request():
    closed = Workload(concurrency=8)
    assert (closed.load_kind, closed.load, closed.at_load(3).concurrency) == ("concurrency", 8, 3)
    assert (closed.at_once(4), closed.at_once(100)) == (4, 8)
    few = closed.replace({"requests": 3})
    assert (few.at_once(100), few.replace({"duration_s": 60}).at_once(100)) == (3, 8)  # 8 clients, 3 requests
    poisson = closed.replace({"arrivals": {"kind": "poisson", "rate_s": 2}})
    assert (poisson.load_kind, poisson.load, poisson.at_load(2.5).arrivals.rate_s) == ("rate_s", 2, 2.5)
    assert poisson.at_once(4) == 4
    assert poisson.load_words == "2 requests/s, Poisson"
    with pytest.raises(WorkloadError, match="ramp"):
        closed.replace({"arrivals": {"kind": "ramp", "rate_s": 1, "end_rate_s": 2}}).at_load(3)
    chats = Workload(
        prompt_tokens=10, output_tokens=5, prefix=SharedPrefix(tokens=100), chats=Chats(turns=Lengths(min=2, max=4))
    )
    assert chats.longest_request == 100 + 4 * (10 + 5)
    assert chats.mean_prompt == 100 + 10 + 1.0 * 15  # the mean chat has 3 turns, with 0, 1 and 2 before them
