"""Every batching mode gives the model's own tokens, ends every request once, and can be changed live."""

from __future__ import annotations

import copy
import random
import threading
import time
import weakref

import pytest
import torch

from mcp_core.errors import Busy, ContextTooLong, McpError, RecipeError
from mcp_core.generation import Sampling
from mcp_core.inference import batching
from mcp_core.inference.paged import attention
from mcp_core.inference.paged.decode_steps import Computed
from mcp_core.recipe import Recipe
from tests.inference.conftest import Gate
from tests.inference.test_engine import greedy

MODES = {
    "off": {},
    "static": {"batching.mode": "static", "batching.max_requests": 8, "batching.max_wait_ms": 20},
    "continuous": {"batching.mode": "continuous"},
    "small pool": {"batching.mode": "continuous", "batching.kv_blocks": 14, "batching.step_tokens": 32},
    "prefix cache": {"batching.mode": "continuous", "prefix_cache": True},
    "off with prefix cache": {"prefix_cache": True},
    "ahead": {"batching.mode": "continuous", "ahead": True},
    "small pool, ahead": {
        "batching.mode": "continuous",
        "batching.kv_blocks": 14,
        "batching.step_tokens": 32,
        "ahead": True,
    },
    "prefix cache, ahead": {"prefix_cache": True, "ahead": True},
}
EACH_MODE = pytest.mark.parametrize("changes", MODES.values(), ids=MODES.keys())


@pytest.fixture(scope="module")
def prompts():
    draw = random.Random(5)
    return [tuple(draw.randrange(3, 320) for _ in range(length)) for length in (40, 7, 100, 33, 65, 1, 90, 16)]


@pytest.fixture(scope="module")
def expected(model, prompts):
    """What ``generate`` gives; computed before any engine's thread uses the model."""
    return [greedy(model, prompt, 24) for prompt in prompts]


@EACH_MODE
def test_greedy_equals_generate(make_engine, recorder, request_of, prompts, expected, changes):
    limits = {"batching.max_requests": 64} | changes
    engine = make_engine({**limits, "batching.max_requests": 64})
    for again in range(2):
        for index, prompt in enumerate(prompts):
            engine.submit(request_of(f"{again}-{index}", prompt=prompt))
    for again in range(2):
        for index in range(len(prompts)):
            assert recorder.wait_end(f"{again}-{index}").finish == "length"
            assert recorder.tokens(f"{again}-{index}") == expected[index]
    stats = engine.stats()
    assert (stats.finished_total, stats.output_tokens_total, stats.kv_pages_used) == (16, 16 * 24, 0)
    assert (stats.running, stats.queued) == (0, 0)


def test_a_known_prefix_is_counted_and_changes_no_token(model, make_engine, recorder, request_of, prompt):
    long = prompt * 2  # 80 tokens, five pages, of which the last token's is computed
    alone = greedy(model, long, 24)
    engine = make_engine({"batching.mode": "continuous", "prefix_cache": True})
    for name in ("cold", "warm"):
        engine.submit(request_of(name, prompt=long))
        recorder.wait_end(name)
    assert recorder.tokens("cold") == recorder.tokens("warm") == alone
    assert engine.stats().cached_prompt_tokens_total == 64
    engine.submit(request_of("stranger", prompt=long, tenant="other"))
    recorder.wait_end("stranger")
    assert engine.stats().cached_prompt_tokens_total == 64


@pytest.mark.parametrize("mode", ["small pool", "small pool, ahead"])
def test_a_small_pool_loses_nothing(make_engine, recorder, request_of, prompts, mode):
    engine = make_engine(MODES[mode])
    for index, prompt in enumerate(prompts):
        engine.submit(request_of(str(index), prompt=prompt, max_tokens=60, ignore_eos=True))
    for index in range(len(prompts)):
        assert recorder.wait_end(str(index)).finish == "length"
    assert engine.stats().preemptions_total > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"batching.mode": "continuous"},
        {"batching.mode": "continuous", "batching.kv_blocks": 14, "batching.step_tokens": 32},
        {"batching.mode": "continuous", "prefix_cache": True, "ahead": True},
        {"prefix_cache": True},
    ],
    ids=["continuous", "small pool", "prefix cache, ahead", "off with prefix cache"],
)
def test_fp8_pages_give_what_the_fp8_cache_of_one_sequence_gives(
    make_engine, loaded, recorder, request_of, prompts, expected, changes
):
    fp8 = {"kv.kind": "quantized-fp8", "batching.max_requests": 64}
    effective = loaded.effective.model_copy(update={"kv_kind": "quantized-fp8"})
    tokens = {}
    for name, mode in (("alone", {}), ("pages", changes)):
        engine = make_engine(fp8 | mode, effective=effective)
        for index, prompt in enumerate(prompts):
            engine.submit(request_of(f"{name} {index}", prompt=prompt, ignore_eos=True))
        for index in range(len(prompts)):
            assert recorder.wait_end(f"{name} {index}").finish == "length"
        tokens[name] = [recorder.tokens(f"{name} {index}") for index in range(len(prompts))]
    assert tokens["pages"] == tokens["alone"]
    assert tokens["alone"] != expected  # it is lossy
    pool = engine._mode._runner.cache
    assert pool.page_bytes == 16 * 2 * 3 * 2 * (16 + 2)
    assert "from fp8" in engine.kernel_name


@pytest.mark.parametrize("mode", ["small pool", "small pool, ahead"])
def test_what_the_preempted_had_comes_back_from_the_host_and_changes_no_token(
    model, make_engine, recorder, request_of, prompts, mode
):
    """Against the same load without host memory, and a pool that holds all of it."""
    told: dict[str, list[list[int]]] = {}
    counted: dict[str, int] = {}
    loads = {"kept": MODES[mode], "computed again": MODES[mode], "never preempted": {"batching.mode": "continuous"}}
    for name, changes in loads.items():
        engine = make_engine(changes, start=False)
        run, counts = engine._mode._runner.run, []
        engine._mode._runner.run = lambda parts, run=run, counts=counts: (
            counts.append(sum(part.count for part in parts)) or run(parts)
        )
        if name == "computed again":
            engine._mode._host.limit_bytes = 0
        for index, prompt in enumerate(prompts):
            engine.submit(request_of(f"{name} {index}", prompt=prompt, max_tokens=60, ignore_eos=True))
        engine.start()
        for index in range(len(prompts)):
            assert recorder.wait_end(f"{name} {index}").finish == "length"
        told[name] = [recorder.tokens(f"{name} {index}") for index in range(len(prompts))]
        stats = engine.stats()
        counted[name] = sum(counts)
        assert (stats.preemptions_total > 0) == (name != "never preempted")
        assert (stats.kv_host_returned_total > 0) == (name == "kept")
        assert stats.kv_host_returned_total <= stats.kv_host_kept_total <= stats.preemptions_total
        assert stats.kv_host_bytes == 0
    assert told["kept"] == told["computed again"] == told["never preempted"]
    assert counted["never preempted"] <= counted["kept"] < counted["computed again"]


def test_a_prompt_that_the_pool_cannot_hold_is_refused(make_engine, request_of):
    engine = make_engine({"batching.mode": "continuous", "batching.kv_blocks": 4})
    with pytest.raises(ContextTooLong, match="holds 64"):
        engine.submit(request_of("r", prompt=tuple(range(3, 103))))


def test_ahead_no_step_waits_for_the_tokens_of_the_one_before(make_engine, recorder, request_of, prompts):
    """Each is launched before its forerunner is read; only a request whose choice needs them waits."""
    engine = make_engine({"batching.mode": "continuous", "ahead": True}, start=False)
    mode, unread = engine._mode, []
    launch = mode._launch

    def watched(parts):
        unread.append(mode._launched is not None)
        return launch(parts)

    mode._launch = watched
    for index, prompt in enumerate(prompts[:3]):
        engine.submit(request_of(str(index), prompt=prompt))
    engine.start()
    for index in range(3):
        recorder.wait_end(str(index))
    assert unread == [False] + [True] * 23
    unread.clear()
    engine.submit(request_of("penalty", sampling=Sampling(temperature=0, repetition_penalty=1.2)))
    recorder.wait_end("penalty")
    assert unread == [False] * 24


def test_ahead_a_mode_is_checked_as_it_serves(make_engine):
    """A token that is taken from the wrong place on the device would be seen before the first request."""
    engine = make_engine({"batching.mode": "continuous", "ahead": True}, start=False)
    keep = engine._mode._runner.keep
    engine.warm_up()
    engine._mode._runner.keep = lambda tokens: keep(tokens * 0)
    with pytest.raises(McpError, match="own tokens"):
        engine.warm_up()


def test_ahead_a_reply_that_ends_by_itself_is_computed_once_more_and_told_once(
    model, make_engine, recorder, request_of, prompt
):
    expected = greedy(model, prompt, 24)
    engine = make_engine(MODES["ahead"], eos_ids=frozenset({expected[5]}))
    for name in ("first", "second"):  # the second uses the pages that the first one's last step wrote to
        engine.submit(request_of(name))
        assert recorder.wait_end(name).finish == "stop"
        assert recorder.tokens(name) == expected[: expected.index(expected[5]) + 1]
    assert engine.stats().output_tokens_total == 2 * (expected.index(expected[5]) + 1)
    assert engine.stats().kv_pages_used == 0


@EACH_MODE
def test_a_seed_gives_the_same_text_alone_and_in_company(make_engine, recorder, request_of, prompts, changes):
    engine = make_engine(changes)
    sampling = Sampling(temperature=0.8, top_p=0.9, top_k=40, seed=11)
    engine.submit(request_of("alone", sampling=sampling))
    alone = recorder.wait_end("alone") and recorder.tokens("alone")
    for index, prompt in enumerate(prompts[:5]):
        engine.submit(request_of(f"other-{index}", prompt=prompt, sampling=Sampling(temperature=1.0, seed=index)))
    engine.submit(request_of("in company", sampling=sampling))
    recorder.wait_end("in company")
    assert recorder.tokens("in company") == alone


@EACH_MODE
def test_stop_ids_min_tokens_and_logprobs(model, make_engine, recorder, request_of, prompt, changes):
    expected = greedy(model, prompt, 24)
    engine = make_engine(changes, eos_ids=frozenset({expected[5]}))
    engine.submit(request_of("stops"))
    engine.submit(request_of("goes on", ignore_eos=True, logprobs=2))
    engine.submit(request_of("longer", min_tokens=10))
    assert recorder.wait_end("stops").finish == "stop"
    assert recorder.tokens("stops") == expected[: expected.index(expected[5]) + 1]
    recorder.wait_end("goes on")
    recorder.wait_end("longer")  # from here on the model is ours: the engine's thread has nothing to do
    assert recorder.tokens("goes on") == expected
    with torch.inference_mode():
        reference = model(torch.tensor([[*prompt, *expected]])).logits[0].log_softmax(-1)
    for index, event in enumerate(recorder.of("goes on")):
        row = reference[len(prompt) + index - 1]
        assert event.logprob.logprob == pytest.approx(float(row[event.token]), abs=1e-4)
    assert expected[5] not in recorder.tokens("longer")[:10]


@EACH_MODE
def test_prompts_are_scored_beside_others(make_engine, recorder, request_of, prompts, prompt, expected, changes):
    engine = make_engine(changes)
    engine.submit(request_of("running", max_tokens=30))
    engine.submit(request_of("score", max_tokens=0, prompt_logprobs=1))
    engine.submit(request_of("echo", prompt=prompts[0], prompt_logprobs=1))
    end = recorder.wait_end("score")
    assert (end.token, end.finish, len(end.prompt_logprobs)) == (None, "length", len(prompt))
    assert recorder.wait_end("echo").finish == "length"
    assert recorder.tokens("echo") == expected[0]
    assert len(recorder.of("echo")[0].prompt_logprobs) == len(prompts[0])
    assert recorder.wait_end("running").finish == "length"


@pytest.mark.parametrize("ahead", [False, True])
def test_a_scored_prompt_has_its_turn_by_arrival_however_many_come(
    make_engine, recorder, request_of, prompts, expected, ahead
):
    """Two run and two wait when it comes; from then on a request comes at every step, and none ever finds nothing
    to do."""
    mode = make_engine(
        {"batching.mode": "continuous", "batching.max_requests": 2, "ahead": ahead}, start=False
    )._mode
    tokens: dict[str, list[int]] = {}
    order: list[str] = []

    def steps(count: int) -> None:
        for _ in range(count):
            done = mode.step()
            order.extend(request.id for request, _ in done.started)
            for each in done.outcomes:
                tokens.setdefault(each.request.id, []).append(each.token)

    for index in range(4):
        mode.add(request_of(f"early-{index}", prompt=prompts[index], max_tokens=6, arrived_s=float(index)))
    mode.add(request_of("score", max_tokens=3, prompt_logprobs=1, arrived_s=5.0))
    for index in range(40):
        late = 6.0 + index
        mode.add(request_of(f"late-{index}", prompt=prompts[index % 8], max_tokens=6, arrived_s=late))
        steps(1)
    assert order[:5] == ["early-0", "early-1", "early-2", "early-3", "score"]
    assert len(tokens["score"]) == 3
    for index in range(4):  # and it cost nobody a token
        assert tokens[f"early-{index}"] == expected[index][:6]


def test_a_scored_prompt_s_reply_takes_turns_with_the_others(make_engine, request_of, prompts):
    mode = make_engine({"batching.mode": "continuous"}, start=False)._mode
    mode.add(request_of("score", max_tokens=8, prompt_logprobs=0))
    mode.add(request_of("other", prompt=prompts[1], max_tokens=8))
    seen = [outcome.request.id for _ in range(16) for outcome in mode.step().outcomes]
    assert seen == ["score", "other"] * 8


@EACH_MODE
def test_requests_that_come_and_go_end_once_each(make_engine, recorder, request_of, changes):
    engine = make_engine(changes | {"batching.max_requests": 1000})
    draw = random.Random(1)
    for index in range(100):
        engine.submit(request_of(str(index), prompt=(5,) * draw.randrange(1, 40), max_tokens=draw.randrange(1, 4)))
        if draw.random() < 0.5:
            engine.cancel(str(draw.randrange(index + 1)))
    for index in range(100):
        recorder.wait_end(str(index))
    ends = [event.request_id for event in recorder.events if event.finish]
    assert len(ends) == len(set(ends)) == 100
    stats = engine.stats()
    assert stats.finished_total + stats.cancelled_total == 100
    assert (stats.running, stats.queued, stats.kv_pages_used) == (0, 0, 0)


def test_continuous_requests_join_while_others_run(make_engine, recorder, request_of):
    engine = make_engine({"batching.mode": "continuous"})
    engine.submit(request_of("first", max_tokens=300))
    recorder.wait(lambda: len(recorder.of("first")) >= 3)
    engine.submit(request_of("second", max_tokens=5))
    recorder.wait_end("second")
    assert not any(event.finish for event in recorder.of("first"))
    recorder.wait_end("first")


def test_static_waits_for_a_full_batch_and_runs_it_together(make_engine, recorder, request_of):
    changes = {"batching.mode": "static", "batching.max_requests": 3, "batching.max_wait_ms": 60_000}
    engine = make_engine(changes)
    engine.submit(request_of("a", max_tokens=2))
    engine.submit(request_of("b", max_tokens=30))
    time.sleep(0.1)
    assert recorder.events == []
    engine.submit(request_of("c", max_tokens=5))
    recorder.wait_end("b")
    order = [event.request_id for event in recorder.events]
    assert order[:3] == ["a", "b", "c"]


def test_static_starts_a_part_batch_after_its_wait(make_engine, recorder, request_of):
    engine = make_engine({"batching.mode": "static", "batching.max_wait_ms": 150})
    began_s = time.monotonic()
    engine.submit(request_of("a", max_tokens=1))
    recorder.wait_end("a")
    assert time.monotonic() - began_s >= 0.15


class TestSwap:
    def recipe(self, changes):
        return Recipe(dtype="fp32").replace(changes)

    def test_the_mode_changes_under_load_and_no_request_is_lost(
        self, make_engine, recorder, request_of, prompts, expected
    ):
        engine = make_engine()
        names = []
        for number, changes in enumerate([*(each for each in MODES.values() if "ahead" not in each), {}]):
            for index, prompt in enumerate(prompts):
                names.append((f"{number}-{index}", expected[index]))
                engine.submit(request_of(names[-1][0], prompt=prompt))
            engine.apply_live(self.recipe({"batching.max_requests": 64} | changes | {"batching.max_requests": 64}))
        for name, tokens in names:
            assert recorder.wait_end(name).finish == "length"
            assert recorder.tokens(name) == tokens

    def test_more_may_run_at_once_than_when_it_was_loaded(
        self, make_engine, recorder, request_of, prompts, expected
    ):
        changes = {"batching.mode": "continuous", "batching.max_requests": 2}
        engine = make_engine(changes)
        engine.apply_live(self.recipe(changes | {"batching.max_requests": 8}))
        for index, prompt in enumerate(prompts):
            engine.submit(request_of(str(index), prompt=prompt))
        for index in range(len(prompts)):
            assert recorder.wait_end(str(index)).finish == "length"
            assert recorder.tokens(str(index)) == expected[index]

    @pytest.mark.parametrize("ahead", [False, True])
    @pytest.mark.parametrize("most", [1, 2])
    def test_steps_of_more_are_made_ahead_before_more_may_run(
        self, model, make_engine, recorder, request_of, prompts, expected, monkeypatch, ahead, most
    ):
        """compile's machinery is faked: what is compiled is computed as it is."""
        compiled: list[object] = []

        def fake_compile(compute, **options):
            compiled.append(compute)
            return compute

        monkeypatch.setattr("torch.compile", fake_compile)
        changes = {"batching.mode": "continuous", "batching.max_requests": most, "compile": "compiled"}
        engine = make_engine(changes | {"ahead": ahead}, model=copy.deepcopy(model))  # its projections are joined
        mode, took_s = engine._mode, engine.preparation.seconds
        engine.submit(request_of("running", prompt=prompts[0], max_tokens=200, ignore_eos=True))
        recorder.wait(lambda: len(recorder.of("running")) >= 2)
        engine.apply_live(self.recipe(changes | {"batching.max_requests": 9}))
        assert engine.preparation.seconds > took_s
        decode, sizes = mode._runner._decode, []
        run = decode.run
        decode.run = lambda rows, count: sizes.append(count) or run(rows, count)
        for index, prompt in enumerate(prompts):
            engine.submit(request_of(str(index), prompt=prompt))
        for index in range(len(prompts)):
            assert recorder.wait_end(str(index)).finish == "length"
            assert recorder.tokens(str(index)) == expected[index]
        assert max(sizes) == 9
        assert recorder.wait_end("running").finish == "length"
        assert recorder.tokens("running")[:24] == expected[0]
        assert len(compiled) == 2
        assert mode._scheduler.max_running == 9

    def test_a_limit_whose_steps_cannot_be_made_is_refused_and_the_old_one_holds(
        self, model, make_engine, recorder, request_of, monkeypatch
    ):
        monkeypatch.setattr("torch.compile", lambda compute, **options: compute)
        changes = {"batching.mode": "continuous", "batching.max_requests": 2, "compile": "compiled"}
        engine = make_engine(changes, model=copy.deepcopy(model))

        def broken(*_args):
            raise torch.OutOfMemoryError

        monkeypatch.setattr(engine._mode._runner._decode, "prepare", broken)
        engine.submit(request_of("r", max_tokens=100, ignore_eos=True))
        with pytest.raises(McpError, match="Memory"):
            engine.apply_live(self.recipe(changes | {"batching.max_requests": 9}))
        assert (engine.stats().max_requests, engine._mode._scheduler.max_running) == (2, 2)
        assert recorder.wait_end("r").finish == "length"

    def test_a_mode_whose_end_fails_is_told_and_the_engine_goes_on(
        self, make_engine, recorder, request_of, monkeypatch
    ):
        """On a CUDA device an error of the last step, which nobody has read, may come as late as that."""
        engine = make_engine({"batching.mode": "continuous"})

        def broken():
            raise RuntimeError("CUDA error")

        monkeypatch.setattr(engine._mode, "close", broken)
        with pytest.raises(McpError, match="CUDA error"):
            engine.apply_live(self.recipe({"batching.mode": "static"}))
        engine.submit(request_of("r"))
        assert recorder.wait_end("r").finish == "length"

    def test_what_does_not_end_in_time_is_failed_with_the_reason(self, make_engine, recorder, request_of):
        engine = make_engine()
        engine.submit(request_of("long", max_tokens=400))
        recorder.wait(lambda: len(recorder.of("long")) > 1)
        engine.apply_live(self.recipe({"batching.mode": "continuous"}), timeout_s=0.01)
        end = recorder.wait_end("long")
        assert end.finish in {"error", "length"}
        assert end.finish == "length" or "batching mode was changed" in end.failure.message
        engine.submit(request_of("next"))
        assert recorder.wait_end("next").finish == "length"
        assert engine.mode_name == "continuous"

    def test_a_mode_that_cannot_be_built_leaves_the_old_one(self, make_engine, recorder, request_of, monkeypatch):
        engine = make_engine()
        build = engine._build

        def broken(recipe):
            if recipe.batching.mode == "continuous":
                raise torch.OutOfMemoryError
            return build(recipe)

        monkeypatch.setattr(engine, "_build", broken)
        with pytest.raises(McpError, match="Memory"):
            engine.apply_live(self.recipe({"batching.mode": "continuous"}))
        assert engine.mode_name == "off"
        engine.submit(request_of("r"))
        assert recorder.wait_end("r").finish == "length"

    def test_a_second_change_meanwhile_is_refused(self, make_engine, recorder, request_of):
        engine = make_engine()
        engine.submit(request_of("long", max_tokens=400, ignore_eos=True))
        recorder.wait(lambda: len(recorder.of("long")) > 1)
        first = threading.Thread(target=engine.apply_live, args=[self.recipe({"batching.mode": "continuous"})])
        first.start()
        while engine._change is None and first.is_alive():
            time.sleep(0.001)
        with pytest.raises(Busy, match="being changed"):
            engine.apply_live(self.recipe({"batching.mode": "static"}))
        first.join(60)
        assert engine.mode_name == "continuous"

    def test_who_waits_for_a_change_is_told_when_the_worker_ends(self, make_engine, recorder, request_of):
        engine = make_engine()
        gate = Gate(engine, passes=3)
        engine.submit(request_of("held", max_tokens=400))
        gate.wait()
        said: list[McpError] = []

        def change():
            try:
                engine.apply_live(self.recipe({"batching.mode": "continuous"}))
            except McpError as error:
                said.append(error)

        waiting = threading.Thread(target=change)
        waiting.start()
        while engine._change is None:
            time.sleep(0.001)
        closing = threading.Thread(target=engine.close)
        closing.start()
        gate.open()
        waiting.join(30)
        closing.join(30)
        assert [type(error) for error in said] == [Busy]

    def test_a_waiting_prompt_that_the_new_pool_cannot_hold_ends_with_the_reason(
        self, make_engine, recorder, request_of
    ):
        engine = make_engine({"batching.kv_blocks": 4})  # mode off does not use pages
        gate = Gate(engine, passes=3)
        engine.submit(request_of("running"))
        gate.wait()
        engine.submit(request_of("long", prompt=tuple(range(3, 203))))
        changing = threading.Thread(
            target=engine.apply_live, args=[self.recipe({"batching.kv_blocks": 4, "batching.mode": "continuous"})]
        )
        changing.start()
        while engine._change is None:
            time.sleep(0.001)
        gate.open()
        end = recorder.wait_end("long")
        changing.join(60)
        assert (end.finish, end.failure.kind) == ("error", "context")
        assert recorder.wait_end("running").finish == "length"

    def test_where_not_even_the_old_mode_can_be_built_requests_are_served_one_by_one(
        self, make_engine, recorder, request_of, monkeypatch
    ):
        engine = make_engine({"batching.mode": "continuous"})
        build = engine._build

        def broken(recipe):
            if recipe.batching.mode != "off":
                raise torch.OutOfMemoryError
            return build(recipe)

        monkeypatch.setattr(engine, "_build", broken)
        with pytest.raises(McpError, match="Memory"):
            engine.apply_live(self.recipe({"batching.mode": "static"}))
        assert engine.mode_name == "off"
        engine.submit(request_of("r"))
        assert recorder.wait_end("r").finish == "length"

    def test_what_was_tried_is_gone_before_the_old_mode_is_built_again(self, make_engine, monkeypatch):
        """Two pools would not fit on a device."""
        engine, tried, gone = make_engine(), [], []
        build = engine._build

        def broken(recipe):
            if recipe.batching.mode == "continuous":
                mode = build(recipe)
                tried.append(weakref.ref(mode))
                raise torch.OutOfMemoryError
            gone.append(tried[0]() is None)
            return build(recipe)

        monkeypatch.setattr(engine, "_build", broken)
        with pytest.raises(McpError, match="Memory"):
            engine.apply_live(self.recipe({"batching.mode": "continuous"}))
        assert gone == [True]

    def test_a_mode_that_is_refused_gives_its_pool_back(self, make_engine, monkeypatch):
        engine, built = make_engine(), []
        build = engine._build
        monkeypatch.setattr(engine, "_build", lambda recipe: built.append(build(recipe)) or built[-1])
        monkeypatch.setattr(engine._check, "_agrees", lambda _outcomes: False)
        with pytest.raises(McpError, match="own tokens"):
            engine.apply_live(self.recipe({"batching.mode": "continuous"}))
        assert engine.mode_name == "off"
        assert built[0]._runner.cache.keys == []

    def test_a_mode_that_computes_something_else_is_refused_in_16_bits_too(self, make_engine, loaded, monkeypatch):
        engine = make_engine(effective=loaded.effective.model_copy(update={"dtype": "bf16"}))
        engine._check.warm_up()
        build = engine._build

        def confused(recipe):
            mode = build(recipe)
            if recipe.batching.mode == "continuous":
                run = mode._runner.run
                mode._runner.run = lambda parts: Computed(-(logits := run(parts).logits), (-logits).argmax(-1))
            return mode

        monkeypatch.setattr(engine, "_build", confused)
        with pytest.raises(McpError, match="own tokens"):
            engine.apply_live(self.recipe({"batching.mode": "continuous"}))


@pytest.mark.parametrize(("spoils_from", "refused"), [(1, True), (2, True), (99, False)])
def test_in_16_bits_later_tokens_are_checked_too(make_engine, loaded, spoils_from, refused):
    """A mode whose decode steps, not its prompts, compute something else gives a right first token."""
    effective = loaded.effective.model_copy(update={"dtype": "bf16"})
    engine = make_engine({"batching.mode": "continuous"}, start=False, effective=effective)
    run, steps = engine._mode._runner.run, []

    def spoiled(parts):
        computed = run(parts)
        steps.append(parts)
        logits = computed.logits.roll(1, -1) if len(steps) > spoils_from else computed.logits
        return Computed(logits, logits.argmax(-1))

    engine._mode._runner.run = spoiled
    if refused:
        with pytest.raises(McpError, match="own tokens"):
            engine.warm_up()
    else:
        engine.warm_up()


def test_a_fault_outside_any_request_ends_each_held_one_once(make_engine, recorder, request_of, caplog):
    engine = make_engine({"batching.mode": "continuous"}, start=False)
    step, broken = engine._mode.step, [False]

    def step_or_fail():  # before it has said whose tokens are in it
        if broken[0]:
            broken[0] = False
            raise ZeroDivisionError
        return step()

    engine._mode.step = step_or_fail
    engine.submit(request_of("short", max_tokens=1))
    engine.start()
    recorder.wait_end("short")
    broken[0] = True
    engine.submit(request_of("next"))
    assert recorder.wait_end("next").finish == "error"
    assert "Traceback" in caplog.text  # its hint says that the log says more
    engine.submit(request_of("after"))
    assert recorder.wait_end("after").finish == "length"
    ends = [event.request_id for event in recorder.events if event.finish]
    assert sorted(ends) == ["after", "next", "short"]


@pytest.mark.parametrize("mode", ["static", "continuous"])
def test_a_prompt_that_is_scored_can_be_cancelled(make_engine, recorder, request_of, mode):
    engine = make_engine({"batching.mode": mode}, start=False)
    engine._decoder._chunk = 1
    gate = Gate(engine, passes=5)
    engine.start()
    engine.submit(request_of("score", prompt=tuple(range(3, 203)), max_tokens=0, prompt_logprobs=0))
    gate.wait()
    engine.cancel("score")
    gate.open()
    end = recorder.wait_end("score")
    assert end.finish == "cancelled"
    assert engine.stats().prompt_tokens_total == 0


@pytest.mark.parametrize("field", ["sliding_window", "softcap", "s_aux"])
def test_attention_that_pages_cannot_compute_is_refused_by_name(field):
    with pytest.raises(RecipeError, match=field):
        attention._attend(None, None, None, None, None, paged=(None, None), **{field: 4})
    with pytest.raises(RecipeError, match="do not reach"):
        attention._attend(None, None, None, None, None)


def test_a_model_with_its_own_attention_is_not_served_in_pages(make_engine, model, monkeypatch):
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    with pytest.raises(RecipeError, match="own attention"):
        make_engine({"batching.mode": "continuous"}, start=False)


@pytest.mark.parametrize("ahead", [False, True])
def test_lack_of_memory_in_a_step_loses_nothing(make_engine, recorder, request_of, prompts, expected, ahead):
    engine = make_engine({"batching.mode": "continuous", "ahead": ahead}, start=False)
    run, left = engine._mode._runner.run, [2]

    def short_of_memory(parts):
        if left[0] and sum(part.count for part in parts) > 50:
            left[0] -= 1
            raise torch.OutOfMemoryError
        return run(parts)

    engine._mode._runner.run = short_of_memory
    for index, prompt in enumerate(prompts):
        engine.submit(request_of(str(index), prompt=prompt))
    engine.start()
    for index in range(len(prompts)):
        assert recorder.wait_end(str(index)).finish == "length"
        assert recorder.tokens(str(index)) == expected[index]
    assert left == [0]


@pytest.mark.parametrize("ahead", [False, True])
def test_lack_of_memory_while_tokens_are_drawn_moves_no_random_stream(make_engine, recorder, request_of, ahead):
    engine = make_engine({"batching.mode": "continuous", "ahead": ahead})
    chooser, sampling = engine._mode._chooser, Sampling(temperature=1.0, seed=3)
    sampled, calls = chooser._sampled, []

    def short_of_memory(*args):
        calls.append(sampled(*args))
        if len(calls) == 30:  # the sixth token of the second request
            raise torch.OutOfMemoryError
        return calls[-1]

    chooser._sampled = short_of_memory
    for name in ("whole", "interrupted"):
        engine.submit(request_of(name, sampling=sampling, ignore_eos=True))
        recorder.wait_end(name)
    assert recorder.tokens("interrupted") == recorder.tokens("whole")
    assert len(calls) == 49


def test_memory_that_never_suffices_fails_the_step_s_requests_by_name(make_engine, recorder, request_of):
    engine = make_engine({"batching.mode": "continuous"}, start=False)

    def broken(parts):
        raise torch.OutOfMemoryError

    run, engine._mode._runner.run = engine._mode._runner.run, broken
    engine.submit(request_of("bad"))
    engine.start()
    end = recorder.wait_end("bad")
    assert (end.finish, end.failure.kind) == ("error", "oom")
    engine._mode._runner.run = run
    engine.submit(request_of("good"))
    assert recorder.wait_end("good").finish == "length"


@pytest.mark.parametrize("seed", [0, 1])
def test_ahead_faults_and_cancellations_at_any_moment_end_each_once_and_change_no_token(
    make_engine, recorder, request_of, prompts, expected, seed
):
    draw = random.Random(seed)
    small = {
        "batching.kv_blocks": 20,
        "batching.step_tokens": 48,
        "batching.max_requests": 64,
        "prefix_cache": True,
    }
    engine = make_engine(MODES["ahead"] | small, start=False)
    mode = engine._mode

    def sometimes_broken(work):
        def work_or_fail(*args):
            if draw.random() < 0.02:
                raise torch.OutOfMemoryError
            done = work(*args)
            if draw.random() < 0.02:
                raise ZeroDivisionError
            return done

        return work_or_fail

    mode._runner.run, mode._choose = sometimes_broken(mode._runner.run), sometimes_broken(mode._choose)
    engine.start()
    most = [draw.randrange(1, 20) for _ in range(32)]
    for index, count in enumerate(most):
        logprobs = 1 if index % 7 == 6 else None  # whose tokens have to be read at once
        engine.submit(request_of(str(index), prompt=prompts[index % 8], max_tokens=count, logprobs=logprobs))
        time.sleep(0.005 * (draw.random() < 0.3))
        if draw.random() < 0.2:
            engine.cancel(str(draw.randrange(index + 1)))
    ends = [recorder.wait_end(str(index)).finish for index in range(len(most))]
    assert set(ends) == {"length", "error", "cancelled"}
    for index, count in enumerate(most):
        tokens = recorder.tokens(str(index))
        assert tokens == expected[index % 8][: len(tokens)]
        assert len(tokens) == count or ends[index] != "length"
    assert sum(event.finish is not None for event in recorder.events) == len(most)
    stats = engine.stats()
    assert (stats.kv_pages_used, stats.running, stats.queued) == (0, 0, 0)
    assert not mode._chooser._samplers
    assert not mode._started


@EACH_MODE
def test_cancel_while_queued_prefilling_and_decoding(make_engine, recorder, request_of, changes):
    engine = make_engine(changes, start=False)
    step = engine._mode.step

    def slow():
        time.sleep(0.005)
        return step()

    engine._mode.step = slow
    engine.start()
    engine.submit(request_of("running", max_tokens=160))
    recorder.wait(lambda: len(recorder.of("running")) >= 2)
    engine.submit(request_of("late", prompt=tuple(range(3, 183)), max_tokens=200))
    threading.Timer(0.02, engine.cancel, ["late"]).start()
    assert recorder.wait_end("late").finish == "cancelled"
    engine.cancel("running")
    assert recorder.wait_end("running").finish == "cancelled"
    assert engine.stats().cancelled_total == 2


def test_without_a_cache_no_keys_and_values_are_counted(make_engine, recorder, request_of):
    for kind, capacity in (("off", 0), ("dynamic", 512)):
        engine = make_engine({"kv.kind": kind})
        engine.submit(request_of(kind, max_tokens=3))
        recorder.wait_end(kind)
        assert engine.stats().kv_capacity_tokens == capacity


def test_projections_are_joined_before_the_pool_takes_what_memory_is_left(make_engine, model, monkeypatch):
    own, joined = copy.deepcopy(model), []
    free_bytes = batching._free_bytes

    def asked(device: torch.device) -> int:
        joined.append(hasattr(own.model.layers[0].mlp.gate_proj, "joined"))
        return free_bytes(device)

    monkeypatch.setattr(batching, "_free_bytes", asked)
    monkeypatch.setattr(batching.PagedRunner, "prepare", lambda *_: None)
    make_engine({"batching.mode": "continuous", "compile": "compiled"}, model=own, start=False)
    assert joined == [True]
