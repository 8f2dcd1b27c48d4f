from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mcp_core.models.catalog import resolve
from mcp_core.models.footprint import Predictor
from mcp_core.models.planner import MOST_USERS, longest_context, users_at
from mcp_core.models.served_load import ServedLoad
from mcp_core.recipe import Recipe
from mcp_core.workload import Lengths, Workload
from tests.models.test_footprint import device, machine, recipe

KINDS = ("dynamic", "static", "sliding", "quantized-fp8", "quantized-quanto", "quantized-hqq", "offloaded", "off")


def predictor(asked: Recipe, free: float) -> Predictor:
    kind = asked.device.split(":")[0]
    devices = (device("cpu", free),) if kind == "cpu" else (device("cpu", 500, 500), device("cuda", free, 80))
    return Predictor(asked, resolve(asked.model), machine(*devices))


def drawn(seed: int) -> Predictor:
    """A Recipe, and memory somewhere between its weights and all that it could take."""
    chance = random.Random(seed)
    name = chance.choice(["llama-2-7b", "llama-3.1-8b", "gpt-oss-20b"])
    kinds = ("dynamic", "static", "offloaded") if name == "gpt-oss-20b" else KINDS
    asked = recipe(
        name,
        device=chance.choice(["cpu", "cuda:0"]),
        kv__kind=chance.choice(kinds),
        quantization__scheme="none" if name == "gpt-oss-20b" else chance.choice(["none", "bnb-nf4", "bnb-int8"]),
        attention="eager" if name == "gpt-oss-20b" else chance.choice(["sdpa", "eager"]),  # it has no sdpa
        batching__mode=chance.choice(["off", "static", "continuous"]),
    )
    lowest = predictor(asked, 900).at(ServedLoad(1)).peak_bytes
    return predictor(asked, lowest / 1e9 * chance.uniform(1.05, 1.6) + 0.6)


@pytest.mark.parametrize("seed", range(40))
def test_the_longest_context_fits_and_one_token_more_does_not(seed: int) -> None:
    planned, users = drawn(seed), 1 + seed % 3
    longest = longest_context(planned, users)
    assert longest == 0 or planned.at(ServedLoad(longest, users)).fits
    if longest < planned.architecture.context:
        assert not planned.at(ServedLoad(longest + 1, users)).fits


@pytest.mark.parametrize("seed", range(40))
def test_so_many_users_fit_and_one_more_does_not(seed: int) -> None:
    planned, context = drawn(seed), 64 << seed % 6
    users = users_at(planned, context)
    assert users == 0 or planned.at(ServedLoad(context, users)).fits
    if users < MOST_USERS:
        assert not planned.at(ServedLoad(context, users + 1)).fits


def test_users_by_hand() -> None:
    """Keys and values of 7B take half a MiB a token."""
    planned = predictor(recipe(attention="sdpa"), 100)
    two, three = (planned.at(ServedLoad(1024, count)).peak_bytes for count in (2, 3))
    a_user = 1024 * 2**19 + 1024 * 4096 * 2 + 32_000 * 10  # keys and values, one layer's copy of keys, logits
    assert three - two == a_user
    imports = 430 * 2**20
    assert users_at(planned, 1024) == 2 + (100 * 10**9 - imports - two) // a_user


def test_nothing_fits_where_weights_do_not() -> None:
    planned = predictor(recipe(), 5)
    assert longest_context(planned) == 0
    assert users_at(planned, 16) == 0


def test_everything_fits_where_nothing_is_kept() -> None:
    assert longest_context(predictor(recipe("llama-3.1-8b", kv__kind="sliding"), 400)) == 131_072


def test_a_model_s_own_window_layers_keep_their_window_only() -> None:
    """gpt-oss-20b: 24 layers, every other one with a window of 128; 8 heads of 64 each, keys and values, bf16."""
    planned = predictor(recipe("gpt-oss-20b", attention="eager"), 400)
    layer = 2 * 8 * 64 * 2
    assert planned.at(ServedLoad(1000)).kv_bytes == layer * (12 * 1000 + 12 * 128)
    assert planned.at(ServedLoad(100)).kv_bytes == layer * 24 * 100


@pytest.mark.parametrize(
    ("kind", "tokens"), [("dynamic", 300), ("static", 4096), ("sliding", 300), ("offloaded", 300), ("off", 0)]
)
def test_keys_and_values_of_a_workload_by_kind(kind: str, tokens: int) -> None:
    asked = recipe(kv__kind=kind)
    work = Workload(prompt_tokens=Lengths(min=10, max=200), output_tokens=Lengths(min=1, max=100), concurrency=9)
    load = ServedLoad.of_workload(work, asked, 4096)
    assert (load.context_tokens, load.concurrency, load.longest_prompt) == (300, 1, 200)
    assert predictor(asked, 100).at(load).kv_bytes == tokens * 2**19


def test_four_bit_keys_and_values_by_hand() -> None:
    """Half a byte, a 64th of a scale and a zero point in bf16; the newest 128 tokens dense."""
    elements, tokens = 2 * 32 * 4096, 1024
    stored = 0.5 + 2 * 2 / 64
    planned = predictor(recipe(kv__kind="quantized-quanto"), 100)
    assert planned.at(ServedLoad(tokens)).kv_bytes == elements * (tokens * stored + 128 * (2 - stored))


def test_batches_count_every_client_up_to_what_the_recipe_holds() -> None:
    work = Workload(concurrency=9)
    asked = recipe(batching__mode="static")
    assert ServedLoad.of_workload(work, asked, 4096).concurrency == 9
    assert (
        ServedLoad.of_workload(work, recipe(batching__mode="static", batching__max_requests=4), 4096).concurrency
        == 4
    )
    one, nine = (predictor(asked, 100).at(ServedLoad(512, count)) for count in (1, 9))
    assert nine.kv_bytes == 9 * one.kv_bytes
    assert nine.activation_bytes > 8 * one.activation_bytes


def test_a_reply_s_part_of_the_context_is_no_prompt() -> None:
    planned = predictor(recipe(device="cuda:0"), 100)
    whole, short = planned.at(ServedLoad(2048)), planned.at(replace(ServedLoad(2048), prompt_tokens=64))
    assert short.kv_bytes == whole.kv_bytes
    assert short.activation_bytes < whole.activation_bytes / 4
