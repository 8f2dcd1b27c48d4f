"""Presets: functions that return one complete Recipe, and the table of their names.

This file does not know what machine they will run on.
"""

from __future__ import annotations

from collections.abc import Callable

from mcp_core import llama_cpp
from mcp_core.errors import ModelNotFound
from mcp_core.recipe import ModelRef, Recipe

__all__ = ["RECIPES", "bundled", "recipe_preset"]


def bundled() -> Recipe:
    """SmolLM2-135M-Instruct in fp32: runs on any CPU; bf16 is slow where the CPU lacks the instructions."""
    return Recipe(dtype="fp32")


def bundled_llama_cpp() -> Recipe:
    """The same model by llama.cpp, with the GGUF's own Q4_1 weights: several times faster on a CPU."""
    return llama_cpp.with_engine(bundled(), "llama.cpp")


def llama_2_7b_shape() -> Recipe:
    """Llama-2-7B's sizes with random weights, bf16."""
    return _shape("llama-2-7b")


def llama_2_13b_shape() -> Recipe:
    """Llama-2-13B's sizes with random weights, bf16."""
    return _shape("llama-2-13b")


def llama_3_1_8b_shape() -> Recipe:
    """Llama-3.1-8B's sizes with random weights, bf16."""
    return _shape("llama-3.1-8b")


def llama_3_1_70b_shape() -> Recipe:
    """Llama-3.1-70B's sizes with random weights, bf16: 141 GB, so a scheme or several devices are needed."""
    return _shape("llama-3.1-70b")


def qwen3_8b_shape() -> Recipe:
    """Qwen3-8B's sizes with random weights, bf16."""
    return _shape("qwen3-8b")


def qwen3_30b_a3b_shape() -> Recipe:
    """Qwen3-30B-A3B's sizes with random weights, bf16: 128 experts a layer, 8 at work on a token."""
    return _shape("qwen3-30b-a3b")


def gpt_oss_20b_shape() -> Recipe:
    """gpt-oss-20b's sizes with random weights, bf16; its published checkpoint keeps the experts in MXFP4."""
    # Its attention's sinks have no sdpa form.
    return _shape("gpt-oss-20b").model_copy(update={"attention": "eager"})


def _shape(name: str) -> Recipe:
    return Recipe(model=ModelRef(source="shape", id=name))


RECIPES: dict[str, Callable[[], Recipe]] = {
    "bundled": bundled,
    "bundled-llama.cpp": bundled_llama_cpp,
    "llama-2-7b-shape": llama_2_7b_shape,
    "llama-2-13b-shape": llama_2_13b_shape,
    "llama-3.1-8b-shape": llama_3_1_8b_shape,
    "llama-3.1-70b-shape": llama_3_1_70b_shape,
    "qwen3-8b-shape": qwen3_8b_shape,
    "qwen3-30b-a3b-shape": qwen3_30b_a3b_shape,
    "gpt-oss-20b-shape": gpt_oss_20b_shape,
}


def recipe_preset(name: str) -> Recipe:
    """The preset of that name. Raises ModelNotFound listing the names there are."""
    if name not in RECIPES:
        raise ModelNotFound(f'There is no Recipe preset "{name}".', f"There are: {', '.join(RECIPES)}.")
    return RECIPES[name]()
