"""Command lines: what they would run is what was asked for."""

from __future__ import annotations

import argparse
import shlex
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from mcp_core.commands.arguments import read_recipe, read_workload
from mcp_core.commands.bench import add_arguments
from mcp_core.commands.fidelity import add_arguments as add_fidelity_arguments
from mcp_core.decision.command_lines import bench_command, fidelity_command
from mcp_core.evaluation.endpoint_recipe import endpoint_recipe
from mcp_core.presets import RECIPES, bundled
from mcp_core.recipe import Recipe
from mcp_core.workload import WORKLOADS, Workload, chat


def _read(command: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(shlex.split(command)[2:])


@pytest.mark.parametrize(
    "recipe",
    [
        bundled().replace(
            {"quantization.scheme": "bnb-nf4", "kv.max_context": 512, "quantization.skip": ["a b", "c"]}
        ),
        RECIPES["llama-2-7b-shape"]().replace({"device": "cuda:0"}),
        bundled().replace(
            {"model": {"source": "hub", "id": "org/model", "revision": "main"}, "prefix_cache": True}
        ),
    ],
)
@pytest.mark.parametrize(
    "workload",
    [
        chat().at_load(40),
        Workload(name="own", prompt_tokens=16, output_tokens={"min": 3, "max": 9}, requests=7),
        WORKLOADS["rag"]().replace({"arrivals": {"kind": "poisson", "rate_s": 2.5}}),
    ],
)
def test_a_bench_command_says_the_recipe_and_the_workload(recipe, workload):
    options = _read(bench_command(recipe, workload))
    assert read_recipe(options) == recipe
    assert read_workload(options) == workload


def test_a_text_that_reads_as_a_number_stays_a_text():
    recipe = bundled().replace({"model": {"source": "hub", "id": "org/model", "revision": "12345678"}})
    assert read_recipe(_read(bench_command(recipe, chat()))) == recipe


def test_short_forms_stay_short():
    command = bench_command(bundled(), Workload(name="own", prompt_tokens=16))
    assert "workload.prompt_tokens=16" in command
    assert fidelity_command(bundled()) == "mcp-core fidelity bundled"


ENGINES = typing.get_args(Recipe.model_fields["engine"].annotation)
# A value of another kind for every field, and texts that a shell or JSON would read otherwise.
OTHER: dict[str, Any] = {
    "device": "cuda:3",
    "threads": 2,
    "dtype": "fp16",
    "engine_python": "/opt/an engine's/bin/python",
    "quantization": {"scheme": "gguf", "skip": ["true", "*.mlp.*"], "alpha": 0.5, "group_size": 64},
    "attention": "flex_attention",
    "kv": {"kind": "sliding", "max_context": 1024, "window": 64},
    "switches": {"tf32": True, "autocast": "bf16"},
    "compile": "compiled",
    "batching": {"mode": "continuous", "max_requests": 8, "max_wait_ms": 2.5, "kv_blocks": 16},
    "prefix_cache": True,
    "speculation": "draft",
    "draft": {"source": "folder", "id": "/models/a draft", "sha256": "a" * 64},
    "draft_tokens": 4,
}
MODELS = (
    {"source": "gguf", "id": "/models/it's $HOME.gguf"},
    {"source": "hub", "id": "null", "revision": "1e5"},
    {"source": "folder", "id": "[" * 1000},
    {
        "source": "shape",
        "id": "custom",
        "shape": {"layers": 1, "hidden": 32, "intermediate": 64, "heads": 2, "kv_heads": 1, "vocab": 300},
    },
)


def _recipes() -> Iterator[Recipe]:
    """Every preset by every engine, each field changed alone, and all together with every kind of model."""
    for preset in RECIPES.values():
        for engine in ENGINES:
            recipe = preset().replace({"engine": engine})
            yield recipe
            yield from (recipe.replace({field: value}) for field, value in OTHER.items())
            yield from (recipe.replace(OTHER | {"model": model}) for model in MODELS)


def _read_fidelity(command: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_fidelity_arguments(parser)
    return parser.parse_args(shlex.split(command)[2:])


def test_every_field_is_tried():
    assert {"schema_version", "model", "engine", *OTHER} == set(Recipe.model_fields)


def test_any_recipe_of_any_engine_comes_back_exactly():
    for recipe in _recipes():
        command = fidelity_command(recipe)
        assert read_recipe(_read_fidelity(command)) == recipe, command
        preset = RECIPES[shlex.split(command)[2]]()
        assert preset.engine == recipe.engine or recipe.engine not in ("transformers", "llama.cpp"), command


def test_a_transformers_recipe_does_not_start_from_a_preset_of_llama_cpp():
    recipe = RECIPES["bundled-llama.cpp"]().replace({"engine": "transformers"})
    assert shlex.split(bench_command(recipe, chat()))[2] == "bundled"


def test_an_endpoint_comes_back_by_its_url():
    recipe = endpoint_recipe(bundled(), "http://127.0.0.1:8000")
    options = _read(bench_command(recipe, chat()))
    assert endpoint_recipe(read_recipe(options), options.url) == recipe
