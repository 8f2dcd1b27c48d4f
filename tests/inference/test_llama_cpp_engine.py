from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("xllamacpp")

from mcp_core import conflicts, hardware
from mcp_core.errors import ContextTooLong, McpError, QueueFull, RequestRejected
from mcp_core.generation import GenerationRequest, Sampling, TokenEvent
from mcp_core.inference.llama_cpp_engine import LlamaCppEngine
from mcp_core.inference.llama_cpp_model import LlamaCppModel, load
from mcp_core.inference.llama_cpp_server import LlamaServer, whole_body
from mcp_core.models import catalog
from mcp_core.profile_plan import ProfilePlan
from mcp_core.recipe import Recipe

FRANCE = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
EMOJI = "Repeat after me: 🙂🦄🐉 한국어 🎉🎉"
GREEDY = Sampling(temperature=0)
RECIPE = Recipe().replace(
    {
        "engine": "llama.cpp",
        "quantization.scheme": "gguf",
        "threads": 1,
        "kv.max_context": 256,
        "batching.mode": "continuous",
        "batching.max_requests": 8,
    }
)
SLOTS = 4


class Collector:
    """An engine's sink that can be waited for."""

    def __init__(self) -> None:
        self.events: dict[str, list[TokenEvent]] = {}
        self._changed = threading.Condition()

    def __call__(self, events: list[TokenEvent]) -> None:
        with self._changed:
            for event in events:
                self.events.setdefault(event.request_id, []).append(event)
            self._changed.notify_all()

    def of(self, request_id: str, tokens: int = 0) -> list[TokenEvent]:
        """Its events once it has ended, or once so many have come."""

        def there() -> bool:
            found = self.events.get(request_id, [])
            return any(event.finish for event in found) or 0 < tokens <= len(found)

        with self._changed:
            assert self._changed.wait_for(there, timeout=30), f"{request_id} did not end"
            return list(self.events[request_id])

    def tokens(self, request_id: str) -> list[int]:
        return [event.token for event in self.of(request_id) if event.token is not None]


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaCppModel]:
    recipe = conflicts.resolve(RECIPE.replace({"batching.max_requests": SLOTS}), hardware.detect())
    loaded = load(catalog.resolve(recipe.model), recipe, lambda *_: None)
    yield loaded
    loaded.server.close()


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def engine(model: LlamaCppModel, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[LlamaCppEngine]:
    """The model's server outlives each engine."""
    monkeypatch.setattr(type(model.server), "close", lambda _: None)
    made = LlamaCppEngine(model, RECIPE, collector)
    made.start()
    yield made
    made.close()


def request(
    model: LlamaCppModel, name: str, text: str = FRANCE, tokens: int = 16, **fields: Any
) -> GenerationRequest:
    prompt = tuple(model.tokenizer.encode(text, add_special_tokens=False).ids)
    given = {"sampling": GREEDY, "arrived_s": time.perf_counter()} | fields
    return GenerationRequest(name, prompt, tokens, **given)


def test_greedy_text_is_sensible_and_ends_at_the_eos_token(model, engine, collector) -> None:
    engine.submit(request(model, "a"))
    events = collector.of("a")
    assert model.tokenizer.decode(collector.tokens("a")) == "The capital of France is Paris."
    assert [event.finish for event in events[:-1]] == [None] * (len(events) - 1)
    assert (events[-1].token, events[-1].finish) == (2, "stop")
    assert events[-1].timing.keys() == {"queue_ms", "prefill_ms", "decode_ms"}
    assert events[-1].timing["prefill_ms"] > 0
    assert events[-1].timing["decode_ms"] > 0


def test_token_counts_are_exact_and_ignore_eos_goes_on(model, engine, collector) -> None:
    engine.submit(request(model, "short", tokens=3))
    engine.submit(request(model, "long", tokens=20, ignore_eos=True, min_tokens=20))
    assert [event.finish for event in collector.of("short")] == [None, None, "length"]
    assert len(collector.tokens("long")) == len(collector.of("long")) == 20
    assert collector.of("long")[-1].finish == "length"
    stats = engine.stats()
    assert stats.output_tokens_total == 23
    assert stats.prompt_tokens_total == 2 * len(request(model, "x").prompt)
    assert stats.finished_total == 2


@pytest.mark.parametrize("tokens", [6, 7, 8])
def test_ids_are_exact_where_a_character_takes_several_tokens(model, engine, collector, tokens) -> None:
    asked = request(model, "a", EMOJI, tokens)
    engine.submit(asked)
    (whole,) = model.server.complete(whole_body(asked, (), 0, tokens)).read_all()
    assert collector.tokens("a") == whole["tokens"]
    assert any(model.tokenizer.decode([token]) == "\ufffd" for token in whole["tokens"])


def test_more_requests_than_slots_all_end_once(model, engine, collector) -> None:
    for name in "abcdefgh":
        engine.submit(request(model, name, f"{FRANCE}{name}", tokens=6, ignore_eos=True))
    with pytest.raises(QueueFull):
        engine.submit(request(model, "i"))
    for name in "abcdefgh":
        assert len(collector.tokens(name)) == 6
        assert sum(event.finish is not None for event in collector.of(name)) == 1
    assert engine.drain(5)
    assert engine.stats().running == engine.stats().queued == 0
    with pytest.raises(QueueFull, match="shutting down"):
        engine.submit(request(model, "late"))


def test_a_cancelled_request_ends_queued_or_running_and_its_slot_serves_on(model, engine, collector) -> None:
    for name in "abcd":
        engine.submit(request(model, name, tokens=200, ignore_eos=True))
    engine.submit(request(model, "queued", tokens=200))
    collector.of("a", tokens=2)
    for name in ("queued", "a", "b", "c", "d", "unknown"):
        engine.cancel(name)
    for name in ("queued", "a", "b", "c", "d"):
        assert collector.of(name)[-1].finish == "cancelled"
    engine.submit(request(model, "next"))
    assert collector.of("next")[-1].finish == "stop"
    assert engine.stats().cancelled_total == 5


def test_a_request_that_cannot_be_asked_ends_once_and_the_next_is_served(
    model, engine, collector, monkeypatch
) -> None:
    def gone(_: object) -> None:
        raise ConnectionRefusedError

    with monkeypatch.context() as patch:
        patch.setattr(type(model.server), "complete", lambda _, body: gone(body))
        engine.submit(request(model, "a"))
        (event,) = collector.of("a")
    assert (event.finish, event.token) == ("error", None)
    assert "does not answer" in event.failure.message
    engine.submit(request(model, "next"))
    assert collector.of("next")[-1].finish == "stop"
    assert (engine.stats().failed_total, engine.stats().finished_total) == (1, 1)


def test_waking_never_waits_for_the_engine(model, collector, monkeypatch) -> None:
    monkeypatch.setattr(type(model.server), "close", lambda _: None)
    idle = LlamaCppEngine(model, RECIPE.replace({"batching.max_requests": 2000}), collector)  # not started
    asked = request(model, "a")

    def submit_all() -> None:
        for _ in range(2000):
            idle.submit(asked)

    submitting = threading.Thread(target=submit_all, daemon=True)
    submitting.start()
    submitting.join(timeout=20)
    assert not submitting.is_alive()
    assert idle.stats().queued == 2000
    idle.close()


@pytest.mark.parametrize("changes", [{"batching.mode": "static"}, {"batching.max_wait_ms": 1.0}])
def test_a_live_change_that_llama_cpp_does_not_read_is_refused(engine, changes) -> None:
    (field,) = changes
    with pytest.raises(RequestRejected, match=field) as caught:
        engine.apply_live(RECIPE.replace(changes))
    assert caught.value.param == field
    assert engine.mode_name == "continuous, 4 slots"


def test_the_context_is_the_recipes_and_not_the_slots(model, engine, collector) -> None:
    long = tuple(range(100, 100 + 250))
    engine.submit(GenerationRequest("a", long, 1000, GREEDY, ignore_eos=True))
    assert len(collector.tokens("a")) == 6
    assert collector.of("a")[-1].finish == "length"
    with pytest.raises(ContextTooLong, match="256 tokens; the context holds 256"):
        engine.submit(GenerationRequest("b", (*long, 1, 2, 3, 4, 5, 6), 1, GREEDY))


def test_log_probabilities_are_those_of_a_distribution(model, engine, collector) -> None:
    engine.submit(request(model, "a", logprobs=3))
    for event in collector.of("a"):
        assert event.logprob.token == event.logprob.top[0][0] == event.token
        assert len(event.logprob.top) == 3
        assert 0 < math.fsum(math.exp(value) for _, value in event.logprob.top) <= 1 + 1e-6


def test_a_prefix_is_reused_within_a_tenant_and_only_where_asked(model, engine, collector) -> None:
    def cached(name: str, tenant: str) -> int:
        engine.submit(request(model, name, tenant=tenant))
        return collector.of(name)[-1].cached_tokens

    assert cached("off", "x") == cached("still off", "x") == 0
    engine.apply_live(RECIPE.replace({"prefix_cache": True}))
    prompt = len(request(model, "n").prompt)
    assert cached("again", "x") == prompt - 1
    assert cached("other", "y") == 0
    assert cached("back", "x") == prompt - 1
    assert collector.tokens("back") == collector.tokens("off")


def test_a_seed_gives_the_same_text(model, engine, collector) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        engine.submit(request(model, name, sampling=Sampling(temperature=1.5, seed=seed), tokens=12))
        collector.of(name)
    assert collector.tokens("a") == collector.tokens("b") != collector.tokens("c")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"min_tokens": 2}, "min_tokens"),
        ({"sampling": Sampling(frequency_penalty=0.5)}, "frequency_penalty"),
        ({"sampling": Sampling(presence_penalty=0.5)}, "presence_penalty"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused_by_name(model, engine, fields, named) -> None:
    with pytest.raises(RequestRejected, match=named) as caught:
        engine.submit(request(model, "a", **fields))
    assert caught.value.param == named


def test_more_slots_need_another_load(model, collector, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(type(model.server), "close", lambda _: None)
    monkeypatch.setattr(model.server, "slots", 1)
    one = LlamaCppEngine(model, RECIPE.replace({"batching.mode": "off"}), collector)
    assert one.mode_name == "off"
    with pytest.raises(RequestRejected, match="allocated 1 slot"):
        one.apply_live(RECIPE)
    with pytest.raises(McpError, match="no trace"):
        one.profile(ProfilePlan(), tmp_path, 1.0)
    one.close()


def test_a_live_change_to_off_serves_one_at_a_time(model, engine, collector) -> None:
    assert engine.mode_name == "continuous, 4 slots"
    engine.apply_live(RECIPE.replace({"batching.mode": "off"}))
    assert engine.mode_name == "off"
    for name in "ab":
        engine.submit(request(model, name, tokens=3))
    ended = [collector.of(name)[index].at_s for name, index in (("a", -1), ("b", 0))]
    assert ended == sorted(ended)


@pytest.mark.parametrize(
    "text",
    [
        FRANCE,
        "Hello, world 1234567!",
        "def f(x):\n\treturn x  +  1\n\n\n    y",
        "naïve 🙂 日本語テスト  \r\n 12 345",
        "don't DON'T we're  ...!!??",
    ],
)
def test_the_tokenizer_agrees_with_llama_cpps_own(model, text) -> None:
    ours = model.tokenizer.encode(text, add_special_tokens=False).ids
    assert ours == model.server.tokenize(text, add_special_tokens=False)


def test_effective_says_what_runs(model) -> None:
    effective = model.effective
    assert (effective.engine, effective.scheme, effective.kv_kind) == ("llama.cpp", "gguf Q4_1", "f16")
    assert effective.engine_version.startswith("xllamacpp 20")
    assert (effective.threads, effective.max_context) == (1, 256)
    assert model.weights_bytes == 96_576_768  # the tensors of the file
    assert model.eos_ids == {2}


@pytest.mark.parametrize(("attention", "asked"), [("sdpa", -1), ("eager", 0)])  # auto, off
def test_llama_cpp_is_asked_for_the_recipe_s_attention(monkeypatch, tmp_path, attention, asked) -> None:
    started = []
    monkeypatch.setattr("xllamacpp.Server", started.append)
    LlamaServer(tmp_path / "model.gguf", RECIPE.replace({"attention": attention}), 256).close()
    assert int(started[0].flash_attn_type) == asked


def test_without_flash_attention_it_says_so_and_a_reply_is_the_same(model, collector) -> None:
    recipe = RECIPE.replace({"attention": "eager", "batching.max_requests": 1})
    without = load(catalog.resolve(recipe.model), conflicts.resolve(recipe, hardware.detect()), lambda *_: None)
    assert model.effective.attention == "llama.cpp"
    assert without.effective.attention == "llama.cpp, without FlashAttention"
    made = LlamaCppEngine(without, recipe, collector)
    made.start()
    try:
        made.submit(request(without, "a"))
        assert without.tokenizer.decode(collector.tokens("a")) == "The capital of France is Paris."
    finally:
        made.close()
