from __future__ import annotations

import pytest

MIB = 1024**2


@pytest.mark.gpu
def test_a_known_tensor_the_pool_around_it_and_the_context_beside_it() -> None:
    import torch

    from mcp_core.serving.cuda_memory import CudaCounters

    counters = CudaCounters("cuda:0")
    held = torch.zeros(256 * MIB, dtype=torch.uint8, device="cuda:0")
    counters.reset()
    assert counters.allocated_peak_bytes() == 256 * MIB
    assert 256 * MIB <= counters.reserved_peak_bytes() < 300 * MIB
    context = counters.context_bytes()
    assert context is not None
    assert 100 * MIB < context < 2000 * MIB
    more = torch.zeros(64 * MIB, dtype=torch.uint8, device="cuda:0")
    del more
    assert counters.allocated_peak_bytes() == 320 * MIB
    counters.reset()
    assert counters.allocated_peak_bytes() == 256 * MIB
    del held
