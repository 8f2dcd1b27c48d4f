"""LLM.int8 computes in silence: its library would warn at every product."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from mcp_core.memory.layer_swap import pack_layers
from mcp_core.memory.quantization.bnb import quantize_int8
from mcp_core.recipe import Quantization

LOGGER = logging.getLogger("bitsandbytes.autograd._functions")


@pytest.fixture(autouse=True)
def _level_restored() -> Iterator[None]:
    before = LOGGER.level
    yield
    LOGGER.setLevel(before)


def test_a_product_of_bf16_inputs_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    config = quantize_int8(Quantization(scheme="bnb-int8"), torch.bfloat16, torch.device("cpu"), ())
    model = nn.Sequential(nn.Linear(64, 32, bias=False, dtype=torch.bfloat16)).requires_grad_(requires_grad=False)
    pack_layers(config)(model, ("0",))
    inputs = torch.ones(1, 64, dtype=torch.bfloat16)
    model(inputs)
    assert "will be cast" not in caplog.text
    LOGGER.setLevel(logging.WARNING)  # what it would have said
    model(inputs)
    assert "will be cast from torch.bfloat16" in caplog.text
