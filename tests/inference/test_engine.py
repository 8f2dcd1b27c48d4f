from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import torch

from mcp_core.errors import Busy, ContextTooLong, LoadFailed, McpError, QueueFull, RequestRejected
from mcp_core.generation import Sampling
from mcp_core.profile_plan import ProfilePlan
from mcp_core.recipe import Recipe
from tests.inference.conftest import Gate


def greedy(model, prompt, tokens):
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", ["dynamic", "static", "sliding", "off"])  # sliding: within its window
def test_greedy_equals_generate(model, make_engine, recorder, request_of, prompt, kind):
    engine = make_engine({"kv.kind": kind})
    for name in ("first", "second"):  # a reused static cache must not remember the first request
        engine.submit(request_of(name))
        recorder.wait_end(name)
        assert recorder.tokens(name) == greedy(model, prompt, 24)


@pytest.mark.parametrize("kind", ["dynamic", "static", "sliding", "off"])
def test_chunked_prefill_changes_nothing(model, make_engine, recorder, request_of, kind):
    long = tuple(range(3, 303))
    engine = make_engine({"kv.kind": kind})
    engine._decoder._chunk = 64
    engine.submit(request_of("long", prompt=long))
    recorder.wait_end("long")
    assert recorder.tokens("long") == greedy(model, long, 24)


def test_eos_ends_with_stop_and_is_reported(model, make_engine, recorder, request_of, prompt):
    expected = greedy(model, prompt, 24)
    engine = make_engine(eos_ids=frozenset({expected[5]}))
    engine.submit(request_of("r"))
    end = recorder.wait_end("r")
    first = expected.index(expected[5])
    assert (end.finish, recorder.tokens("r")) == ("stop", expected[: first + 1])
    engine.submit(request_of("ignored", ignore_eos=True))
    assert recorder.wait_end("ignored").finish == "length"
    assert recorder.tokens("ignored") == expected


def test_min_tokens_forbids_eos_until_reached(model, make_engine, recorder, request_of, prompt):
    expected = greedy(model, prompt, 24)
    engine = make_engine(eos_ids=frozenset({expected[0]}))
    engine.submit(request_of("r", min_tokens=8))
    recorder.wait_end("r")
    assert len(recorder.tokens("r")) >= 8
    assert expected[0] not in recorder.tokens("r")[:8]


def test_seed_repeats_and_differs(make_engine, recorder, request_of):
    engine = make_engine()
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        engine.submit(request_of(name, sampling=Sampling(temperature=1.0, top_p=0.95, seed=seed)))
        recorder.wait_end(name)
    assert recorder.tokens("a") == recorder.tokens("b") != recorder.tokens("c")


def test_logprobs_equal_those_of_one_forward_pass(model, make_engine, recorder, request_of, prompt):
    engine = make_engine()
    engine._decoder._chunk = 16  # across chunk borders too
    engine.submit(request_of("r", logprobs=3, prompt_logprobs=2))
    recorder.wait_end("r")
    tokens = recorder.tokens("r")
    with torch.inference_mode():
        reference = model(torch.tensor([[*prompt, *tokens]])).logits[0].log_softmax(-1)
    prompt_logprobs = recorder.of("r")[0].prompt_logprobs
    assert prompt_logprobs[0].logprob is None
    assert [entry.token for entry in prompt_logprobs] == list(prompt)
    for position, entry in enumerate(prompt_logprobs[1:], start=1):
        assert entry.logprob == pytest.approx(float(reference[position - 1, prompt[position]]), abs=1e-4)
        assert [token for token, _ in entry.top] == reference[position - 1].topk(2).indices.tolist()
    for index, event in enumerate(recorder.of("r")):
        row = reference[len(prompt) + index - 1]
        assert event.logprob.logprob == pytest.approx(float(row[event.token]), abs=1e-4)
        assert len(event.logprob.top) == 3


def test_scoring_only(make_engine, recorder, request_of, prompt):
    engine = make_engine()
    engine.submit(request_of("r", max_tokens=0, prompt_logprobs=0))
    end = recorder.wait_end("r")
    assert (end.token, end.finish, len(end.prompt_logprobs)) == (None, "length", len(prompt))


def test_context_ends_the_reply(make_engine, recorder, request_of):
    engine = make_engine(max_context=50)
    engine.submit(request_of("r", max_tokens=100))
    assert recorder.wait_end("r").finish == "length"
    assert len(recorder.tokens("r")) == 10


def test_requests_run_in_order_and_counters_add_up(make_engine, recorder, request_of, prompt):
    engine = make_engine()
    for index in range(3):
        engine.submit(request_of(f"r{index}", max_tokens=5))
    for index in range(3):
        recorder.wait_end(f"r{index}")
    order = [event.request_id for event in recorder.events]
    assert order == sorted(order)
    stats = engine.stats()
    assert (stats.finished_total, stats.output_tokens_total, stats.decode_steps_total) == (3, 15, 12)
    assert stats.prompt_tokens_total == 3 * len(prompt)
    assert (stats.running, stats.queued, stats.kv_tokens) == (0, 0, 0)


def test_timing_is_the_engines_own_clock(make_engine, recorder, request_of):
    engine = make_engine(start=False)
    forward = engine._decoder._forward

    def slow(*args, **kwargs):
        time.sleep(0.01)
        return forward(*args, **kwargs)

    engine._decoder._forward = slow
    arrived_s = time.perf_counter()
    engine.submit(request_of("r", arrived_s=arrived_s))
    time.sleep(0.1)
    engine.start()
    timing, events = recorder.wait_end("r").timing, recorder.of("r")
    # Bounds that hold however busy the machine is: no shorter than the sleeps, no longer than the events tell.
    assert 100 <= timing["queue_ms"] <= (events[0].at_s - arrived_s) * 1e3 - 10
    assert 10 <= timing["prefill_ms"] <= (events[0].at_s - arrived_s) * 1e3 - timing["queue_ms"]
    assert 23 * 10 <= timing["decode_ms"] <= (events[-1].at_s - events[0].at_s) * 1e3


def test_cancel_while_queued_and_while_running(make_engine, recorder, request_of):
    engine = make_engine()
    gate = Gate(engine, passes=4)
    engine.submit(request_of("running", max_tokens=400))
    engine.submit(request_of("queued"))
    gate.wait()
    engine.cancel("queued")
    assert recorder.wait_end("queued").finish == "cancelled"
    engine.cancel("running")
    gate.open()
    assert recorder.wait_end("running").finish == "cancelled"
    assert len(recorder.tokens("running")) == 5  # the pass that was held is the last one
    assert [sum(1 for event in recorder.of(name) if event.finish) for name in ("running", "queued")] == [1, 1]
    assert engine.stats().cancelled_total == 2
    engine.cancel("never heard of it")


def test_cancel_during_a_long_prefill(make_engine, recorder, request_of):
    engine = make_engine()
    engine._decoder._chunk = 1
    gate = Gate(engine, passes=10)
    engine.submit(request_of("r", prompt=tuple(range(3, 303))))
    gate.wait()
    engine.cancel("r")
    gate.open()
    end = recorder.wait_end("r")
    assert (end.finish, recorder.tokens("r")) == ("cancelled", [])
    stats = engine.stats()
    assert (stats.prompt_tokens_total, stats.cancelled_total) == (
        0,
        1,
    )  # what was not computed is not counted


def test_full_queue_and_live_limit(make_engine, request_of):
    engine = make_engine({"batching.max_requests": 2}, start=False)
    engine.submit(request_of("a"))
    engine.submit(request_of("b"))
    with pytest.raises(QueueFull, match="2 requests"):
        engine.submit(request_of("c"))
    engine.apply_live(Recipe(dtype="fp32").replace({"batching.max_requests": 3}))
    engine.submit(request_of("c"))
    assert engine.stats().queued == 3


@pytest.mark.parametrize(
    ("fields", "word"),
    [({"prompt": ()}, "empty"), ({"prompt": (5,) * 600}, "600 tokens"), ({"prompt": (5, 320)}, "0 to 319")],
)
def test_bad_prompts_are_refused(make_engine, request_of, fields, word):
    with pytest.raises(RequestRejected, match=word) as caught:
        make_engine(start=False).submit(request_of("r", **fields))
    assert isinstance(caught.value, ContextTooLong) == (word == "600 tokens")


def test_a_failing_request_ends_in_error_and_the_next_is_served(make_engine, recorder, request_of, monkeypatch):
    engine = make_engine()
    original = engine._decoder._forward

    def broken(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(engine._decoder, "_forward", broken)
    engine.submit(request_of("bad"))
    end = recorder.wait_end("bad")
    assert (end.finish, end.failure.kind) == ("error", "oom")
    monkeypatch.setattr(engine._decoder, "_forward", original)
    engine.submit(request_of("good"))
    assert recorder.wait_end("good").finish == "length"
    assert engine.stats().failed_total == 1


def test_drain_waits_and_refuses(make_engine, recorder, request_of):
    engine = make_engine()
    engine.submit(request_of("r", max_tokens=50))
    drained = []
    thread = threading.Thread(target=lambda: drained.append(engine.drain(60)))
    thread.start()
    while not engine._draining:
        time.sleep(0.001)
    with pytest.raises(QueueFull):
        engine.submit(request_of("late"))
    thread.join()
    assert drained == [True]
    assert recorder.wait_end("r").finish == "length"


def test_close_ends_everything(make_engine, recorder, request_of):
    engine = make_engine()
    gate = Gate(engine, passes=4)
    engine.submit(request_of("running", max_tokens=400))
    engine.submit(request_of("queued"))
    gate.wait()
    closing = threading.Thread(target=engine.close)
    closing.start()
    assert recorder.wait_end("queued").finish == "cancelled"
    gate.open()
    closing.join()
    assert {recorder.wait_end(name).finish for name in ("running", "queued")} == {"cancelled"}
    with pytest.raises(QueueFull):
        engine.submit(request_of("late"))


def profiled(engine, plan, folder, submit, timeout_s=60.0):
    """What ``engine.profile`` gave while ``submit`` was called once it recorded; an error is returned, too."""
    answers = []

    def profile():
        try:
            answers.append(engine.profile(plan, folder, timeout_s))
        except McpError as error:
            answers.append(error)

    waiting = threading.Thread(target=profile)
    waiting.start()
    while engine._recording is None and waiting.is_alive():
        time.sleep(0.001)
    submit()
    waiting.join(timeout=60)
    return answers[0]


def test_a_profile_holds_the_steps_that_were_asked_for(make_engine, request_of, tmp_path, prompt):
    engine = make_engine()
    plan = ProfilePlan(steps=3, wait=1, warmup=2, repeat=2)  # of 14: two of prefill at 1 and 11
    traces = profiled(
        engine, plan, tmp_path, lambda: [engine.submit(request_of(name, max_tokens=10)) for name in "ab"]
    )
    assert [[step.prefill_tokens for step in trace.steps] for trace in traces] == [[0, 0, 0], [0, len(prompt), 0]]
    for trace in traces:
        events = json.loads(Path(trace.path).read_text())["traceEvents"]
        names = [event.get("name") for event in events]
        assert names.count("engine step") == 3
        assert {"aten::scaled_dot_product_attention", "queue", "delivery"} <= set(names)
    assert traces[1].steps[1].queued_ms[0] > 0


def test_a_profile_that_cannot_be_written_fails_alone(make_engine, recorder, request_of, tmp_path):
    engine = make_engine()
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    error = profiled(engine, ProfilePlan(steps=2), in_the_way, lambda: engine.submit(request_of("r")))
    assert "not recorded" in str(error)
    assert recorder.wait_end("r").finish == "length"
    engine.submit(request_of("next"))
    assert recorder.wait_end("next").finish == "length"


def test_a_profile_without_steps_ends_in_time(make_engine, recorder, request_of, tmp_path):
    engine = make_engine()
    with pytest.raises(McpError, match="no step came"):
        engine.profile(ProfilePlan(steps=2), tmp_path, timeout_s=0.05)
    assert list(tmp_path.iterdir()) == []
    engine.submit(request_of("next"))
    assert recorder.wait_end("next").finish == "length"


def test_steps_that_came_in_time_are_kept_when_a_profile_is_stopped(make_engine, recorder, request_of, tmp_path):
    engine = make_engine()

    def ask_and_stop():
        engine.submit(request_of("r", max_tokens=6))
        recorder.wait_end("r")
        engine.stop_profile()

    (trace,) = profiled(engine, ProfilePlan(steps=60, warmup=1), tmp_path, ask_and_stop)
    assert len(trace.steps) == 5


def test_a_second_profile_is_refused_and_closing_wakes_the_first(make_engine, tmp_path):
    engine = make_engine()

    def ask_again_and_close():
        with pytest.raises(Busy):
            engine.profile(ProfilePlan(), tmp_path)
        engine.close()

    error = profiled(engine, ProfilePlan(), tmp_path, ask_again_and_close)
    assert "no step came" in str(error)


@pytest.mark.parametrize("kind", ["dynamic", "static", "sliding", "off"])
def test_warm_up_tells_the_attention_kernel(make_engine, kind):
    assert make_engine({"kv.kind": kind}, start=False).warm_up() == "flash"


def test_warm_up_refuses_a_model_that_computes_nan(make_engine, loaded, monkeypatch):
    engine = make_engine(start=False)
    engine.warm_up()
    original = engine._decoder._forward
    monkeypatch.setattr(engine._decoder, "_forward", lambda *a, **k: original(*a, **k) * float("nan"))
    with pytest.raises(LoadFailed, match="fp32"):
        engine.warm_up()
