from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mcp_core.generation import Sampling
from mcp_core.inference.sampling import Draw, Sampler, log_probabilities, sample

PROBABILITIES = torch.tensor([[0.5, 0.25, 0.15, 0.1]])


def frequencies(sampling, draws=4000):
    sampler = Sampler(sampling, 0)
    tokens = sample(PROBABILITIES.log().expand(draws, -1), [sampler.draw(position) for position in range(draws)])
    return (torch.bincount(tokens, minlength=4) / draws).tolist()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.8}, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
        ({"min_p": 0.4}, [2 / 3, 1 / 3, 0, 0]),
        ({"temperature": 0.5}, [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
    ],
)
def test_filters_give_the_distribution_computed_by_hand(fields, expected):
    assert frequencies(Sampling(seed=1, **fields)) == pytest.approx(expected, abs=0.03)


SETTINGS = [
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9},
    {"temperature": 1.3, "top_p": 0.5},
    {"top_k": 1},
    {"min_p": 0.05},
    {"temperature": 0.4, "top_k": 500, "top_p": 0.99, "min_p": 0.1},
    {},
]


def draw_of(uniform, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    return Draw(temperature, top_k, top_p, min_p, uniform)


def generate_s_own(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The distribution that ``generate`` would draw from."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    return warpers(None, logits).softmax(-1)


@pytest.mark.parametrize(("vocabulary", "spread"), [(300, 3), (5000, 3), (5000, 0.1)])
def test_rows_of_different_settings_are_drawn_from_generate_s_own_distributions(vocabulary, spread):
    """At a row's number u the token is the one that holds the u-th part of the distribution, which is summed from
    the likeliest on where rank or sum cut it, else in the vocabulary's order. A spread of 0.1 is nearly flat."""
    logits = torch.randn(len(SETTINGS), vocabulary, generator=torch.Generator().manual_seed(3)) * spread
    numbers = torch.rand(100, generator=torch.Generator().manual_seed(4)).tolist()
    rows = [draw_of(uniform=0.0, **each) for each in SETTINGS]
    drawn = torch.stack([sample(logits, [row._replace(uniform=number) for row in rows]) for number in numbers])
    for index, (row, settings) in enumerate(zip(rows, SETTINGS, strict=True)):
        expected, order = generate_s_own(logits[index : index + 1], **settings)[0], torch.arange(vocabulary)
        if row.is_cut:
            expected, order = expected.sort(descending=True, stable=True)
        bounds = expected.double().cumsum(0)
        for number, token in zip(numbers, drawn[:, index].tolist(), strict=True):
            place = int((order == token).nonzero())
            assert expected[place] > 0
            assert bounds[place] - expected[place] - 1e-5 <= number <= bounds[place] + 1e-5


def test_a_row_s_token_does_not_depend_on_its_company():
    logits = torch.randn(5, 200, generator=torch.Generator().manual_seed(5))
    rows = [Draw(0.8, 0, 1.0, 0.0, 0.1), Draw(1.0, 20, 0.9, 0.0, 0.6), Draw(2.0, 0, 1.0, 0.2, 0.999)]
    alone = [int(sample(logits[index : index + 1], [row])) for index, row in enumerate(rows)]
    assert sample(logits[:3], rows).tolist() == alone
    assert sample(logits[[2, 0, 1]], [rows[2], rows[0], rows[1]]).tolist() == [alone[2], alone[0], alone[1]]


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("top_k", [0, 3])
def test_no_number_draws_a_token_of_probability_0(uniform, top_k):
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 1.0, 1.0, -torch.inf]])
    assert int(sample(logits, [Draw(1.0, top_k, 1.0, 0.0, uniform)])) in (1, 3, 4)


@pytest.mark.parametrize("fields", [{}, {"top_k": 2}, {"top_p": 0.9}], ids=["all", "top-k", "top-p"])
def test_logits_that_are_no_numbers_give_a_token_of_the_vocabulary(fields):
    draws = [Sampler(Sampling(seed=0, **fields), 0).draw(0)] * 2
    logits = torch.stack([torch.full((5,), torch.nan), torch.tensor([0.0, torch.inf, 0.0, 0.0, 0.0])])
    assert all(0 <= token < 5 for token in sample(logits, draws).tolist())


def test_a_temperature_near_0_is_greedy():
    assert int(sample(torch.tensor([[1.0, 30.0, 29.0]]), [Draw(1e-38, 0, 0.9, 0.0, 0.999)])) == 1


def test_a_seed_gives_the_same_stream_again():
    first, again, other = (Sampler(Sampling(seed=seed), 0) for seed in (7, 7, 8))
    stream = [first.draw(position).uniform for position in range(5)]
    assert [again.draw(position).uniform for position in range(5)] == stream
    assert [other.draw(position).uniform for position in range(5)] != stream


def test_greedy_takes_the_best():
    assert int(Sampler(Sampling(temperature=0), 0).choose(PROBABILITIES.log(), None, 0)) == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"frequency_penalty": 0.5}, [0.0, 1.0 - 1.0, 2.0, 3.0]),
        ({"presence_penalty": 0.5}, [0.0, 1.0 - 0.5, 2.0, 3.0]),
    ],
)
def test_penalties_count_the_reply_and_not_the_prompt(fields, expected):
    sampler = Sampler(Sampling(temperature=0, **fields), 2)
    history = torch.tensor([[3, 3, 1, 1]])  # prompt 3 3, reply 1 1
    scores = sampler._penalties(history, torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    assert scores[0].tolist() == pytest.approx(expected)


def test_repetition_penalty_divides_seen_positive_logits():
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0), 1)
    scores = sampler._penalties(torch.tensor([[2]]), torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    assert scores[0].tolist() == pytest.approx([0.0, 1.0, 1.0, 3.0])


def test_log_probabilities_are_natural_and_sorted():
    (entry,) = log_probabilities(PROBABILITIES.log(), torch.tensor([2]), 2)
    assert entry.logprob == pytest.approx(math.log(0.15))
    assert [token for token, _ in entry.top] == [0, 1]
    assert [value for _, value in entry.top] == pytest.approx([math.log(0.5), math.log(0.25)])
