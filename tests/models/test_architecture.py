from __future__ import annotations

from dataclasses import replace

import pytest

from mcp_core import hardware
from mcp_core.models.architecture import PACKED_GGUF, Architecture, ResolvedModel, TensorInfo
from mcp_core.models.headers import _GGUF_MODEL_TYPES
from mcp_core.models.stored_quantization import StoredQuantization
from mcp_core.recipe import ModelRef, Quantization, Recipe, SchemeName


def architecture() -> Architecture:
    return Architecture(
        model_type="llama",
        layers=3,
        hidden=8,
        intermediate=16,
        heads=4,
        kv_heads=2,
        head_dim=5,
        vocab=10,
        context=32,
        tied=True,
        native_dtype="bf16",
        tensors=(TensorInfo("a", (2, 3, 4)), TensorInfo("b", (7,)), TensorInfo("scalar", ())),
    )


def test_parameters_are_counted_by_shape():
    assert [tensor.parameters for tensor in architecture().tensors] == [24, 7, 1]
    assert architecture().parameters == 32


def test_keys_and_values_of_a_token():
    assert architecture().kv_elements_per_token == 2 * 3 * 2 * 5


def test_only_shapes_have_random_weights():
    assert not ResolvedModel(ModelRef(), "bundled", architecture()).random_weights
    shape = ModelRef(source="shape", id="llama-2-7b")
    assert ResolvedModel(shape, "shape", architecture()).random_weights


def gguf(kind: str | None) -> ResolvedModel:
    return replace(resolved(), gguf_type=kind)


def resolved(quantized: StoredQuantization | None = None) -> ResolvedModel:
    ref = ModelRef(source="folder", id="/it")
    tensors = (TensorInfo("m.weight", (8, 8), 40), TensorInfo("norm.weight", (8,)))
    return ResolvedModel(ref, "it", replace(architecture(), tensors=tensors), quantized=quantized)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (resolved(), ""),
        (gguf("F16"), ""),
        (gguf("Q4_1"), "A GGUF of Q4_1: its weights are expanded to bf16"),
        (resolved(StoredQuantization("gptq", "gptq w4a16", 4, ())), "quantized (gptq w4a16) and is loaded so."),
        (
            resolved(StoredQuantization("compressed-tensors", "ct w4a16", 4, (), packed_on=())),
            "expanded to bf16: transformers has no kernel for it.",
        ),
    ],
)
def test_what_becomes_of_a_quantized_source_is_told(model: ResolvedModel, words: str) -> None:
    machine = hardware.detect()
    said = model.comes_as(Recipe(), machine.device("cpu"), machine)
    assert words in said if words else said == ""


def test_tensors_as_loaded_are_dense_where_weights_do_not_stay_packed() -> None:
    machine = hardware.detect()

    def stored(packed_on: tuple[str, ...]) -> list[int | None]:
        model = resolved(StoredQuantization("it", "it", 4, (), packed_on=packed_on))  # type: ignore[arg-type]
        as_loaded = model.as_loaded(Quantization(), machine.device("cpu"), machine)
        return [tensor.stored_bytes for tensor in as_loaded.tensors]

    assert stored(("cpu", "cuda")) == [40, None]
    assert stored(()) == [None, None]


def test_packed_weights_are_computed_by_the_kernels_of_their_scheme() -> None:
    machine = hardware.detect()
    cpu = machine.device("cpu")

    def scheme(packed_on: tuple[str, ...], asked: Recipe | None = None) -> str:
        stored = StoredQuantization("it", "it", 4, (), packed_on=packed_on, computes_as="bnb-nf4")  # type: ignore[arg-type]
        return resolved(stored).computed_by(asked or Recipe(), cpu, machine).quantization.scheme

    assert scheme(("cpu", "cuda")) == "bnb-nf4"
    assert scheme(()) == "none"  # expanded: computed with dense
    dense = Recipe(quantization=Quantization(scheme="bnb-int8"))
    assert resolved().computed_by(dense, cpu, machine) == dense


def test_fused_experts_are_taken_apart_for_a_scheme_only() -> None:
    machine = hardware.detect()
    fused = (
        TensorInfo("l.0.mlp.experts.gate_up_proj", (3, 8, 4)),
        TensorInfo("l.0.mlp.experts.down_proj", (3, 4, 4)),
    )
    model = replace(resolved(), architecture=replace(architecture(), model_type="qwen3_moe", tensors=fused))

    def shapes(scheme: SchemeName) -> dict[str, tuple[int, ...]]:
        as_loaded = model.as_loaded(Quantization(scheme=scheme), machine.device("cpu"), machine)
        return {tensor.name: tensor.shape for tensor in as_loaded.tensors}

    assert shapes("none") == {tensor.name: tensor.shape for tensor in fused}
    assert shapes("bnb-nf4") == {
        f"l.0.mlp.experts.{expert}.{part}_proj.weight": (4, 4)
        for expert in range(3)
        for part in ("gate", "up", "down")
    }


def test_no_gguf_that_is_loaded_here_could_stay_packed() -> None:
    """Should transformers learn to keep one of ours packed, the words about it are no longer true."""
    from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS

    assert set(GGUF_ARCHS) == set(PACKED_GGUF)
    assert not set(GGUF_ARCHS) & set(_GGUF_MODEL_TYPES)
