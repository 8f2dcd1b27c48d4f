"""Arrivals on known quantities: rates, dispersion, and which request belongs to which chat."""

from __future__ import annotations

from itertools import islice, pairwise

import numpy as np
import pytest

from mcp_core import recordings
from mcp_core.evaluation.arrivals import arrival_times, chats, think_times
from mcp_core.workload import Chats, Lengths, Workload


def times(count, **arrivals):
    return list(islice(arrival_times(Workload(requests=count, arrivals=arrivals)), count))


def spread(at_s):
    """Variance of gaps over their squared mean: 0 evenly, 1 Poisson, 1 / shape for gamma."""
    gaps = np.diff(at_s)
    return gaps.var() / gaps.mean() ** 2


def test_a_constant_rate_is_even():
    assert times(5, kind="constant", rate_s=4) == [0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(("kind", "dispersion"), [("poisson", 1.0), ("bursty", 4.0)])
def test_random_arrivals_have_the_rate_and_the_dispersion_of_their_law(kind, dispersion):
    at_s = times(20_000, kind=kind, rate_s=5)
    assert at_s == times(20_000, kind=kind, rate_s=5)
    assert len(at_s) / at_s[-1] == pytest.approx(5, rel=0.05)
    assert spread(at_s) == pytest.approx(dispersion, rel=0.1)


def test_a_ramp_goes_from_one_rate_to_the_other():
    at_s = times(1000, kind="ramp", rate_s=1, end_rate_s=9)
    assert at_s[-1] == pytest.approx(2 * 1000 / 10, rel=0.01)
    rates = [1 / (later - earlier) for earlier, later in pairwise(at_s)]
    assert (rates[5], rates[-5]) == (pytest.approx(1.2, rel=0.02), pytest.approx(9, rel=0.02))
    middle = at_s[-1] / 2
    assert sum(at < middle for at in at_s) == pytest.approx(300, abs=5)  # 1 to 5 a second over 100 s


def test_every_repeat_arrives_at_other_times():
    base = Workload(arrivals={"kind": "poisson", "rate_s": 5})
    assert next(arrival_times(base)) != next(arrival_times(base.replace({"repeat": 1})))


def test_a_replay_keeps_recorded_times_at_its_speed():
    rows = b"\n".join(b'{"at_s": %d, "prompt_tokens": 5, "output_tokens": 2}' % at for at in (0, 4, 6))
    sha256 = recordings.add("r.jsonl", rows).sha256
    document = {
        "arrivals": {"kind": "replay", "speed": 2},
        "prompts": {"kind": "recording", "sha256": sha256},
    }
    assert list(arrival_times(Workload.from_dict(document))) == [0, 2, 3]


def test_chats_partition_the_requests():
    workload = Workload(requests=100, chats=Chats(turns=Lengths(min=2, max=5)))
    parts = list(chats(workload))
    assert [index for part in parts for index in part] == list(range(100))
    assert {len(part) for part in parts[:-1]} == {2, 3, 4, 5}
    assert list(chats(workload)) == parts
    assert [list(part) for part in chats(Workload(requests=3))] == [[0], [1], [2]]
    endless = chats(workload.replace({"duration_s": 1}))
    assert max(next(islice(endless, 99, None))) > 100


def test_time_to_think_has_its_mean():
    assert next(think_times(Workload(), 0)) == 0
    workload = Workload(chats=Chats(think_s=2.0))
    drawn = list(islice(think_times(workload, 7), 20_000))
    assert np.mean(drawn) == pytest.approx(2.0, rel=0.05)
    assert drawn[:5] == list(islice(think_times(workload, 7), 5))
    fixed = Workload(chats=Chats(think_s=2.0, think="fixed"))
    assert list(islice(think_times(fixed, 7), 3)) == [2.0, 2.0, 2.0]
