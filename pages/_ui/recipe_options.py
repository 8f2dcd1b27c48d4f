"""Options of one Recipe field on one machine: which can be chosen, which cannot, and why not.

This file does not know how a field is drawn (``recipe_form.py``) or what a choice costs (``footprint_chart.py``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import streamlit as st

from mcp_core.conflicts import Conflict
from mcp_core.hardware import Hardware
from mcp_core.recipe import Recipe

__all__ = [
    "BATCHING_TITLES",
    "COMPILE_TITLES",
    "KV_TITLES",
    "SPECULATION_TITLES",
    "Options",
    "choices_of",
    "describe",
    "in_labels",
    "label_of",
    "options_of",
    "say_refused",
]

BATCHING_TITLES = {"off": "Off", "static": "Static", "continuous": "Continuous"}
KV_TITLES = {
    "dynamic": "Dynamic",
    "static": "Static",
    "sliding": "Sliding window",
    "quantized-fp8": "Quantized fp8",
    "quantized-quanto": "Quantized (quanto)",
    "quantized-hqq": "Quantized (HQQ)",
    "offloaded": "Offloaded",
    "off": "Off: recompute every token",
}
COMPILE_TITLES = {
    "off": "As they come",
    "graphs": "Recorded as CUDA graphs",
    "compiled": "Compiled",
    "autotuned": "Compiled and tuned",
}
SPECULATION_TITLES = {
    "off": "Off",
    "prompt-lookup": "From the prompt",
    "draft": "By a draft model",
}
# What a form calls each field of a Recipe, and every sentence about one.
_LABELS = {
    "model.source": "Model source",
    "model.id": "Model",
    "model.revision": "Hub revision",
    "engine": "Engine",
    "engine_python": "Engine's interpreter",
    "device": "Device",
    "threads": "CPU threads",
    "dtype": "Dtype",
    "quantization.scheme": "Quantization",
    "quantization.double_quant": "Double quantization",
    "quantization.group_size": "Group size",
    "quantization.skip": "Keep dense",
    "quantization.parameters": "Scales",
    "quantization.activations": "Activations",
    "quantization.outlier_threshold": "Outlier threshold",
    "quantization.alpha": "Alpha",
    "quantization.calibration.text": "Calibration text",
    "quantization.calibration.samples": "Samples, passages",
    "quantization.calibration.tokens": "Length, tokens",
    "attention": "Attention",
    "kv.kind": "KV cache",
    "kv.max_context": "Max context, tokens",
    "kv.window": "Window, tokens",
    "kv.bits": "Stored bits",
    "switches.tf32": "TF32 products",
    "switches.autocast": "Autocast",
    "switches.cudnn_benchmark": "cudnn.benchmark",
    "compile": "Decode steps",
    "batching.mode": "Batching",
    "batching.max_requests": "Max requests",
    "batching.max_wait_ms": "Longest wait for a static batch, ms",
    "batching.step_tokens": "Tokens of a step",
    "batching.kv_blocks": "Pages of keys and values",
    "prefix_cache": "Prefix cache",
    "speculation": "Speculation",
    "draft_tokens": "Guessed tokens",
}


@dataclass(frozen=True, slots=True)
class Options:
    """``offered`` values in order, ``refused`` ones with their reason, ``chosen`` the Recipe's own."""

    offered: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    chosen: str

    @property
    def index(self) -> int:
        """Position of the chosen value among the offered ones."""
        return self.offered.index(self.chosen)


def options_of(recipe: Recipe, hardware: Hardware, field: str, values: Sequence[str]) -> Options:
    """Split ``values`` of a dotted field by what this machine can run; "None" stands for null.

    The Recipe's own value is always offered, so that an uploaded Recipe shows what it asks for; its conflict
    is said beside the Load button.
    """
    chosen = str(_value(recipe, field))
    reasons = {value: _reason(recipe, hardware, field, value) for value in values}
    offered = tuple(value for value, reason in reasons.items() if reason is None or value == chosen)
    if chosen not in offered:
        offered = (chosen, *offered)
    refused = tuple((value, reason) for value, reason in reasons.items() if reason is not None and value != chosen)
    return Options(offered=offered, refused=refused, chosen=chosen)


def choices_of(field: str) -> tuple[str, ...]:
    """Every value that the type of a dotted Recipe field allows."""
    return tuple(str(value) for value in get_args(_field_info(field).annotation))


def describe(field: str) -> str:
    """The description of a dotted Recipe field, as its schema has it."""
    return _field_info(field).description or ""


def label_of(field: str) -> str:
    """The dotted field's name on the form; the field itself where no form has it."""
    return _LABELS.get(field, field)


def in_labels(text: str) -> str:
    """A sentence about fields of a Recipe in the form's words; a field whose name is a plain word stays."""
    for field in sorted(_LABELS, key=len, reverse=True):
        if "." in field or "_" in field:
            text = re.sub(rf"(?<![\w.]){re.escape(field)}(?!\w|\.\w)", _LABELS[field].partition(",")[0], text)
    return text


def say_refused(options: Options, titles: dict[str, str]) -> None:
    """Options that this machine cannot run, each with its reason."""
    for value, reason in options.refused:
        title = f"**{titles.get(value, value)}**"
        told = f"{title}{reason.removeprefix(value)}" if reason.startswith(value) else f"{title}: {reason}"
        told = told.replace(f"{title}: {titles.get(value, value)}: ", f"{title}: ")
        st.caption(f":material/block: {in_labels(told)}")


def _reason(recipe: Recipe, hardware: Hardware, field: str, value: str) -> str | None:
    asked = None if value == str(None) else value
    conflicts: tuple[Conflict, ...] = recipe.replace({field: asked}).conflicts(hardware)
    return next((conflict.reason for conflict in conflicts if conflict.field == field), None)


def _value(recipe: Recipe, field: str) -> Any:
    node: Any = recipe
    for name in field.split("."):
        node = getattr(node, name)
    return node


def _field_info(field: str) -> Any:
    *parents, leaf = field.split(".")
    model: Any = Recipe
    for name in parents:
        model = model.model_fields[name].annotation
    return model.model_fields[leaf]
