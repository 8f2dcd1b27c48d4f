from __future__ import annotations

import json
import subprocess
import sys

import pytest

MIB = 1024**2
# In a process of its own: the test run's process holds models of other tests.
SCENE = """
import json

import torch

from mcp_core.serving.cuda_memory import CudaCounters

MIB = 1024**2
counters = CudaCounters("cuda:0")
held = torch.zeros(256 * MIB, dtype=torch.uint8, device="cuda:0")
counters.reset()
figures = [counters.allocated_peak_bytes(), counters.reserved_peak_bytes(), counters.context_bytes()]
more = torch.zeros(64 * MIB, dtype=torch.uint8, device="cuda:0")
del more
figures.append(counters.allocated_peak_bytes())
counters.reset()
print(json.dumps([*figures, counters.allocated_peak_bytes()]))
"""


@pytest.mark.gpu
def test_a_known_tensor_the_pool_around_it_and_the_context_beside_it() -> None:
    result = subprocess.run([sys.executable, "-c", SCENE], check=True, capture_output=True, text=True)
    allocated, reserved, context, with_more, after_reset = json.loads(result.stdout)
    assert allocated == after_reset == 256 * MIB
    assert with_more == 320 * MIB
    assert 256 * MIB <= reserved < 300 * MIB
    assert 100 * MIB < context < 2000 * MIB
