"""Command lines: what they would run is what was asked for."""

from __future__ import annotations

import argparse
import shlex

import pytest

from mcp_core.commands.arguments import read_recipe, read_workload
from mcp_core.commands.bench import add_arguments
from mcp_core.decision.command_lines import bench_command, fidelity_command
from mcp_core.presets import RECIPES, bundled
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
