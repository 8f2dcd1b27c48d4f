"""Prompts scored by llama.cpp: what is asked and read, planted; and the real server beside its own whole list."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("xllamacpp")

from mcp_core.errors import McpError, RequestRejected
from mcp_core.generation import GenerationRequest
from mcp_core.inference.llama_cpp_scoring import Position, ScoredCourse
from mcp_core.inference.llama_cpp_tokens import TokenBytes
from mcp_core.serving.fake_engine import EOS, byte_tokenizer
from tests.inference.test_llama_cpp_engine import FRANCE, collector, engine, model, request  # noqa: F401 - fixtures

BYTES = TokenBytes(byte_tokenizer())
MIXED = "<|im_start|>user\nThe sea was rough: naïve 日本語 🎉<|im_end|>\ndef f(x): return x"


def course(prompt: tuple[int, ...], top: int = 2, max_tokens: int = 0) -> ScoredCourse:
    asked = GenerationRequest("a", prompt, max_tokens, prompt_logprobs=top)
    return ScoredCourse(asked, frozenset({EOS}), BYTES)


def told(drawn: int, logprob: float, *top: tuple[int, float]) -> dict[str, Any]:
    best = [{"id": token, "logprob": value} for token, value in top]
    return {"completion_probabilities": [{"id": drawn, "logprob": logprob, "top_logprobs": best}]}


def ids(text: str) -> tuple[int, ...]:
    return tuple(byte_tokenizer().encode(text).ids)


def test_each_position_is_asked_once_and_the_last_tells_all() -> None:
    a, b, c = ids("abc")
    one = course((a, b, c))
    assert one.position == Position(1, 2, b)
    assert [*one.read(told(b, -3.0, (c, -0.5), (a, -1.0), (b, -3.0)))] == []
    assert (one.unasked, one.begun, one.ended) == (True, True, False)
    one.asked_again()
    assert (one.unasked, one.position) == (False, Position(2, 2, c))
    (outcome,) = one.read(told(c, -0.25, (c, -0.25), (a, -2.0)))
    assert (outcome.finish, outcome.token, one.ended, one.take_computed()) == ("length", None, True, 2)
    assert outcome.prompt_logprobs is not None
    first, second, third = outcome.prompt_logprobs
    assert (first.token, first.logprob, first.top) == (a, None, ())
    assert (second.token, second.logprob, second.top) == (b, -3.0, ((c, -0.5), (a, -1.0)))
    assert (third.token, third.logprob) == (c, -0.25)


def test_of_a_token_inside_a_character_another_is_drawn_and_the_whole_list_asked_where_needed() -> None:
    lead, rest = ids("é")
    other = BYTES.whole_character
    one = course((ids("a")[0], lead, rest))
    assert one.position == Position(1, 2, other)
    assert [*one.read(told(other, -9.0, (other, -0.1)))] == []  # not among them
    assert one.unasked
    assert one.position is not None
    assert (one.position.index, one.position.drawn, one.position.top > 10**5) == (1, other, True)
    one.asked_again()
    assert [*one.read(told(other, -9.0, (other, -0.1), (lead, -7.0)))] == []
    assert one.position == Position(2, 2, rest)
    one.asked_again()
    (outcome,) = one.read(told(rest, -1.0, (rest, -1.0)))
    assert outcome.prompt_logprobs is not None
    assert [each.logprob for each in outcome.prompt_logprobs] == [None, -7.0, -1.0]


def test_a_probability_of_nought_is_told_as_the_smallest_and_a_silent_answer_is_an_error() -> None:
    a, b = ids("ab")
    (outcome,) = course((a, b)).read(told(b, -3.4e38, (a, 0.0)))
    assert outcome.prompt_logprobs is not None
    assert outcome.prompt_logprobs[1].logprob == -104.0
    with pytest.raises(McpError, match="no log-probabilities"):
        [*course((a, b)).read({"completion_probabilities": []})]


def whole_list(model: Any, prompt: list[int]) -> dict[int, float]:  # noqa: F811
    """The server's own distribution after a prompt, whatever it draws, nothing forced."""
    body = {"prompt": prompt, "n_predict": 1, "n_probs": model.vocab_size, "temperature": 0, "stream": False}
    (answer,) = model.server.complete(body | {"samplers": ["temperature"], "cache_prompt": False}).read_all()
    (listed,) = answer["completion_probabilities"]
    return {each["id"]: each["logprob"] for each in listed["top_logprobs"]}


def test_scores_are_those_of_the_servers_whole_list(model, engine, collector) -> None:  # noqa: F811
    asked = request(model, "a", MIXED, 0, prompt_logprobs=20)
    engine.submit(asked)
    (event,) = collector.of("a")
    assert (event.finish, event.token, len(event.prompt_logprobs)) == ("length", None, len(asked.prompt))
    assert tuple(each.token for each in event.prompt_logprobs) == asked.prompt
    inside = [place for place, token in enumerate(asked.prompt) if engine._bytes.ends_inside(token)]
    assert len(inside) >= 2
    for place in (1, 2, inside[0], inside[-1], len(asked.prompt) - 1):
        known = whole_list(model, list(asked.prompt[:place]))
        assert math.fsum(map(math.exp, known.values())) == pytest.approx(1, abs=1e-3)  # summed in fp32
        score = event.prompt_logprobs[place]
        # A prompt read at once is computed by other kernels than a token a step.
        assert score.logprob == pytest.approx(known[asked.prompt[place]], abs=0.3)
        assert len(score.top) == 20
        assert score.top[0][1] == pytest.approx(max(known.values()), abs=0.3)
        assert [value for _, value in score.top] == sorted((value for _, value in score.top), reverse=True)
    # What it was made to draw does not count: with the bias in it, each would be 0.
    assert min(each.logprob for each in event.prompt_logprobs[1:]) < -3
    assert engine.stats().prompt_tokens_total == len(asked.prompt) - 1


def test_scores_do_not_depend_on_who_else_is_served_and_a_reply_follows_them(model, engine, collector) -> None:  # noqa: F811
    engine.submit(request(model, "alone", FRANCE, 0, prompt_logprobs=1))
    alone = collector.of("alone")[-1].prompt_logprobs
    engine.submit(request(model, "other", tokens=40, ignore_eos=True))
    engine.submit(request(model, "beside", FRANCE, 16, prompt_logprobs=1))
    first, *rest = collector.of("beside")
    assert all(each.prompt_logprobs is None for each in rest)
    assert model.tokenizer.decode(collector.tokens("beside")) == "The capital of France is Paris."
    ours, theirs = ([each.logprob for each in scores[1:]] for scores in (alone, first.prompt_logprobs))
    assert ours == pytest.approx(theirs, abs=0.3)


def test_scoring_is_cancelled_between_positions_and_the_slot_serves_on(model, engine, collector) -> None:  # noqa: F811
    for name in "abcd":
        engine.submit(request(model, name, "One two three. " * 40, 0, prompt_logprobs=1))
    for name in "abcd":
        engine.cancel(name)
    assert {collector.of(name)[-1].finish for name in "abcd"} == {"cancelled"}
    engine.submit(request(model, "next"))
    assert collector.of("next")[-1].finish == "stop"


def test_what_cannot_be_scored_is_refused_by_name(model, engine) -> None:  # noqa: F811
    with pytest.raises(RequestRejected, match="max_tokens"):
        engine.submit(request(model, "a", tokens=0))
    with pytest.raises(RequestRejected, match="echo"):
        engine.submit(GenerationRequest("a", (5,), 0, prompt_logprobs=1))
