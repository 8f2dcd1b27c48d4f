from __future__ import annotations

import pytest
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from mcp_core.errors import RecipeError
from mcp_core.hardware import detect
from mcp_core.models.attention_support import WITHOUT_SDPA, require_attention_of
from mcp_core.models.catalog import resolve
from mcp_core.models.footprint import estimate
from mcp_core.presets import recipe_preset


@pytest.mark.parametrize("model_type", ["gpt_oss", "gemma2", "llama", "qwen3_moe", "olmoe", "mistral"])
def test_the_table_says_what_transformers_says(model_type):
    (found,) = (each for each in MODEL_FOR_CAUSAL_LM_MAPPING if each.model_type == model_type)
    assert MODEL_FOR_CAUSAL_LM_MAPPING[found]._supports_sdpa is (model_type not in WITHOUT_SDPA)


@pytest.mark.slow  # imports every model of transformers
@pytest.mark.filterwarnings("ignore")
def test_the_table_is_whole():
    classes = {config.model_type: MODEL_FOR_CAUSAL_LM_MAPPING[config] for config in MODEL_FOR_CAUSAL_LM_MAPPING}
    assert {name for name, each in classes.items() if not each._supports_sdpa} == WITHOUT_SDPA


def test_gpt_oss_with_sdpa_is_refused_by_its_footprint():
    recipe = recipe_preset("gpt-oss-20b-shape").replace({"device": "cpu"})
    assert estimate(recipe, resolve(recipe.model), detect()).weights_bytes > 0
    with pytest.raises(RecipeError, match="gpt_oss models have no sdpa") as caught:
        estimate(recipe.replace({"attention": "sdpa"}), resolve(recipe.model), detect())
    assert caught.value.hint == "Set it to eager."


def test_other_engines_have_attention_of_their_own():
    require_attention_of(
        "gpt_oss", recipe_preset("gpt-oss-20b-shape").replace({"attention": "sdpa", "engine": "vllm"})
    )
