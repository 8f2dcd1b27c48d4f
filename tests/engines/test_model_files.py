from __future__ import annotations

import json

import pytest

from mcp_core.engines.model_files import shape_files
from mcp_core.recipe import ModelRef


@pytest.mark.parametrize(("shape", "theta"), [("llama-3.1-8b", 500_000.0), ("qwen3-8b", 1_000_000.0)])
def test_a_shapes_rotary_base_is_found_by_an_engine_of_either_transformers(shape: str, theta: float) -> None:
    config = json.loads(shape_files(ModelRef(source="shape", id=shape))["config.json"])
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == theta
    assert ("rope_scaling" in config) == (config["rope_parameters"]["rope_type"] != "default")
