from __future__ import annotations

from typing import Any

import pytest

from mcp_core import llama_cpp
from mcp_core.hardware import Device, Hardware
from mcp_core.presets import bundled, recipe_preset
from mcp_core.recipe import Recipe

LLAMA_CPP = Recipe().replace({"engine": "llama.cpp", "quantization.scheme": "gguf"})


def machine(*libraries: str) -> Hardware:
    cpu = Device(id="cpu", kind="cpu", name="Test CPU", memory_total_bytes=10**10, memory_free_bytes=10**10)
    return Hardware(
        host="test",
        os="Linux",
        python="3.11",
        cpu="Test CPU",
        cores=4,
        cpu_flags=(),
        devices=(cpu,),
        libraries=dict.fromkeys(libraries, "1"),
    )


HERE = machine("xllamacpp", "torch")


def refused(recipe: Recipe, hardware: Hardware = HERE) -> dict[str, str]:
    """The first conflict of each field is the one that is shown."""
    return {each.field: f"{each.reason} {each.fix}" for each in reversed(recipe.conflicts(hardware))}


def test_a_gguf_by_llama_cpp_runs_on_a_cpu() -> None:
    assert refused(LLAMA_CPP) == {}
    assert refused(LLAMA_CPP.replace({"batching.mode": "continuous", "prefix_cache": True, "threads": 2})) == {}


def test_attention_is_its_own_kernel_or_none() -> None:
    without = LLAMA_CPP.replace({"attention": "eager"})
    assert refused(without) == {}
    assert llama_cpp.flash_attention(LLAMA_CPP)
    assert not llama_cpp.flash_attention(without)


def test_without_the_library_its_extra_is_named() -> None:
    assert "'.[llamacpp]'" in refused(LLAMA_CPP, machine("torch"))["engine"]


@pytest.mark.parametrize(
    ("changes", "field", "word"),
    [
        ({"dtype": "fp32"}, "dtype", "types that the GGUF"),
        ({"attention": "flex_attention"}, "attention", "has no flex_attention"),
        ({"kv.kind": "static"}, "kv.kind", "f16"),
        ({"switches.autocast": "bf16"}, "switches.autocast", "torch's switch"),
        ({"compile": "compiled"}, "compile", "compiled already"),
        ({"batching.mode": "static"}, "batching.mode", "continuous or off"),
        ({"batching.max_wait_ms": 1.0}, "batching.max_wait_ms", "waits for nobody"),
        ({"batching.kv_blocks": 8}, "batching.kv_blocks", "no pages"),
        ({"speculation": "prompt-lookup"}, "speculation", "transformers only"),
        ({"quantization.skip": ["*.down_proj"]}, "quantization.skip", "nothing is quantized here"),
        ({"quantization.group_size": 32}, "quantization.group_size", "does not read it"),
        ({"quantization.scheme": "none"}, "quantization.scheme", "Set it to gguf"),
        ({"model": {"source": "hub", "id": "a/b"}}, "engine", "reads GGUF files"),
        ({"model": {"source": "shape", "id": "llama-2-7b"}}, "engine", "reads GGUF files"),
    ],
)
def test_what_llama_cpp_does_not_read_is_refused_by_name(changes: dict[str, Any], field: str, word: str) -> None:
    assert word in refused(LLAMA_CPP.replace(changes))[field]


def test_on_a_gpu_host_the_cpu_has_to_be_named() -> None:
    gpu = Device(id="cuda:0", kind="cuda", name="GPU", memory_total_bytes=10**10, memory_free_bytes=10**10)
    host = HERE.model_copy(update={"devices": (*HERE.devices, gpu), "torch_cuda": "13.0"})
    assert "Set it to cpu." in refused(LLAMA_CPP, host)["device"]
    assert refused(recipe_preset("bundled-llama.cpp"), host) == {}


def test_its_scheme_belongs_to_no_other_engine() -> None:
    assert (
        "expands a GGUF's weights"
        in refused(Recipe().replace({"quantization.scheme": "gguf"}))["quantization.scheme"]
    )


def test_slots_are_one_when_off_and_bounded_otherwise() -> None:
    continuous = LLAMA_CPP.replace({"batching.mode": "continuous"})
    assert llama_cpp.slots(LLAMA_CPP) == 1
    assert llama_cpp.slots(continuous.replace({"batching.max_requests": 3})) == 3
    assert llama_cpp.slots(continuous) == 16


@pytest.mark.parametrize(("context", "slot"), [(16, 256), (255, 256), (256, 512), (4096, 4352)])
def test_a_slot_holds_one_token_more_than_the_context(context: int, slot: int) -> None:
    assert llama_cpp.slot_tokens(context) == slot


def test_changing_the_engine_leaves_nothing_that_it_does_not_read() -> None:
    busy = bundled().replace(
        {
            "threads": 2,
            "attention": "eager",
            "kv.kind": "sliding",
            "kv.max_context": 512,
            "quantization.scheme": "bnb-nf4",
            "batching.max_requests": 5,
        }
    )
    there = llama_cpp.with_engine(busy, "llama.cpp")
    assert refused(there) == {}
    assert (there.threads, there.kv.max_context, there.batching.max_requests) == (2, 512, 5)
    back = llama_cpp.with_engine(there, "transformers")
    assert refused(back) == {}
    assert (back.engine, back.quantization.scheme) == ("transformers", "none")
    assert llama_cpp.with_engine(busy, "transformers") == busy


def test_its_preset_runs() -> None:
    assert refused(recipe_preset("bundled-llama.cpp")) == {}
