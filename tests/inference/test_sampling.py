from __future__ import annotations

import math

import pytest
import torch

from mcp_core.generation import Sampling
from mcp_core.inference.sampling import Sampler, log_probabilities

CPU = torch.device("cpu")
PROBABILITIES = torch.tensor([[0.5, 0.25, 0.15, 0.1]])


def frequencies(sampling, draws=4000):
    sampler = Sampler(sampling, 0, CPU)
    counts = torch.zeros(4)
    for _ in range(draws):
        counts[int(sampler.choose(PROBABILITIES.log(), torch.empty(1, 0, dtype=torch.long)))] += 1
    return (counts / draws).tolist()


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


def test_greedy_takes_the_best():
    assert int(Sampler(Sampling(temperature=0), 0, CPU).choose(PROBABILITIES.log(), None)) == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"frequency_penalty": 0.5}, [0.0, 1.0 - 1.0, 2.0, 3.0]),
        ({"presence_penalty": 0.5}, [0.0, 1.0 - 0.5, 2.0, 3.0]),
    ],
)
def test_penalties_count_the_reply_and_not_the_prompt(fields, expected):
    sampler = Sampler(Sampling(temperature=0, **fields), 2, CPU)
    history = torch.tensor([[3, 3, 1, 1]])  # prompt 3 3, reply 1 1
    scores = sampler._penalties(history, torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    assert scores[0].tolist() == pytest.approx(expected)


def test_repetition_penalty_divides_seen_positive_logits():
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0), 1, CPU)
    scores = sampler._penalties(torch.tensor([[2]]), torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    assert scores[0].tolist() == pytest.approx([0.0, 1.0, 1.0, 3.0])


def test_log_probabilities_are_natural_and_sorted():
    (entry,) = log_probabilities(PROBABILITIES.log(), torch.tensor([2]), 2)
    assert entry.logprob == pytest.approx(math.log(0.15))
    assert [token for token, _ in entry.top] == [0, 1]
    assert [value for _, value in entry.top] == pytest.approx([math.log(0.5), math.log(0.25)])
