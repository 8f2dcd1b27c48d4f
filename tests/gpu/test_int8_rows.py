"""Int8 rows by kernels of our own give torchao's products, for any number of tokens, in a fraction of the time."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mcp_core.inference.int8_rows import Int8Rows, use_int8_rows

pytestmark = pytest.mark.gpu


def layer_of(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    torch.manual_seed(inputs + outputs)
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16, device="cuda")
    quantize_(layer, Int8WeightOnlyConfig(set_inductor_config=False))
    return layer


@pytest.mark.parametrize(("inputs", "outputs"), [(4096, 12288), (11008, 4096), (520, 1000)])
@pytest.mark.parametrize("tokens", [1, 2, 7, 16, 33, 64, 200, 256, 257])
def test_they_are_the_products_of_the_dense_weight(inputs, outputs, tokens):
    layer = layer_of(inputs, outputs, bias=tokens == 7)
    dense = layer.weight.dequantize().float()
    assert use_int8_rows(layer) == 1
    assert type(layer) is Int8Rows
    hidden = torch.randn(1, tokens, inputs, dtype=torch.bfloat16, device="cuda")
    with torch.inference_mode():
        expected = hidden.float() @ dense.T + (0 if layer.bias is None else layer.bias.float())
        error = (layer(hidden).float() - expected).abs().max() / expected.abs().max()
    assert error < 0.01


def test_activations_that_are_packed_too_stay_torchaos():
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    layer = nn.Linear(512, 512, bias=False, dtype=torch.bfloat16, device="cuda")
    quantize_(layer, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
    assert use_int8_rows(layer) == 0


@pytest.mark.parametrize("tokens", [1, 16, 64])
def test_a_product_takes_less_time_than_torchaos(tokens):
    theirs = layer_of(4096, 12288)
    ours = copy.deepcopy(theirs)
    use_int8_rows(ours)
    hidden = torch.randn(tokens, 4096, dtype=torch.bfloat16, device="cuda")
    assert type(ours) is Int8Rows
    assert seconds(ours, hidden) < 0.5 * seconds(theirs, hidden)


@torch.inference_mode()
def seconds(layer: nn.Module, hidden: torch.Tensor) -> float:
    """Of the device, without the host's part."""
    layer(hidden)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(20):
            layer(hidden)
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    began.record()
    graph.replay()
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended)
