from __future__ import annotations

import pytest

from mcp_core.conflicts import require_runnable, resolve
from mcp_core.errors import RecipeError
from mcp_core.hardware import Device, Hardware
from mcp_core.recipe import Recipe


@pytest.fixture
def laptop() -> Hardware:
    cpu = Device(id="cpu", kind="cpu", name="Test CPU", memory_total_bytes=16 * 10**9, memory_free_bytes=8 * 10**9)
    return Hardware(
        host="laptop",
        os="Linux",
        python="3.11",
        cpu="Test CPU",
        cores=4,
        cpu_flags=(),
        devices=(cpu,),
        libraries={"torch": "2.13", "bitsandbytes": "0.50", "torchao": "0.18"},
    )


@pytest.fixture
def gpu_host(laptop: Hardware) -> Hardware:
    gpu = Device(
        id="cuda:0",
        kind="cuda",
        name="Test GPU",
        memory_total_bytes=80 * 10**9,
        memory_free_bytes=79 * 10**9,
        compute_capability=(9, 0),
    )
    return laptop.model_copy(update={"devices": (*laptop.devices, gpu), "torch_cuda": "13.0"})


def fields(recipe: Recipe, hardware: Hardware) -> list[str]:
    return [conflict.field for conflict in recipe.conflicts(hardware)]


@pytest.mark.parametrize("scheme", ["none", "bnb-int8", "bnb-nf4", "bnb-fp4", "torchao-int8-weight-only"])
def test_the_first_schemes_run_on_a_cpu(laptop, scheme):
    assert fields(Recipe().replace({"quantization.scheme": scheme}), laptop) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"device": "cuda:0"}, "device"),
        ({"threads": 5}, "threads"),
        ({"attention": "flash_attention_2"}, "attention"),
        ({"kv.kind": "offloaded"}, "kv.kind"),
        ({"quantization.scheme": "torchao-fp8-dynamic"}, "quantization.scheme"),
        ({"quantization.double_quant": True}, "quantization.double_quant"),
        ({"quantization.group_size": 32}, "quantization.group_size"),
        ({"quantization.skip": ["*.down_proj"]}, "quantization.skip"),
        ({"engine": "vllm"}, "engine"),
        ({"compile": True}, "compile"),
        ({"batching.mode": "continuous"}, "batching.mode"),
        ({"prefix_cache": True}, "prefix_cache"),
        ({"speculation": "draft"}, "speculation"),
    ],
)
def test_what_a_laptop_cannot_do_is_named_with_reason_and_fix(laptop, changes, field):
    (conflict,) = Recipe().replace(changes).conflicts(laptop)
    assert conflict.field == field
    assert conflict.reason
    assert conflict.fix


def test_a_missing_library_is_the_reason(laptop):
    bare = laptop.model_copy(update={"libraries": {}})
    (conflict,) = Recipe().replace({"quantization.scheme": "bnb-nf4"}).conflicts(bare)
    assert "pip install bitsandbytes" in conflict.fix


def test_a_cpu_build_of_torch_cannot_use_the_gpu(gpu_host):
    cpu_build = gpu_host.model_copy(update={"torch_cuda": None})
    assert fields(Recipe(device="cuda:0"), gpu_host) == []
    assert fields(Recipe(device="cuda:0"), cpu_build) == ["device"]
    assert resolve(Recipe(), gpu_host).device == "cuda:0"
    assert resolve(Recipe(), cpu_build).device == "cpu"


def test_offloading_needs_a_gpu(gpu_host):
    recipe = Recipe().replace({"kv.kind": "offloaded"})
    assert fields(recipe, gpu_host) == []
    assert fields(recipe.replace({"device": "cpu"}), gpu_host) == ["kv.kind"]


def test_resolve_names_device_and_threads(laptop):
    resolved = resolve(Recipe(), laptop)
    assert resolved.device == "cpu"
    assert resolved.threads is not None
    assert resolved.threads >= 1
    assert resolve(Recipe(threads=2), laptop).threads == 2


def test_require_runnable_raises_the_first(laptop):
    require_runnable(Recipe(), laptop)
    with pytest.raises(RecipeError, match="no cuda:3"):
        require_runnable(Recipe(device="cuda:3"), laptop)
