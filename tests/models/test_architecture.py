from __future__ import annotations

from mcp_core.models.architecture import Architecture, ResolvedModel, TensorInfo
from mcp_core.recipe import ModelRef


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
