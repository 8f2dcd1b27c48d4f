from __future__ import annotations

import pytest

from mcp_core.models.architecture import TensorInfo
from mcp_core.models.headers import tensors_of_header
from mcp_core.models.stored_tensors import join_parts, without_storage

# One layer of 64 outputs and 128 inputs as each library writes it, with what it weighs there.
OUT, IN = 64, 128
LAYOUTS: dict[str, tuple[str, int, dict[str, tuple[str, list[int]]], int]] = {
    "gptq": (
        "gptq",
        4,
        {
            "m.qweight": ("I32", [IN // 8, OUT]),
            "m.qzeros": ("I32", [IN // 32, OUT // 8]),
            "m.scales": ("F16", [IN // 32, OUT]),
            "m.g_idx": ("I32", [IN]),
        },
        4096 + 4 * 8 * 4 + 4 * 64 * 2 + 512,
    ),
    "awq": (
        "awq",
        4,
        {
            "m.qweight": ("I32", [IN, OUT // 8]),
            "m.qzeros": ("I32", [IN // 32, OUT // 8]),
            "m.scales": ("F16", [IN // 32, OUT]),
        },
        4096 + 128 + 512,
    ),
    "compressed-tensors packed": (
        "compressed-tensors",
        4,
        {
            "m.weight_packed": ("I32", [OUT, IN // 8]),
            "m.weight_scale": ("BF16", [OUT, IN // 32]),
            "m.weight_shape": ("I64", [2]),
        },
        4096 + 512 + 16,
    ),
    "compressed-tensors fp8": (
        "compressed-tensors",
        8,
        {"m.weight": ("F8_E4M3", [OUT, IN]), "m.weight_scale": ("BF16", [OUT, 1])},
        8192 + 128,
    ),
    "fp8 in blocks": (
        "fp8",
        8,
        {"m.weight": ("F8_E4M3", [OUT, IN]), "m.weight_scale_inv": ("F32", [1, 1])},
        8192 + 4,
    ),
    "bitsandbytes int8": (
        "bitsandbytes",
        8,
        {"m.weight": ("I8", [OUT, IN]), "m.SCB": ("F32", [OUT]), "m.weight_format": ("U8", [])},
        8192 + 256 + 1,
    ),
    "torchao": (
        "torchao",
        8,
        {"m._weight_qdata": ("I8", [OUT, IN]), "m._weight_scale": ("F32", [OUT, 1])},
        8192 + 256,
    ),
}


def stored(entries: dict[str, tuple[str, list[int]]]) -> tuple[TensorInfo, ...]:
    return tensors_of_header({name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in entries.items()})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_become_one_weight_of_its_dense_shape(layout: str) -> None:
    method, bits, entries, size = LAYOUTS[layout]
    assert join_parts(stored(entries), method, bits) == (TensorInfo("m.weight", (OUT, IN), size),)


def test_four_bit_bitsandbytes_tells_the_number_of_weights() -> None:
    parts = {
        "m.weight": ("U8", [OUT * IN // 2, 1]),
        "m.weight.absmax": ("F32", [OUT * IN // 64]),
        "m.weight.quant_map": ("F32", [16]),
        "m.weight.quant_state.bitsandbytes__nf4": ("U8", [80]),
    }
    (joined,) = join_parts(stored(parts), "bitsandbytes", 4)
    assert (joined.name, joined.parameters, len(joined.shape)) == ("m.weight", OUT * IN, 2)
    assert joined.stored_bytes == 4096 + 512 + 64 + 80


def test_mxfp4_experts_become_one_parameter_of_transformers_shape() -> None:
    """Four experts, 2880 -> 5760: blocks of 32 weights with a scale each; biases and the rest are dense."""
    parts = {
        "mlp.experts.gate_up_proj_blocks": ("U8", [4, 5760, 90, 16]),
        "mlp.experts.gate_up_proj_scales": ("U8", [4, 5760, 90]),
        "mlp.experts.gate_up_proj_bias": ("BF16", [4, 5760]),
        "mlp.router.weight": ("BF16", [4, 2880]),
    }
    assert join_parts(stored(parts), "mxfp4", 4) == (
        TensorInfo("mlp.experts.gate_up_proj", (4, 2880, 5760), 4 * 5760 * 90 * 17),
        TensorInfo("mlp.experts.gate_up_proj_bias", (4, 5760)),
        TensorInfo("mlp.router.weight", (4, 2880)),
    )


def test_dense_tensors_of_a_quantized_checkpoint_stay_dense() -> None:
    entries = {"model.norm.weight": ("BF16", [16]), "lm_head.weight": ("F32", [300, 16]), "m.bias": ("F16", [4])}
    assert [each.stored_bytes for each in join_parts(stored(entries), "gptq", 4)] == [None, None, None]


def test_scales_without_their_weight_are_kept() -> None:
    (alone,) = join_parts(stored({"m.scales": ("F16", [4, 64])}), "gptq", 4)
    assert alone == TensorInfo("m.scales", (4, 64), 512)


@pytest.mark.parametrize(("dtype", "size"), [("F32", 48), ("F8_E4M3", 12), ("BOOL", 12), ("I64", 96), ("F4", 6)])
def test_bytes_follow_from_the_name_of_the_type(dtype: str, size: int) -> None:
    (tensor,) = stored({"a": (dtype, [3, 4])})
    assert tensor.stored_bytes == size
    assert without_storage([tensor]) == (TensorInfo("a", (3, 4)),)
