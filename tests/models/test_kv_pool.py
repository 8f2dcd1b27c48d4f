"""How many pages a paged engine holds, and that the planner counts them."""

from __future__ import annotations

import pytest

from mcp_core.models.architecture import ResolvedModel
from mcp_core.models.footprint import Predictor
from mcp_core.models.kv_pool import PAGE_TOKENS, page_bytes, pool_pages
from mcp_core.models.shapes import architecture_of
from mcp_core.recipe import ModelRef, Recipe
from tests.pages.fake_workbench import hardware

SHAPE = ModelRef(source="shape", id="llama-2-7b")
ARCHITECTURE = architecture_of(SHAPE)
CONTINUOUS = Recipe(model=SHAPE).replace({"batching.mode": "continuous", "batching.max_requests": 256})


@pytest.mark.parametrize(
    ("changes", "paged"),
    [
        ({}, False),
        ({"prefix_cache": True}, True),
        ({"compile": "compiled"}, True),
        ({"batching.mode": "static"}, False),
        ({"batching.mode": "continuous"}, True),
    ],
)
def test_which_recipes_are_paged(changes, paged):
    assert Recipe().replace(changes).is_paged is paged


def test_a_page_of_a_7b_shape_weighs_what_sixteen_tokens_do():
    assert page_bytes(CONTINUOUS, ARCHITECTURE) == 2 * 32 * 32 * 128 * 2 * PAGE_TOKENS == 8_388_608


def test_what_the_recipe_says_holds():
    recipe = CONTINUOUS.replace({"batching.kv_blocks": 77})
    assert pool_pages(recipe, ARCHITECTURE, 4096, "cuda", 10**9) == 77


def test_a_device_gives_nearly_all_that_is_free_and_no_more_than_could_be_used():
    pages = pool_pages(CONTINUOUS, ARCHITECTURE, 4096, "cuda", 65 * 10**9)
    assert 50e9 < pages * page_bytes(CONTINUOUS, ARCHITECTURE) < 60e9
    few = CONTINUOUS.replace({"batching.max_requests": 2})
    assert pool_pages(few, ARCHITECTURE, 4096, "cuda", 65 * 10**9) == 2 * 4096 // PAGE_TOKENS


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_one_full_context_fits_at_least(kind):
    assert pool_pages(CONTINUOUS, ARCHITECTURE, 4096, kind, 0) >= 4096 // PAGE_TOKENS


def test_the_planner_counts_the_pool_on_a_device_and_what_is_used_on_a_host():
    resolved = ResolvedModel(SHAPE, "7B", ARCHITECTURE)
    on_gpu = Predictor(CONTINUOUS.replace({"device": "cuda:0"}), resolved, hardware(gpu=True)).at()
    free = 84e9 - on_gpu.weights_bytes
    assert 0.8 * free < on_gpu.kv_bytes < free
    on_cpu = Predictor(CONTINUOUS.replace({"device": "cpu"}), resolved, hardware()).at()
    assert on_cpu.kv_bytes == 4096 * on_cpu.kv_bytes_per_token
