"""Guesses change how many passes a reply takes and never what it says."""

from __future__ import annotations

import copy

import pytest
import torch

from mcp_core.generation import Sampling
from mcp_core.inference.decoding import Decoder
from mcp_core.inference.kv_cache import cache_factory
from mcp_core.inference.speculation import DraftModel, PromptLookup
from tests.inference.conftest import CONTEXT, EOS
from tests.inference.test_engine import greedy


def run(model, request, proposer, eos_ids=frozenset({EOS})):
    """The reply's tokens, how it ended, and the forward passes it took."""
    decoder = Decoder(model, eos_ids, CONTEXT, proposer)
    passes = [0]
    forward = decoder._forward

    def counted(*args, **kwargs):
        passes[0] += 1
        return forward(*args, **kwargs)

    decoder._forward = counted
    cache = cache_factory("dynamic", model.config, CONTEXT)()
    steps = list(decoder.steps(request, cache, lambda: False))
    return [step.token for step in steps if step.token is not None], steps[-1].finish, passes[0]


@pytest.fixture(scope="module")
def other(model):
    """A draft that is often right: the same weights, a little off."""
    draft = copy.deepcopy(model)
    torch.manual_seed(9)
    for parameter in draft.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    return draft


def test_lookup_takes_what_followed_the_newest_match() -> None:
    lookup = PromptLookup(3)
    tokens = [1, 2, 3, 10, 11, 12, 1, 2, 3, 20, 21, 22, 23, 1, 2, 3]
    assert lookup.propose(tokens, 8) == [20, 21, 22]
    assert lookup.propose(tokens, 2) == [20, 21]
    assert lookup.propose([5, 6, 7], 8) == []
    assert lookup.propose([9, 5, 6, 30, 31, 32, 8, 5, 6], 8) == [30, 31, 32]  # two tokens match, three do not


@pytest.mark.parametrize("kind", ["lookup", "same", "other"])
def test_greedy_is_unchanged(model, other, request_of, prompt, kind):
    expected = greedy(model, prompt, 60)
    proposer = {"lookup": PromptLookup(6), "same": DraftModel(model, 4), "other": DraftModel(other, 4)}[kind]
    request = request_of("r", max_tokens=60)
    tokens, finish, passes = run(model, request, proposer)
    assert (tokens, finish) == (expected, "length")
    assert passes <= 60
    if kind == "same":  # every guess is right: five tokens a pass
        assert proposer.count.accepted == proposer.count.drafted
        assert passes == 1 + 12
    again, _, _ = run(model, request, proposer)  # nothing of the first sequence is left
    assert again == expected


def test_a_repetitive_prompt_takes_fewer_passes(model, request_of):
    request = request_of("r", prompt=(7, 8, 9, 10, 11) * 12, max_tokens=40)
    plain = run(model, request, None)
    guessed = run(model, request, PromptLookup(8))
    assert plain[:2] == guessed[:2]
    assert plain[2] == 40


def test_sampled_text_is_unchanged(model, other, request_of):
    sampling = Sampling(temperature=0.9, top_p=0.9, seed=4, repetition_penalty=1.1)
    request = request_of("r", max_tokens=40, sampling=sampling)
    assert run(model, request, None)[0] == run(model, request, DraftModel(other, 4))[0]


def test_a_stop_token_among_the_guesses_ends_the_reply(model, request_of, prompt):
    expected = greedy(model, prompt, 24)
    eos = frozenset({expected[7]})
    tokens, finish, _ = run(model, request_of("r"), DraftModel(model, 4), eos)
    assert (tokens, finish) == (expected[: expected.index(expected[7]) + 1], "stop")


def test_the_context_is_never_exceeded(model, request_of):
    request = request_of("r", prompt=tuple(range(3, 300)) + (5,) * 205, max_tokens=100)
    tokens, finish, _ = run(model, request, DraftModel(model, 8))
    assert (len(tokens), finish) == (CONTEXT - 502, "length")


def test_the_engine_counts_guesses(make_engine, recorder, request_of):
    engine = make_engine({"speculation": "prompt-lookup", "draft_tokens": 4})
    engine.submit(request_of("r", prompt=(7, 8, 9, 10, 11) * 8, max_tokens=400))
    recorder.wait_end("r")
    stats = engine.stats()
    assert 0 <= stats.accepted_tokens_total <= stats.drafted_tokens_total
    assert stats.drafted_tokens_total > 0
