"""Only int8 rows on a CUDA device are computed anew; the operator's plain way is the dense weight's product."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

from mcp_core.inference.int8_rows import Int8Rows, int8_rows, use_int8_rows
from mcp_core.inference.joined_projections import join_projections


def packed(dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(64, 32, dtype=dtype)
    quantize_(layer, Int8WeightOnlyConfig(set_inductor_config=False))
    return layer


def test_layers_on_a_host_stay_as_they_are():
    layer = packed()
    assert use_int8_rows(layer) == 0
    assert type(layer) is nn.Linear
    assert use_int8_rows(nn.Linear(8, 8)) == 0


def test_the_layer_computes_by_the_operator_and_keeps_its_weight(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mcp_core.inference.int8_rows._DEVICE", "cpu")
    layer = packed()
    hidden = torch.randn(1, 300, 64, dtype=torch.bfloat16)  # more tokens than kernels take: torch's own product
    with torch.inference_mode():
        before = layer(hidden)
        assert use_int8_rows(layer) == 1
        assert type(layer) is Int8Rows
        torch.testing.assert_close(layer(hidden), before, atol=0.02, rtol=0.02)
    assert layer.codes.data_ptr() == layer.weight.qdata.data_ptr()
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert use_int8_rows(layer) == 0


@pytest.mark.parametrize(("dtype", "count"), [(torch.bfloat16, 1), (torch.float16, 1), (torch.float32, 0)])
def test_fp32_keeps_torchaos_own_products(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, count: int):
    monkeypatch.setattr("mcp_core.inference.int8_rows._DEVICE", "cpu")
    assert use_int8_rows(packed(dtype)) == count


def test_rows_whose_activations_are_packed_too_stay_as_they_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mcp_core.inference.int8_rows._DEVICE", "cpu")
    layer = nn.Linear(64, 32, dtype=torch.bfloat16)
    quantize_(layer, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
    assert use_int8_rows(layer) == 0


def test_joined_rows_compute_by_the_operator_too(model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mcp_core.inference.int8_rows._DEVICE", "cpu")
    own = copy.deepcopy(model).to(torch.bfloat16)
    quantize_(own.model, Int8WeightOnlyConfig(set_inductor_config=False))
    layers = sum(isinstance(each, nn.Linear) for each in own.model.modules())
    ids = torch.arange(3, 43)[None]
    with torch.inference_mode():
        apart = own(ids).logits
        assert use_int8_rows(own) == layers
        assert join_projections(own) == 3 * 3
        assert type(own.model.layers[0].mlp.gate_proj.joined) is Int8Rows
        torch.testing.assert_close(own(ids).logits, apart, atol=0.05, rtol=0.05)


def test_the_operator_says_its_shape_to_a_compiler():
    torch.library.opcheck(
        int8_rows,
        (torch.randn(300, 64), torch.ones(32, 64, dtype=torch.int8), torch.ones(32)),
        test_utils=("test_schema", "test_faketensor"),
    )
