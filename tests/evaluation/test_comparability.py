from __future__ import annotations

import pytest

from mcp_core.evaluation.comparability import incomparable_load, incomparable_requests
from mcp_core.evaluation.metrics import summarize
from mcp_core.presets import bundled
from mcp_core.workload import PromptSource, Workload, short_chat


def reasons(records, workload=None, cached=None, others_cores=None, **figures):
    measured = summarize(records, 1.0).model_copy(update=figures)
    return list(incomparable_requests(measured, records, workload or Workload(), cached, others_cores))


def test_a_smoke_test_says_so():
    assert list(incomparable_load(bundled(), short_chat())) == ["smoke test: too small to decide anything"]
    assert list(incomparable_load(bundled(), Workload())) == []


def test_a_late_load_generator_is_named(record):
    assert reasons([record()], client_lag_p99_ms=1.9, late_p99_ms=9.0) == []
    said = reasons([record()], client_lag_p99_ms=2.1, late_p99_ms=11.0)
    assert [each.partition(":")[0] for each in said] == ["client-limited"] * 2
    assert not any("other processes" in each for each in said)


def test_whoever_kept_the_load_generator_waiting_is_named(record):
    (said,) = reasons([record()], client_lag_p99_ms=3.0, others_cores=0.3)
    lag, _, others = said.partition("; ")
    assert lag == "client-limited: the load generator's own loop was 3.0 ms late (p99)"
    assert others == "other processes used 0.3 cores meanwhile"
    assert reasons([record()], client_lag_p99_ms=3.0, others_cores=0.04) == [lag]
    assert reasons([record()], client_lag_p99_ms=1.9, others_cores=0.3) == []


@pytest.mark.parametrize(
    ("cached", "shared", "counters", "warm"),
    [
        ((0, 80), (0, 92), 80, 0),  # a second turn that found its first
        ((80, 0), (0, 92), 80, 80),  # a first turn that was known, which the sum alone would hide
        ((96, 96), (92, 92), 192, 8),
        ((None, None), (0, 92), 80, 0),
        ((None, None), (0, 0), 80, 80),
        ((None, 7), (0, 0), None, 7),
    ],
)
def test_what_the_plan_shares_is_no_warm_cache(record, cached, shared, counters, warm):
    records = [
        record(index, cached_tokens=has, shared_tokens=may)
        for index, (has, may) in enumerate(zip(cached, shared, strict=True))
    ]
    said = reasons(records, cached=counters)
    assert said == ([f"warm cache: {warm} prompt tokens were not computed"] if warm else [])


def test_what_a_chat_template_repeats_is_no_warm_cache(record):
    chat = Workload(prompts=PromptSource(as_chat=True))
    assert reasons([record(cached_tokens=32)], chat) == []
    assert "36 prompt tokens" in reasons([record(cached_tokens=100)], chat)[0]


def test_a_growing_queue_is_named_where_nobody_waits(record):
    records = [record(index, sent_ms=index, arrivals=(10.0 * (index + 1),)) for index in range(60)]
    opened = Workload.from_dict({"arrivals": {"kind": "constant", "rate_s": 5}})
    assert "the queue grew all the while" in reasons(records, opened)[0]
    assert reasons(records) == []


def test_a_text_that_was_too_short_for_the_time_is_named(record):
    own = Workload.from_dict({"prompts": {"kind": "file", "sha256": "ab" * 32}, "duration_s": 5})
    records = [record(index, prompt_sha256=f"{index % 4}") for index in range(6)]
    assert reasons(records, own) == ["repeated prompts: 2 requests sent a prompt that was sent before"]
    assert reasons(records[:4], own) == []
    assert reasons(records) == []
