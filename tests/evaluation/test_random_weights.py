from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mcp_core import hardware
from mcp_core.evaluation.benchmark import measure
from mcp_core.evaluation.fake_server import FakeServer, LatencyLaw
from mcp_core.evaluation.random_weights import data_dependent_costs
from mcp_core.presets import bundled, recipe_preset
from mcp_core.recipe import Recipe
from mcp_core.workload import Lengths, Workload

LLAMA = recipe_preset("llama-2-7b-shape")


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (LLAMA, ()),
        (LLAMA.replace({"quantization.scheme": "bnb-nf4"}), ()),
        (LLAMA.replace({"quantization.scheme": "torchao-int8-weight-only"}), ()),
        (LLAMA.replace({"quantization.scheme": "bnb-int8"}), ("outlier columns",)),
        (LLAMA.replace({"quantization.scheme": "bnb-int8", "quantization.outlier_threshold": 6}), ("outlier",)),
        (LLAMA.replace({"quantization.scheme": "bnb-int8", "quantization.outlier_threshold": 0}), ()),
        (LLAMA.replace({"speculation": "prompt-lookup"}), ("guessed token",)),
        (recipe_preset("qwen3-30b-a3b-shape"), ("routed at random",)),
        (recipe_preset("gpt-oss-20b-shape").replace({"quantization.scheme": "bnb-int8"}), ("outlier", "routed")),
        (bundled().replace({"quantization.scheme": "bnb-int8"}), ()),
    ],
)
def test_only_what_depends_on_the_data_is_named(recipe: Recipe, words: tuple[str, ...]) -> None:
    reasons = tuple(data_dependent_costs(recipe))
    assert len(reasons) == len(words)
    for reason, word in zip(reasons, words, strict=True):
        assert reason.startswith("random weights: ")
        assert word in reason


def test_it_stands_on_the_run(worker_state: dict[str, Any]) -> None:
    recipe = LLAMA.replace({"quantization.scheme": "bnb-int8"})
    workload = Workload(name="test", requests=2, concurrency=1, prompt_tokens=Lengths(min=4, max=8))
    with FakeServer(LatencyLaw(), state=worker_state | {"recipe": recipe.model_dump(mode="json")}) as server:
        run = asyncio.run(measure(server.url, "token", recipe, workload, hardware.detect()))
    assert not run.comparable.ok
    assert any("outlier columns" in reason for reason in run.comparable.reasons)
