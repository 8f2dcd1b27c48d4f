"""On an NVIDIA device what is recorded is computed again with what its input holds then, in shared memory."""

from __future__ import annotations

import time

import pytest
import torch

from mcp_core.inference.paged.graphs import Graphs
from mcp_core.inference.transfer import fill

pytestmark = pytest.mark.gpu


def test_a_recorded_function_reads_its_input_anew_in_any_order():
    graphs, values = Graphs(), torch.zeros(8, device="cuda")
    replays = {size: graphs.record(lambda size=size: (values[:size] * 2).cumsum(0) + 1) for size in (8, 4, 2)}
    for first, size in enumerate((4, 8, 2, 8, 4)):
        new = torch.arange(first, first + 8, dtype=torch.float32)
        fill(values, new)
        assert replays[size]().tolist() == ((new[:size] * 2).cumsum(0) + 1).tolist()


def seconds(work):
    """The least of three, until the device is done."""
    took = []
    for _ in range(3):
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        work()
        torch.cuda.synchronize()
        took.append(time.perf_counter() - began_s)
    return min(took)


def test_a_replay_takes_less_time_than_its_many_launches():
    values = torch.zeros(8, device="cuda")

    def work() -> torch.Tensor:
        result = values
        for _ in range(300):
            result = result + 1
        return result

    replay = Graphs().record(work)
    assert 0 < seconds(replay) < 0.7 * seconds(work)


def test_closed_ones_give_their_memory_back_while_they_are_held():
    torch.cuda.empty_cache()
    before, ones = torch.cuda.memory_reserved(), torch.ones(2**20, device="cuda")
    graphs = Graphs()
    recorded = graphs.record(lambda: (ones.expand(64, -1) + 1).sum(1))
    assert recorded().tolist() == [2.0**21] * 64
    assert torch.cuda.memory_reserved() > before + 250e6
    graphs.close()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < before + 150e6
