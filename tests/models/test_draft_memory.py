"""A draft model of a size counted by hand: in the peak, in what loads and downloads, and in what does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mcp_core.models.catalog import resolve
from mcp_core.models.draft_memory import Draft, draft_of, draft_recipe
from mcp_core.models.footprint import Footprint, Predictor, estimate
from mcp_core.models.served_load import ServedLoad
from mcp_core.recipe import ModelRef, Recipe, ShapeSpec
from tests.models.test_footprint import GB, device, machine, recipe

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, VOCAB = 3, 1024, 2048, 16, 4, 32_000
SPEC = ShapeSpec(layers=LAYERS, hidden=HIDDEN, intermediate=INNER, heads=HEADS, kv_heads=KV_HEADS, vocab=VOCAB)
HEAD_DIM = HIDDEN // HEADS
A_LAYER = (
    2 * HIDDEN * HIDDEN  # queries and output
    + 2 * HIDDEN * KV_HEADS * HEAD_DIM  # keys and values
    + 3 * HIDDEN * INNER
    + 2 * HIDDEN  # norms
)
WEIGHTS = LAYERS * A_LAYER + HIDDEN + 2 * VOCAB * HIDDEN  # the last norm, embeddings and output layer
A_TOKEN = LAYERS * 2 * KV_HEADS * HEAD_DIM


def with_draft(**changes: object) -> Recipe:
    draft = ModelRef(source="shape", id="custom", shape=SPEC)
    return recipe(**changes).replace({"speculation": "draft", "draft": draft.model_dump()})


def predict(asked: Recipe, free: float = 100, load: ServedLoad | None = None) -> Footprint:
    draft = draft_of(asked, resolve)
    return estimate(asked, resolve(asked.model), machine(device(free=free)), load, draft=draft)


@pytest.mark.parametrize(("dtype", "item"), [("bf16", 2), ("fp32", 4)])
def test_a_draft_of_known_size_is_added_to_the_peak(dtype: str, item: int) -> None:
    alone, both = predict(recipe(dtype=dtype)), predict(with_draft(dtype=dtype))
    assert both.draft_weights_bytes == item * WEIGHTS
    own = item * (WEIGHTS + A_TOKEN * both.context_tokens)
    assert dict(both.parts)["Draft model"] == own
    assert both.peak_bytes == alone.peak_bytes + own == sum(size for _, size in both.parts)
    # What is compared with the worker's own figures stays the model's.
    assert (both.weights_bytes, both.kv_bytes_per_token) == (alone.weights_bytes, alone.kv_bytes_per_token)
    assert "Draft model" not in dict(alone.parts)
    assert alone.draft_weights_bytes == 0


def test_its_keys_and_values_follow_the_context_and_its_weights_no_scheme() -> None:
    short = predict(with_draft(), load=ServedLoad(100))
    assert dict(short.parts)["Draft model"] == 2 * (WEIGHTS + 100 * A_TOKEN)
    packed = predict(with_draft(quantization__scheme="bnb-nf4"), load=ServedLoad(100))
    assert dict(packed.parts)["Draft model"] == dict(short.parts)["Draft model"]


def test_it_is_loaded_after_the_model_and_may_be_what_does_not_fit() -> None:
    """A model with itself as draft: its own largest tensor is read, then the draft's, with all weights held."""
    spec = {"model": {"source": "shape", "id": "custom", "shape": SPEC.model_dump()}, "kv.max_context": 16}
    own, guessed = recipe().replace(spec), with_draft().replace(spec)
    alone, both = predict(own), predict(guessed)
    assert both.load_peak_bytes - alone.load_peak_bytes == 2 * WEIGHTS
    needed = max(alone.load_peak_bytes, alone.peak_bytes + alone.imports_bytes) + 1000
    assert predict(own, free=needed / GB).fits
    assert not predict(guessed, free=needed / GB).fits


def test_what_is_fetched_and_prepared_for_it_counts() -> None:
    asked = with_draft()
    own, draft = resolve(asked.model), draft_of(asked, resolve)
    assert draft is not None
    far = Draft(draft.recipe, replace(draft.resolved, download_bytes=7, prepare_bytes=9))
    found = Predictor(asked, replace(own, download_bytes=100), machine(), draft=far).at()
    assert (found.download_bytes, found.prepare_bytes) == (107, 9)


def test_it_is_loaded_dense_in_the_same_dtype_on_the_same_device() -> None:
    own = draft_recipe(with_draft(dtype="fp16", quantization__scheme="torchao-int8-weight-only"))
    assert own is not None
    assert (own.dtype, own.device, own.threads, own.quantization.scheme) == ("fp16", "cpu", 1, "none")
    assert draft_recipe(recipe()) is None
