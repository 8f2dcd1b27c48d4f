"""Every scheme that runs on a CPU, through the real loader, on a tiny Llama."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._inductor import config as inductor

from mcp_core.memory.storage import weights_bytes
from mcp_core.models import catalog, loader
from mcp_core.models.loaded import LoadedModel
from mcp_core.models.packing import module_sizes, pack
from mcp_core.recipe import ModelRef, Quantization, Recipe, ShapeSpec
from mcp_core.schemes import SCHEMES, Scheme

pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt")  # LLM.int8 computes in fp16

SPEC = ShapeSpec(layers=2, hidden=128, intermediate=192, heads=2, kv_heads=1, vocab=320)
SHAPE = ModelRef(source="shape", id="custom", shape=SPEC)
ROTARY_BYTES = 2 * (SPEC.hidden // SPEC.heads // 2) * 4  # two fp32 tables of half a head, in no checkpoint
PARAMETERS = 328_320
LINEAR_LAYERS = 14
IDS = torch.arange(1, 24)[None]
# Logits' relative error against the dense weights: int8 rows lose about 1/127 of a row's largest weight, fp8 has 3
# bits of mantissa, 4 bits have 16 levels; each roughly, over two layers of random weights.
ERRORS = {
    "bnb-int8": (0.005, 0.06),
    "torchao-int8-weight-only": (0.005, 0.05),
    "torchao-int8-dynamic": (0.005, 0.06),
    "torchao-fp8-weight-only": (0.05, 0.15),
    "classic-dynamic": (0.02, 0.15),
    "torchao-int4-weight-only": (0.15, 0.5),
    "bnb-nf4": (0.15, 0.5),
    "bnb-fp4": (0.2, 0.6),
}
PACKING = [scheme for scheme in SCHEMES.values() if scheme.bits and "cpu" in scheme.devices]
WITHOUT_CALIBRATION = [scheme for scheme in PACKING if scheme.name in ERRORS]


def load(ref: ModelRef = SHAPE, dtype: str = "bf16", **options: Any) -> LoadedModel:
    recipe = Recipe(model=ref, device="cpu", dtype=dtype, quantization=Quantization(**options))
    return loader.load(catalog.resolve(ref), recipe, lambda *_: None)


@torch.inference_mode()
def logits(loaded: LoadedModel) -> torch.Tensor:
    return loaded.model(IDS).logits.float()


def dtype_of(scheme: Scheme) -> str:
    return "bf16" if "bf16" in scheme.dtypes else scheme.dtypes[0]


def error(loaded: LoadedModel, dense: torch.Tensor) -> float:
    return float((logits(loaded) - dense).norm() / dense.norm())


@pytest.fixture(scope="module")
def dense() -> dict[str, torch.Tensor]:
    return {dtype: logits(load(dtype=dtype)) for dtype in ("bf16", "fp32")}


def predicted(loaded: LoadedModel, dtype: str, **options: Any) -> int:
    return pack(loaded.resolved.architecture, dtype, Quantization(**options)).total_bytes


@pytest.mark.parametrize("scheme", WITHOUT_CALIBRATION, ids=lambda scheme: scheme.name)
def test_a_scheme_packs_loses_what_its_bits_lose_and_generates(scheme: Scheme, dense: dict[str, Any]) -> None:
    dtype = dtype_of(scheme)
    loaded = load(dtype=dtype, scheme=scheme.name)
    assert loaded.effective.quantized_modules == LINEAR_LAYERS
    assert loaded.effective.skip_reasons == {"lm_head": "output layer"}
    assert loaded.effective.parameters == PARAMETERS
    assert loaded.weights_bytes - ROTARY_BYTES == predicted(loaded, dtype, scheme=scheme.name)
    least, most = ERRORS[scheme.name]
    assert least < error(loaded, dense[dtype]) < most
    reply = loaded.model.generate(IDS, max_new_tokens=3, do_sample=False)
    assert reply.shape == (1, IDS.shape[1] + 3)
    assert weights_bytes(loaded.model) <= loaded.weights_bytes  # nothing grows at first use


@pytest.mark.parametrize("scheme", WITHOUT_CALIBRATION, ids=lambda scheme: scheme.name)
def test_skipped_layers_stay_dense_are_told_and_weigh_what_was_predicted(scheme: Scheme) -> None:
    dtype, options = dtype_of(scheme), {"scheme": scheme.name, "skip": ("*.down_proj", "model.layers.1.mlp.*")}
    loaded = load(dtype=dtype, **options)
    reasons = loaded.effective.skip_reasons
    assert loaded.effective.quantized_modules == LINEAR_LAYERS - 4
    assert {name for name, reason in reasons.items() if reason == "quantization.skip"} == {
        "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.gate_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.mlp.down_proj",
    }
    assert loaded.weights_bytes - ROTARY_BYTES == predicted(loaded, dtype, **options)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("fp32", {"scheme": "torchao-int8-dynamic", "activations": "asymmetric"}),
        ("fp16", {"scheme": "torchao-fp8-weight-only"}),
        ("bf16", {"scheme": "torchao-int4-weight-only", "group_size": 32}),
        ("bf16", {"scheme": "torchao-int4-weight-only", "parameters": "hqq"}),
        ("fp32", {"scheme": "bnb-nf4", "double_quant": True}),
        ("fp32", {"scheme": "bnb-int8", "outlier_threshold": 0.0}),
    ],
)
def test_options_weigh_what_was_predicted(dtype: str, options: dict[str, Any]) -> None:
    loaded = load(dtype=dtype, **options)
    assert loaded.weights_bytes - ROTARY_BYTES == predicted(loaded, dtype, **options)
    assert torch.isfinite(logits(loaded)).all()
    assert weights_bytes(loaded.model) <= loaded.weights_bytes


def test_a_group_size_that_does_not_divide_a_layer_leaves_it_dense_and_says_so() -> None:
    options = {"scheme": "torchao-int4-weight-only", "group_size": 128}
    loaded = load(**options)
    assert loaded.effective.quantized_modules == LINEAR_LAYERS - 2  # 192 inputs
    reasons = loaded.effective.skip_reasons
    assert reasons["model.layers.0.mlp.down_proj"] == "192 inputs are not a multiple of 128 (the group size)"
    assert loaded.weights_bytes - ROTARY_BYTES == predicted(loaded, "bf16", **options)
    sizes = {
        size.name: size for size in module_sizes(loaded.resolved.architecture, "bf16", Quantization(**options))
    }
    assert {
        name: size.dense_because for name, size in sizes.items() if size.part == "linear" and not size.packed
    } == {name: reason for name, reason in reasons.items() if name != "lm_head"}


@pytest.mark.parametrize("scheme", ["bnb-nf4", "bnb-fp4", "torchao-int4-weight-only"])
def test_shapes_that_a_cpu_kernel_lacks_stay_dense_and_generate(scheme: str) -> None:
    odd = SPEC.model_copy(update={"intermediate": 200})  # 200 = 8 x 25
    loaded = load(ModelRef(source="shape", id="custom", shape=odd), scheme=scheme)
    assert loaded.effective.quantized_modules == 8  # attention alone
    assert "200" in loaded.effective.skip_reasons["model.layers.0.mlp.up_proj"]
    assert torch.isfinite(logits(loaded)).all()


def test_the_outlier_threshold_reaches_every_layer() -> None:
    layers = list(load(scheme="bnb-int8", outlier_threshold=3.5).model.modules())
    assert {layer.state.threshold for layer in layers if hasattr(layer, "state")} == {3.5}


def test_asymmetric_activations_are_another_computation() -> None:
    symmetric = logits(load(scheme="torchao-int8-dynamic"))
    asymmetric = logits(load(scheme="torchao-int8-dynamic", activations="asymmetric"))
    assert not torch.equal(symmetric, asymmetric)


def test_hqq_finds_other_scales() -> None:
    minmax = logits(load(scheme="torchao-int4-weight-only"))
    hqq = logits(load(scheme="torchao-int4-weight-only", parameters="hqq"))
    assert not torch.equal(minmax, hqq)


def test_no_scheme_touches_inductor_for_the_whole_process() -> None:
    before = inductor.get_config_copy()
    for scheme in WITHOUT_CALIBRATION:
        if scheme.library == "torchao":
            load(scheme=scheme.name)
    assert inductor.get_config_copy() == before


def test_a_tied_output_layer_is_never_packed() -> None:
    tied = ModelRef(source="shape", id="custom", shape=SPEC.model_copy(update={"tied": True}))
    for scheme in WITHOUT_CALIBRATION:
        loaded = load(tied, dtype=dtype_of(scheme), scheme=scheme.name)
        assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
        assert type(loaded.model.lm_head.weight) is torch.nn.Parameter
