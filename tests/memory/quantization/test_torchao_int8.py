"""What the int8 configs ask of torchao on a CPU that adds up 8-bit products in 16 bits."""

from __future__ import annotations

import pytest
import torch

from mcp_core.memory.quantization import torchao_int8
from mcp_core.recipe import Quantization

CPU = torch.device("cpu")


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("activations", ["symmetric", "asymmetric"])
def test_sums_that_could_overflow_get_half_the_range(monkeypatch, narrow, activations):
    monkeypatch.setattr(torchao_int8, "should_reduce_range", lambda device: narrow)
    options = Quantization(scheme="torchao-int8-dynamic", activations=activations)
    asked = torchao_int8.quantize_dynamic(options, torch.bfloat16, CPU, ())
    assert asked.quant_type.reduce_range is narrow
