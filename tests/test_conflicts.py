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
        ({"engine": "endpoint"}, "engine"),
        ({"compile": "graphs"}, "compile"),
        ({"compile": "autotuned"}, "compile"),
        ({"compile": "compiled", "batching.mode": "static"}, "compile"),
        ({"batching.mode": "continuous", "kv.kind": "static"}, "kv.kind"),
        ({"prefix_cache": True, "kv.kind": "off"}, "kv.kind"),
        ({"batching.mode": "static", "kv.kind": "quantized-fp8"}, "kv.kind"),
        ({"batching.mode": "continuous", "kv.kind": "sliding"}, "kv.kind"),
        ({"prefix_cache": True, "batching.mode": "static"}, "prefix_cache"),
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


FP32 = {"dtype": "fp32"}


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"kv.window": 64}, "kv.window", "belongs to sliding"),
        ({"kv.kind": "sliding", "attention": "flex_attention"}, "kv.kind", "a mask that flex_attention"),
        ({"kv.bits": 4}, "kv.bits", "belongs to quantized-quanto and quantized-hqq"),
        ({"kv.kind": "quantized-quanto"}, "kv.kind", "needs optimum-quanto, which is not installed"),
        ({"kv.kind": "quantized-hqq"}, "kv.kind", "NVIDIA devices only"),
        ({"switches.tf32": True, **FP32}, "switches.tf32", "a CPU has none"),
        ({"switches.autocast": "bf16"}, "switches.autocast", "these are bf16 already"),
        (
            {"switches.autocast": "bf16", "quantization.scheme": "bnb-nf4", **FP32},
            "switches.autocast",
            "chooses the types",
        ),
        ({"switches.autocast": "bf16", "kv.kind": "static", **FP32}, "switches.autocast", "static cache needs one"),
        ({"switches.cudnn_benchmark": True}, "switches.cudnn_benchmark", "NVIDIA devices only"),
    ],
)
def test_cache_options_and_switches_that_would_change_nothing_are_named(laptop, changes, field, words):
    (conflict, *_) = Recipe().replace(changes).conflicts(laptop)
    assert conflict.field == field
    assert words in conflict.reason
    assert conflict.fix


@pytest.mark.parametrize(
    "changes",
    [
        {"kv.kind": "sliding", "kv.window": 64},
        {"kv.kind": "off"},
        {"switches.autocast": "bf16", **FP32},
        {"attention": "flex_attention"},
    ],
)
def test_what_runs_on_a_laptop_has_no_conflict(laptop, changes, monkeypatch):
    monkeypatch.setattr("mcp_core.conflicts.which", lambda name: f"/usr/bin/{name}")
    assert fields(Recipe().replace(changes), laptop) == []


def test_switches_of_a_gpu(gpu_host):
    asked = {"switches.tf32": True, "switches.cudnn_benchmark": True, "device": "cuda:0"}
    assert fields(Recipe().replace({**asked, **FP32}), gpu_host) == []
    assert "computes in bf16" in Recipe().replace(asked).conflicts(gpu_host)[0].reason
    old = gpu_host.devices[1].model_copy(update={"compute_capability": (7, 5)})
    turing = gpu_host.model_copy(update={"devices": (gpu_host.devices[0], old)})
    (conflict,) = Recipe().replace({**asked, **FP32}).conflicts(turing)
    assert "needs compute capability 8.0; Test GPU has 7.5" in conflict.reason


def test_quanto_has_two_and_four_bits_and_builds_itself(laptop, monkeypatch):
    with_it = laptop.model_copy(update={"libraries": laptop.libraries | {"optimum-quanto": "0.2.7"}})
    recipe = Recipe().replace({"kv.kind": "quantized-quanto", "kv.bits": 8})
    monkeypatch.setattr("mcp_core.conflicts.which", lambda name: f"/usr/bin/{name}")
    (conflict,) = recipe.conflicts(with_it)
    assert conflict.reason == "quantized-quanto stores 2 or 4 bits."
    assert fields(recipe.replace({"kv.bits": 2}), with_it) == []
    monkeypatch.setattr("mcp_core.conflicts.which", lambda name: None)
    assert "there is no C++ compiler" in recipe.replace({"kv.bits": 2}).conflicts(with_it)[0].reason


def test_flex_needs_a_compiler_on_a_cpu(laptop, monkeypatch):
    monkeypatch.setattr("mcp_core.conflicts.which", lambda name: None)
    assert fields(Recipe().replace({"attention": "flex_attention"}), laptop) == ["attention"]


def test_a_static_cache_and_flash_attention_do_not_go_together(gpu_host):
    recipe = Recipe().replace({"kv.kind": "static", "attention": "flash_attention_2", "device": "cuda:0"})
    assert "kv.kind" in fields(recipe, gpu_host)


@pytest.mark.parametrize("paged", [{"batching.mode": "continuous"}, {"prefix_cache": True}])
def test_pages_are_dense_or_fp8(laptop, gpu_host, paged):
    fp8 = Recipe().replace({"kv.kind": "quantized-fp8"} | paged)
    assert fields(fp8, laptop) == []
    on_gpu = fp8.replace({"device": "cuda:0"})
    assert fields(on_gpu, gpu_host) == []
    assert fields(on_gpu.replace({"compile": "graphs"}), gpu_host) == ["compile"]
