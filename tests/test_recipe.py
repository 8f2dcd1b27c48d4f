from __future__ import annotations

import json

import pytest

from mcp_core.errors import ModelNotFound, RecipeError
from mcp_core.presets import RECIPES, recipe_preset
from mcp_core.recipe import Recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_preset_survives_a_json_round_trip(name):
    recipe = recipe_preset(name)
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ModelNotFound, match="llama-2-7b-shape"):
        recipe_preset("nonsense")


def test_a_recipe_cannot_be_edited():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().dtype = "fp16"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"dtype": "int3"}, "dtype"),
        ({"quantization": {"scheme": "magic"}}, "quantization.scheme"),
        ({"threads": 0}, "threads"),
        ({"colour": "red"}, "colour: there is no such field"),
        ({"kv": {"max_context": "long"}}, "kv.max_context"),
        ({"model": {"source": "shape", "id": "custom"}}, "model"),
        ({"device": "tpu"}, "device"),
        ([], "not a JSON object"),
    ],
)
def test_a_malformed_recipe_names_the_field(document, words):
    with pytest.raises(RecipeError, match=words) as caught:
        Recipe.from_json(json.dumps(document))
    assert caught.value.hint


@pytest.mark.parametrize("text", ["{dtype:", '{"threads": ' + "1" * 5000 + "}", "[" * 100_000, b"\xff"])
def test_text_that_is_not_json(text):
    with pytest.raises(RecipeError, match="not valid JSON"):
        Recipe.from_json(text)


def test_replace_takes_dotted_fields_and_refuses_unknown_ones():
    recipe = Recipe().replace({"quantization.scheme": "bnb-nf4", "threads": 2})
    assert (recipe.quantization.scheme, recipe.threads) == ("bnb-nf4", 2)
    for path in ("quantization.colour", "nothing", "dtype.deep", "model.shape.layers"):
        with pytest.raises(RecipeError, match=path.split(".")[0]):
            Recipe().replace({path: 1})


def test_fingerprint_sees_every_field_but_not_spelled_out_defaults():
    base = Recipe()
    assert Recipe.from_dict({"dtype": "bf16", "kv": {"kind": "dynamic"}}).fingerprint == base.fingerprint
    changes = [
        {"dtype": "fp32"},
        {"kv.kind": "static"},
        {"batching.max_requests": 3},
        {"model.id": "x"},
        {"threads": 1},
    ]
    prints = {base.replace(change).fingerprint for change in changes}
    assert len(prints | {base.fingerprint}) == len(changes) + 1


@pytest.mark.parametrize(
    ("change", "reloads"),
    [
        ({"batching.mode": "continuous"}, False),
        ({"batching.max_requests": 2}, False),
        ({"batching.max_wait_ms": 9}, False),
        ({"prefix_cache": True}, False),
        ({"batching.step_tokens": 64}, True),
        ({"dtype": "fp32"}, True),
        ({"threads": 1}, True),
        ({"kv.max_context": 99}, True),
    ],
)
def test_load_key_changes_exactly_when_a_new_worker_is_needed(change, reloads):
    assert (Recipe().replace(change).load_key != Recipe().load_key) == reloads


@pytest.mark.parametrize(
    ("change", "changes_logits"),
    [
        ({"dtype": "fp32"}, True),
        ({"quantization.double_quant": True}, True),
        ({"attention": "eager"}, True),
        ({"kv.kind": "quantized-fp8"}, True),
        ({"kv.max_context": 99}, False),
        ({"threads": 1}, False),
        ({"batching.max_requests": 2}, False),
    ],
)
def test_numerics_key(change, changes_logits):
    assert (Recipe().replace(change).numerics_key != Recipe().numerics_key) == changes_logits


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"hidden": 100, "heads": 3}, "multiple of heads"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads"),
        ({"hidden": 64, "heads": 64}, "even"),
    ],
)
def test_impossible_shapes_are_refused(shape, words):
    sizes = {"layers": 1, "hidden": 64, "intermediate": 64, "heads": 4, "kv_heads": 1, "vocab": 300} | shape
    with pytest.raises(RecipeError, match=words):
        Recipe.from_dict({"model": {"source": "shape", "id": "custom", "shape": sizes}})


def test_every_field_is_documented():
    def undocumented(schema):
        return [
            f"{name}.{field}"
            for name, value in {"Recipe": schema, **schema.get("$defs", {})}.items()
            for field, about in value.get("properties", {}).items()
            if "description" not in about
        ]

    assert undocumented(Recipe.model_json_schema()) == []
