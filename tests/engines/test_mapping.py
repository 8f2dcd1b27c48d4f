"""Every row of the mapping, read back by the stand-in's strict parser."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mcp_core.engines import FOREIGN, not_carried
from mcp_core.engines.launch import Given
from mcp_core.recipe import ModelRef, Recipe
from tests.engines import stand_in_engine

GIVEN = Given(
    folder=Path("/models/m"),
    max_context=2048,
    port=8123,
    token="a-secret-of-the-worker",
    scratch=Path("/nowhere"),
    memory_share=0.9,
)
BASE = Recipe(model=ModelRef(source="folder", id="/models/m"), device="cuda:1", threads=3)


def read(engine: str, changes: dict[str, Any], tmp_path: Path, **given: Any) -> argparse.Namespace:
    """What the engine's server understands of a Recipe."""
    recipe = BASE.replace({"engine": engine, **changes})
    there = dataclasses.replace(GIVEN, scratch=tmp_path, **given)
    launch = FOREIGN[engine].launch(recipe, there)
    for path, text in launch.files:
        path.touch(0o600)
        path.write_text(text)
    assert not any(there.token in argument for argument in launch.arguments), "a key on the command line"
    if engine == "vllm":
        assert launch.arguments[:3] == ("-m", "vllm.entrypoints.cli.main", "serve")
        assert launch.environment["VLLM_API_KEY"] == there.token
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLLM_API_KEY", there.token)
            return stand_in_engine.read_vllm(list(launch.arguments[3:]))
    assert launch.arguments[:2] == ("-m", "sglang.launch_server")
    return stand_in_engine.read_sglang(list(launch.arguments[2:]))


CONTINUOUS = {"batching.mode": "continuous"}
DRAFT = {"source": "folder", "id": "/models/d"}
ROWS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # Recipe -> vLLM, SGLang
    ({}, {"model": "/models/m", "host": "127.0.0.1", "port": 8123, "served_model_name": "/models/m"}, {}),
    ({}, {"key": GIVEN.token, "context": 2048}, {"key": GIVEN.token, "context": 2048, "port": 8123}),
    ({"dtype": "fp32"}, {"dtype": "float32"}, {"dtype": "float32"}),
    ({"dtype": "bf16"}, {"dtype": "bfloat16"}, {"dtype": "bfloat16"}),
    ({"dtype": "fp16"}, {"dtype": "float16"}, {"dtype": "float16"}),
    ({}, {"gpu_memory_utilization": 0.9, "generation_config": "vllm"}, {"sampling_defaults": "openai"}),
    ({}, {"allowed_origins": [], "enable_prompt_tokens_details": True}, {"enable_metrics": True}),
    ({}, {"quantization": None, "load_format": None}, {"quantization": None, "load_format": None}),
    (
        {"quantization.scheme": "bnb-nf4", "quantization.double_quant": True},
        {"quantization": "bitsandbytes"},
        {"quantization": "bitsandbytes", "load_format": "bitsandbytes"},
    ),
    ({"quantization.scheme": "torchao-fp8-dynamic"}, {"quantization": "fp8"}, {"quantization": "fp8"}),
    ({}, {"max_num_seqs": 1, "max_num_batched_tokens": None}, {"max_running_requests": 1}),
    (
        CONTINUOUS | {"batching.max_requests": 48, "batching.step_tokens": 640},
        {"max_num_seqs": 48, "max_num_batched_tokens": 640},
        {"max_running_requests": 48, "chunked_prefill_size": 640},
    ),
    ({"prefix_cache": True}, {"enable_prefix_caching": True}, {"disable_radix_cache": False}),
    ({"prefix_cache": False}, {"no_enable_prefix_caching": True}, {"disable_radix_cache": True}),
    ({"kv.kind": "dynamic"}, {"kv_cache_dtype": None}, {"kv_cache_dtype": None}),
    ({"kv.kind": "static"}, {"kv_cache_dtype": None}, {"kv_cache_dtype": None}),
    ({"kv.kind": "quantized-fp8"}, {"kv_cache_dtype": "fp8"}, {"kv_cache_dtype": "fp8_e4m3"}),
    (
        CONTINUOUS | {"batching.kv_blocks": 200},
        {"num_gpu_blocks_override": 200, "block_size": 16},
        {"max_total_tokens": 3200},
    ),
    ({"compile": "off"}, {"enforce_eager": True}, {"disable_decode_cuda_graph": True}),
    ({"compile": "compiled"}, {"enforce_eager": False}, {"disable_decode_cuda_graph": False}),
    ({"attention": "sdpa"}, {"attention_backend": None}, {"attention_backend": None}),
    ({"attention": "eager"}, {"attention_backend": None}, {"attention_backend": None}),
    ({"attention": "flash_attention_2"}, {"attention_backend": "FLASH_ATTN"}, {"attention_backend": None}),
    ({"attention": "flash_attention_3"}, {"attention_backend": "FLASH_ATTN"}, {"attention_backend": "fa3"}),
    (
        {"attention": "flex_attention"},
        {"attention_backend": "FLEX_ATTENTION"},
        {"attention_backend": "flex_attention"},
    ),
    ({"speculation": "off"}, {"spec_method": None}, {"speculative_algorithm": None}),
    (
        {"speculation": "prompt-lookup"},
        {"spec_method": "ngram", "spec_tokens": 10},
        {"speculative_algorithm": "NGRAM", "speculative_num_draft_tokens": 10},
    ),
    (
        {"speculation": "draft", "draft": DRAFT, "draft_tokens": 4},
        {"spec_method": "draft_model", "spec_model": "/models/d", "spec_tokens": 4},
        {
            "speculative_algorithm": "STANDALONE",
            "speculative_draft_model_path": "/models/d",
            "speculative_num_steps": 4,
            "speculative_num_draft_tokens": 5,
            "speculative_eagle_topk": 1,
        },
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: json.dumps(row[0]))
@pytest.mark.parametrize("engine", FOREIGN)
def test_a_row(engine: str, row: tuple[dict[str, Any], ...], tmp_path: Path) -> None:
    changes, expected = row[0], row[1 + list(FOREIGN).index(engine)]
    understood = vars(read(engine, changes, tmp_path, draft=Path("/models/d")))
    assert {name: understood[name] for name in expected} == expected


@pytest.mark.parametrize("engine", FOREIGN)
def test_random_weights_are_made_by_the_engine(engine: str, tmp_path: Path) -> None:
    changes = {"model": {"source": "shape", "id": "llama-2-7b"}}
    assert read(engine, changes, tmp_path, random_weights=True).load_format == "dummy"


@pytest.mark.parametrize("engine", FOREIGN)
def test_one_device_its_threads_and_no_network(engine: str) -> None:
    environment = FOREIGN[engine].launch(BASE.replace({"engine": engine}), GIVEN).environment
    expected = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "OMP_NUM_THREADS": "3"}
    assert expected.items() <= environment.items()
    assert environment["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("engine", FOREIGN)
def test_a_device_among_visible_ones_is_called_as_outside(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5")
    environment = FOREIGN[engine].launch(BASE.replace({"engine": engine}), GIVEN).environment
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-5"


def test_the_stand_in_refuses_a_flag_that_vllm_does_not_have() -> None:
    with pytest.raises(AssertionError, match="swap-space"):
        stand_in_engine.parser({"--swap-space": int}, "vllm_0.23.0_flags.txt")  # it was there until V1
    with pytest.raises(SystemExit):
        stand_in_engine.parser(stand_in_engine.VLLM, "vllm_0.23.0_flags.txt").parse_args(["--max-model", "8"])


@pytest.mark.parametrize(
    ("engine", "changes", "field"),
    [
        ("vllm", {"quantization.scheme": "bnb-int8"}, "quantization.scheme"),
        ("vllm", {"quantization.scheme": "bnb-nf4"}, "quantization.double_quant"),
        ("vllm", {"quantization.scheme": "torchao-int8-weight-only"}, "quantization.scheme"),
        (
            "vllm",
            {"quantization.scheme": "torchao-fp8-dynamic", "quantization.skip": ["*.0.*"]},
            "quantization.skip",
        ),
        ("vllm", CONTINUOUS | {"batching.step_tokens": 32, "batching.max_requests": 64}, "batching.step_tokens"),
        ("sglang", {"quantization.scheme": "bnb-nf4"}, "quantization.double_quant"),
        ("sglang", {"quantization.scheme": "classic-dynamic"}, "quantization.scheme"),
        *(
            (engine, changes, field)
            for engine in FOREIGN
            for changes, field in (
                ({"model": {"source": "bundled", "id": "smollm2-135m-instruct"}}, "model.source"),
                ({"model": {"source": "gguf", "id": "/m.gguf"}}, "model.source"),
                ({"batching.mode": "static"}, "batching.mode"),
                ({"kv.kind": "sliding"}, "kv.kind"),
                ({"kv.kind": "offloaded"}, "kv.kind"),
                ({"kv.kind": "off"}, "kv.kind"),
                ({"kv.kind": "quantized-hqq"}, "kv.kind"),
                ({"switches.tf32": True}, "switches.tf32"),
                ({"switches.autocast": "bf16"}, "switches.autocast"),
                ({"speculation": "draft"}, "speculation"),
                ({"draft": DRAFT}, "draft"),
                ({"draft_tokens": 3}, "draft_tokens"),
                (
                    {
                        "model": {"source": "shape", "id": "llama-2-7b"},
                        "quantization.scheme": "bnb-nf4",
                        "quantization.double_quant": True,
                    },
                    "quantization.scheme",
                ),
            )
        ),
    ],
)
def test_what_would_change_meaning_is_refused(engine: str, changes: dict[str, Any], field: str) -> None:
    recipe = BASE.replace({"engine": engine, **changes})
    found = list(FOREIGN[engine].refusals(recipe))
    assert [each.field for each in found] == [field]
    assert found[0].reason.endswith(".")
    assert found[0].fix


@pytest.mark.parametrize("engine", FOREIGN)
def test_the_plain_recipe_is_refused_nothing(engine: str) -> None:
    assert not list(FOREIGN[engine].refusals(BASE.replace({"engine": engine})))


@pytest.mark.parametrize(
    ("engine", "changes", "fields"),
    [
        ("vllm", {}, {"attention"}),
        ("vllm", {"attention": "flex_attention"}, set()),
        ("vllm", {"attention": "flex_attention", "kv.kind": "static"}, {"kv.kind"}),
        ("vllm", {"attention": "flex_attention", "kv.kind": "quantized-fp8"}, {"kv.kind"}),
        ("vllm", {"attention": "flex_attention", "compile": "graphs"}, {"compile"}),
        ("vllm", {"attention": "flex_attention", **CONTINUOUS}, {"batching.max_requests"}),
        (
            "sglang",
            {"attention": "flash_attention_3", **CONTINUOUS},
            {"batching.max_requests", "batching.step_tokens"},
        ),
        ("sglang", {"attention": "flash_attention_2"}, {"attention"}),
        ("transformers", {}, set()),
    ],
)
def test_what_does_not_carry_over_is_listed(engine: str, changes: dict[str, Any], fields: set[str]) -> None:
    lines = not_carried(BASE.replace({"engine": engine, **changes}))
    assert {line.partition(":")[0] for line in lines} == fields
    assert all(re.fullmatch(r"\S+: .+\.", line) for line in lines)
