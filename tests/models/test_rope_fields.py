from __future__ import annotations

import json
from typing import Any

import pytest

from mcp_core.models.rope_fields import with_top_level_rope

PLAIN = {"rope_type": "default", "rope_theta": 1_000_000.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 123_456.0,
    "partial_rotary_factor": 0.75,
    "factor": 4.0,
    "original_max_position_embeddings": 1024,
}


def config(rope: dict[str, Any] | None, model_type: str = "llama") -> dict[str, Any]:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    return {"model_type": model_type, "max_position_embeddings": 4096, "rope_parameters": rope, **sizes}


def test_fields_are_also_where_transformers_4_looks() -> None:
    """Its ``LlamaConfig(rope_theta=10000.0, rope_scaling=None)`` reads no ``rope_parameters``."""
    assert with_top_level_rope(config(PLAIN)) == config(PLAIN) | {"rope_theta": 1_000_000.0}
    yarn = {"rope_theta": 123_456.0, "partial_rotary_factor": 0.75, "rope_scaling": YARN}
    assert with_top_level_rope(config(YARN)) == config(YARN) | yarn


@pytest.mark.parametrize(
    "document",
    [{"model_type": "gpt2"}, config(None), config({"full_attention": PLAIN, "sliding_attention": YARN})],
    ids=["none", "null", "by-layer-type"],
)
def test_what_has_no_such_form_stays_as_it_is(document: dict[str, Any]) -> None:
    assert with_top_level_rope(document) == document


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt_neox", "phi"])
@pytest.mark.parametrize("rope", [PLAIN, YARN], ids=["default", "yarn"])
def test_transformers_5_reads_the_same_values_as_before(model_type: str, rope: dict[str, Any], tmp_path) -> None:
    from transformers import AutoConfig

    def read(document: dict[str, Any]) -> Any:
        (tmp_path / "config.json").write_text(json.dumps(document))
        return AutoConfig.from_pretrained(tmp_path).rope_parameters

    before = read(config(rope, model_type))
    assert before["rope_theta"] == rope["rope_theta"]
    assert read(with_top_level_rope(config(rope, model_type))) == before
