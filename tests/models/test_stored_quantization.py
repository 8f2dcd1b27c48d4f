from __future__ import annotations

import json
from typing import Any

import pytest

from mcp_core import hardware
from mcp_core.errors import InvalidModel, RecipeError
from mcp_core.hardware import Device, Hardware
from mcp_core.models.stored_quantization import (
    StoredQuantization,
    read_stored_quantization,
    require_loadable_here,
)
from mcp_core.recipe import Quantization, Recipe

INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel"}


def groups(*pairs: tuple[dict[str, Any], dict[str, Any] | None]) -> dict[str, Any]:
    listed = {
        f"group_{index}": {"targets": ["Linear"], "weights": weights, "input_activations": activations}
        for index, (weights, activations) in enumerate(pairs)
    }
    return {"quant_method": "compressed-tensors", "config_groups": listed}


KNOWN: dict[str, dict[str, Any]] = {
    "gptq w4a16": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq w4a16": {"quant_method": "awq", "bits": 4, "version": "gemm"},
    "bitsandbytes nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "bitsandbytes int8": {"load_in_8bit": True},
    "torchao Int8WeightOnly": {
        "quant_method": "torchao",
        "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}},
    },
    "compressed-tensors w4a16": groups((INT4, None)),
    "compressed-tensors w8a8": groups((INT8, INT8)),
    "compressed-tensors fp w8a8": groups((FP8, FP8)),
    "mxfp4 w4a16": {"quant_method": "mxfp4"},
    "fp8 w8a8 in blocks": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}


def read(label: str) -> StoredQuantization:
    stored = read_stored_quantization({"quantization_config": KNOWN[label]}, "it")
    assert stored is not None
    return stored


def device(kind: str = "cuda", capability: tuple[int, int] = (9, 0)) -> Device:
    return Device(
        id="cpu" if kind == "cpu" else "cuda:0",
        kind=kind,  # type: ignore[arg-type]
        name="it",
        memory_total_bytes=1,
        memory_free_bytes=1,
        compute_capability=None if kind == "cpu" else capability,
    )


def machine(**libraries: str) -> Hardware:
    return hardware.detect().model_copy(
        update={"libraries": {name.replace("_", "-"): version for name, version in libraries.items()}}
    )


@pytest.mark.parametrize("label", KNOWN)
def test_methods_are_named(label: str) -> None:
    stored = read(label)
    assert stored.label == label
    assert stored.bits == (4 if "4" in label else 8)
    assert "as it is" in stored.deployable_as


@pytest.mark.parametrize(
    ("label", "scheme"),
    [
        ("bitsandbytes nf4", "bnb-nf4"),
        ("bitsandbytes int8", "bnb-int8"),
        ("torchao Int8WeightOnly", "torchao-int8-weight-only"),
        ("gptq w4a16", "none"),
    ],
)
def test_memory_beside_the_weights_follows_from_the_scheme_that_packs_alike(label: str, scheme: str) -> None:
    assert read(label).computes_as == scheme


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"quantization_config": {}}])
def test_a_dense_checkpoint_has_none(config: dict[str, Any]) -> None:
    assert read_stored_quantization(config, "it") is None


@pytest.mark.parametrize("method", ["modelopt", "aqlm", "quip", ""])
def test_a_method_that_is_not_loaded_here_is_refused_by_name(method: str) -> None:
    with pytest.raises(InvalidModel, match=f"it is quantized by {method}") as caught:
        read_stored_quantization({"quantization_config": {"quant_method": method}}, "it")
    assert "gptq" in caught.value.hint


@pytest.mark.parametrize(
    "document",
    [
        "gptq",
        ["gptq"],
        {"quant_method": "gptq"},
        {"quant_method": "gptq", "bits": "four"},
        {"quant_method": "awq"},
        {"quant_method": "torchao", "quant_type": "int8_weight_only"},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "compressed-tensors", "config_groups": {}},
        {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": None}}}},
    ],
    ids=json.dumps,
)
def test_a_description_that_is_not_understood_is_refused(document: Any) -> None:
    with pytest.raises(InvalidModel, match="quantization_config"):
        read_stored_quantization({"quantization_config": document}, "it")


def test_quantizing_again_is_refused_by_name() -> None:
    recipe = Recipe(quantization=Quantization(scheme="bnb-nf4"))
    with pytest.raises(RecipeError, match=r"scheme: the checkpoint is already quantized \(bitsandbytes int8\)"):
        require_loadable_here(read("bitsandbytes int8"), recipe, machine(bitsandbytes="0.50.2"))


@pytest.mark.parametrize(
    ("label", "there", "named"),
    [
        ("gptq w4a16", {}, "gptqmodel>=1.4.3 and optimum>=1.24"),
        ("gptq w4a16", {"gptqmodel": "5.0"}, "optimum>=1.24"),
        ("gptq w4a16", {"gptqmodel": "1.0", "optimum": "2.0"}, "gptqmodel>=1.4.3"),
        ("awq w4a16", {}, "gptqmodel>=1.4.3"),
        ("compressed-tensors w4a16", {"compressed_tensors": "0.14.1"}, "compressed-tensors>=0.15"),
        ("bitsandbytes nf4", {}, "bitsandbytes"),
        ("torchao Int8WeightOnly", {}, "torchao"),
    ],
)
def test_a_missing_library_is_named(label: str, there: dict[str, str], named: str) -> None:
    with pytest.raises(RecipeError, match=f"needs {named}, which is not installed") as caught:
        require_loadable_here(read(label), Recipe(), machine(**there))
    assert caught.value.hint.startswith("pip install ")


def test_llm_int8_of_a_checkpoint_is_recorded_no_more_than_the_schemes() -> None:
    with pytest.raises(RecipeError, match=r"compile: the checkpoint's LLM\.int8"):
        require_loadable_here(read("bitsandbytes int8"), Recipe(compile="compiled"), machine(bitsandbytes="0.50"))
    require_loadable_here(read("bitsandbytes nf4"), Recipe(compile="compiled"), machine(bitsandbytes="0.50"))


def test_what_is_there_is_enough() -> None:
    require_loadable_here(read("gptq w4a16"), Recipe(), machine(gptqmodel="5.0", optimum="2.0"))
    require_loadable_here(read("mxfp4 w4a16"), Recipe(), machine())
    require_loadable_here(None, Recipe(quantization=Quantization(scheme="bnb-nf4")), machine())


@pytest.mark.parametrize(
    ("label", "where", "there", "why"),
    [
        ("bitsandbytes nf4", device("cpu"), {}, ""),
        ("gptq w4a16", device("cpu"), {}, ""),
        ("compressed-tensors w4a16", device(), {}, "transformers has no kernel for it"),
        ("compressed-tensors w8a8", device(), {}, "transformers has no kernel for it"),
        ("compressed-tensors fp w8a8", device(), {}, ""),
        ("compressed-tensors fp w8a8", device(capability=(8, 0)), {}, "compute capability 8.9"),
        ("compressed-tensors fp w8a8", device("cpu"), {}, "no kernel for it on cpu"),
        ("fp8 w8a8 in blocks", device(), {}, "needs kernels>=0.18.2,<0.19"),
        ("fp8 w8a8 in blocks", device(), {"kernels": "0.18.2"}, ""),
        ("fp8 w8a8 in blocks", device("cpu"), {"kernels": "0.18.2"}, "no kernel for it on cpu"),
        ("mxfp4 w4a16", device(), {"kernels": "0.19.0"}, "needs kernels>=0.18.2,<0.19"),
        ("mxfp4 w4a16", device(capability=(7, 5)), {"kernels": "0.18.3"}, ""),
    ],
)
def test_where_weights_stay_packed(label: str, where: Device, there: dict[str, str], why: str) -> None:
    said = read(label).why_expanded(where, there)
    assert why in said if why else not said
