"""The Recipe form: one Recipe in, the edited Recipe out. What this machine cannot run is listed with why.

This file does not know what a Recipe costs (``footprint_chart.py``) or how it is loaded (``load_panel.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from mcp_core.conflicts import resolve
from mcp_core.errors import RecipeError
from mcp_core.hardware import Hardware
from mcp_core.recipe import ModelRef, Recipe
from mcp_core.schemes import SCHEMES
from pages._ui.model_form import model_form
from pages._ui.recipe_options import Options, choices_of, describe, options_of

__all__ = ["recipe_form"]

Key = Callable[[str], str]

_DTYPE_TITLES = {"fp32": "fp32 · 4 bytes", "bf16": "bf16 · 2 bytes", "fp16": "fp16 · 2 bytes"}
_KV_TITLES = {"dynamic": "Dynamic", "static": "Static", "quantized-fp8": "Quantized fp8", "offloaded": "Offloaded"}


def recipe_form(recipe: Recipe, hardware: Hardware, revision: int) -> Recipe | None:
    """Draw every field and return the edited Recipe; None while the model is incomplete, which is then said.

    ``revision`` changes when the Recipe was replaced from elsewhere, so that the widgets start afresh.
    """

    def key(field: str) -> str:
        return f"recipe-{field}-{revision}"

    with st.container(border=True):
        st.markdown("##### Model", anchors=False)
        model = _model(recipe.model, key)
    if model is not None:
        recipe = recipe.replace({"model": model.model_dump(mode="json")})
    with st.container(border=True):
        st.markdown("##### Precision and device", anchors=False)
        recipe = recipe.replace(_numbers(recipe, hardware, key))
    with st.container(border=True):
        st.markdown("##### Quantization", anchors=False)
        recipe = recipe.replace(_quantization(recipe, hardware, key))
    with st.expander("Advanced: attention, KV cache, limits", icon=":material/tune:"):
        recipe = recipe.replace(_advanced(recipe, hardware, key))
    return recipe if model is not None else None


def _model(model: ModelRef, key: Key) -> ModelRef | None:
    """The chosen model; None, with the reason, while something is missing or contradictory."""
    try:
        return model_form(model, key)
    except RecipeError as error:
        st.warning(f"{error.message} {error.hint}", icon=":material/edit:")
        return None


def _numbers(recipe: Recipe, hardware: Hardware, key: Key) -> dict[str, Any]:
    dtype = _segments(
        options_of(recipe, hardware, "dtype", choices_of("dtype")), "dtype", "Dtype", _DTYPE_TITLES, key
    )
    device_column, thread_column = st.columns([2, 1])
    with device_column:
        device = _device(recipe, hardware, key)
    threads = thread_column.number_input(
        "CPU threads",
        min_value=1,
        max_value=max(hardware.cores, recipe.threads or 1),
        value=recipe.threads,
        placeholder=f"auto: {resolve(recipe.replace({'threads': None}), hardware).threads}",
        help=describe("threads"),
        key=key("threads"),
    )
    return {"dtype": dtype, "device": device, "threads": threads}


def _device(recipe: Recipe, hardware: Hardware, key: Key) -> str:
    ids = ("auto", *(device.id for device in hardware.devices))
    options = options_of(recipe, hardware, "device", ids)
    titles = {device.id: f"{device.id} · {device.name}" for device in hardware.devices}
    auto = hardware.device("auto")
    titles["auto"] = f"auto · {auto.id}" if auto else "auto"
    return _select(options, "device", "Device", titles, key)


def _quantization(recipe: Recipe, hardware: Hardware, key: Key) -> dict[str, Any]:
    options = options_of(recipe, hardware, "quantization.scheme", list(SCHEMES))
    name = str(
        st.radio(
            describe("quantization.scheme"),
            options.offered,
            index=options.index,
            format_func=lambda each: SCHEMES[each].title if each in SCHEMES else each,
            captions=[SCHEMES[each].about if each in SCHEMES else "" for each in options.offered],
            label_visibility="collapsed",
            key=key("quantization.scheme"),
        )
    )
    _say_refused(options, {each: scheme.title for each, scheme in SCHEMES.items()})
    return {"quantization.scheme": name} | _scheme_options(recipe, name, key)


def _scheme_options(recipe: Recipe, name: str, key: Key) -> dict[str, Any]:
    if name == "none" or name not in SCHEMES:
        return {"quantization.double_quant": False, "quantization.skip": ()}
    double_quant = SCHEMES[name].double_quant and st.toggle(
        "Double quantization",
        value=recipe.quantization.double_quant,
        help=describe("quantization.double_quant"),
        key=key("quantization.double_quant"),
    )
    patterns = st.text_input(
        "Keep dense",
        value=", ".join(recipe.quantization.skip),
        placeholder="for example *.down_proj, model.layers.0.*",
        help=describe("quantization.skip") + " Separate several with commas.",
        key=key("quantization.skip"),
    )
    skip = [pattern.strip() for pattern in (patterns or "").split(",") if pattern.strip()]
    return {"quantization.double_quant": double_quant, "quantization.skip": skip}


def _advanced(recipe: Recipe, hardware: Hardware, key: Key) -> dict[str, Any]:
    left, right = st.columns(2)
    with left:
        options = options_of(recipe, hardware, "attention", choices_of("attention"))
        attention = _select(options, "attention", "Attention", {}, key)
    with right:
        options = options_of(recipe, hardware, "kv.kind", choices_of("kv.kind"))
        kind = _select(options, "kv.kind", "KV cache", _KV_TITLES, key)
    left, right = st.columns(2)
    with left:
        context = _count("kv.max_context", "Max context, tokens", recipe.kv.max_context, 16, "up to 4,096", key)
    with right:
        held = _count("batching.max_requests", "Max requests", recipe.batching.max_requests, 1, None, key)
    return {
        "attention": attention,
        "kv.kind": kind,
        "kv.max_context": context,
        "batching.max_requests": held or recipe.batching.max_requests,
    }


def _count(field: str, label: str, value: int | None, least: int, absent: str | None, key: Key) -> int | None:
    number = st.number_input(
        label, min_value=least, value=value, step=1, placeholder=absent, help=describe(field), key=key(field)
    )
    return None if number is None else int(number)


def _segments(options: Options, field: str, label: str, titles: dict[str, str], key: Key) -> str:
    chosen = st.segmented_control(
        label,
        options.offered,
        default=options.chosen,
        required=True,
        format_func=lambda each: titles.get(each, each),
        help=describe(field),
        key=key(field),
    )
    _say_refused(options, titles)
    return str(chosen)


def _select(options: Options, field: str, label: str, titles: dict[str, str], key: Key) -> str:
    chosen = st.selectbox(
        label,
        options.offered,
        index=options.index,
        format_func=lambda each: titles.get(each, each),
        help=describe(field),
        key=key(field),
    )
    _say_refused(options, titles)
    return str(chosen)


def _say_refused(options: Options, titles: dict[str, str]) -> None:
    """Options that this machine cannot run, each with its reason."""
    for value, reason in options.refused:
        title = f"**{titles.get(value, value)}**"
        told = f"{title}{reason.removeprefix(value)}" if reason.startswith(value) else f"{title}: {reason}"
        st.caption(f":material/block: {told}")
