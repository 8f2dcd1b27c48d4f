"""The detector on queues whose load is planted: it must see what grows and leave alone what does not."""

from __future__ import annotations

import random

import pytest

from mcp_core.evaluation.saturation import over_saturation
from mcp_core.results import Failure


def queue(record, load, seed, requests=200, service_s=0.1):
    """Records of one server that takes ``service_s`` a request, at ``load`` times what it can serve; Poisson."""
    by, at_s, free_s, records = random.Random(seed), 0.0, 0.0, []
    for index in range(requests):
        at_s += by.expovariate(load / service_s)
        free_s = max(free_s, at_s) + service_s
        records.append(record(index, sent_ms=at_s * 1e3, arrivals=((free_s - at_s) * 1e3,)))
    return records


@pytest.mark.parametrize(("load", "least", "most"), [(0.5, 0, 0), (0.8, 0, 5), (1.2, 90, 100), (2.0, 100, 100)])
def test_how_often_it_says_so_in_a_hundred_seeds(record, load, least, most):
    said = sum(over_saturation(queue(record, load, seed)) is not None for seed in range(100))
    assert least <= said <= most


def test_it_names_the_figures(record):
    assert "over-saturated: the queue grew all the while, p50 TTFT from" in over_saturation(queue(record, 2, 1))


def test_few_requests_tell_nothing(record):
    assert over_saturation(queue(record, 3, 1, requests=49)) is None


def test_a_full_queue_that_turns_requests_away_is_too_much(record):
    refusal = Failure(kind="queue", message="full")
    refused = [record(index, arrivals=(), status="failed", failure=refusal) for index in range(3)]
    assert "3 of 53 requests were turned away" in over_saturation([*queue(record, 0.5, 1, requests=50), *refused])
