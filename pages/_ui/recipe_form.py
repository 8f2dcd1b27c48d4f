"""The Recipe form: one Recipe in, the edited Recipe out. What this machine cannot run is listed with why.

This file does not know what a Recipe costs (``footprint_chart.py``) or how it is loaded (``load_panel.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from mcp_core.conflicts import resolve
from mcp_core.engines import FOREIGN
from mcp_core.errors import RecipeError
from mcp_core.hardware import Hardware
from mcp_core.llama_cpp import with_engine
from mcp_core.recipe import ModelRef, Recipe
from mcp_core.schemes import SCHEMES
from pages._ui import frame
from pages._ui.model_form import model_form
from pages._ui.recipe_options import (
    BATCHING_TITLES,
    COMPILE_TITLES,
    KV_TITLES,
    SPECULATION_TITLES,
    Options,
    choices_of,
    describe,
    label_of,
    options_of,
    say_refused,
)
from pages._ui.scheme_picker import scheme_picker

__all__ = ["recipe_form"]

Key = Callable[[str], str]

_DTYPE_TITLES = {"fp32": "fp32 · 4 bytes", "bf16": "bf16 · 2 bytes", "fp16": "fp16 · 2 bytes"}
_ENGINES = ("transformers", "llama.cpp", "vllm", "sglang")
_ENGINE_TITLES = {name: engine.title for name, engine in FOREIGN.items()}
_KV_BITS = (2, 4, 8)
_DEFAULT_KV_BITS = 4
_TOGGLES = ("switches.tf32", "switches.cudnn_benchmark")


def recipe_form(
    recipe: Recipe, hardware: Hardware, revision: int, measured: Mapping[str, str], came: Callable[[Recipe], str]
) -> Recipe | None:
    """Draw every field and return the edited Recipe; None while the model is incomplete, which is then said.

    ``revision`` changes when the Recipe was replaced from elsewhere, so that the widgets start afresh. ``measured``
    and ``came``: see ``scheme_picker``.
    """

    def key(field: str) -> str:
        return f"recipe-{field}-{revision}"

    with st.container(border=True):
        st.markdown("##### Model", anchors=False)
        model = _model(recipe.model, key)
    if model is not None:
        recipe = recipe.replace({"model": model.model_dump(mode="json")})
    with st.container(border=True):
        st.markdown("##### Engine, precision and device", anchors=False)
        recipe = with_engine(recipe, _engine(recipe, hardware, key))
        recipe = recipe.replace(_numbers(recipe, hardware, key))
    with st.container(border=True):
        st.markdown("##### Quantization", anchors=False)
        came_as = came(recipe) if model is not None else ""  # while none is chosen, recipe has the one before
        if recipe.engine == "llama.cpp":
            st.caption(came_as or SCHEMES["gguf"].about)
        else:
            picked = scheme_picker(recipe, hardware, key, measured, came_as)
            recipe = recipe.replace({"quantization": picked.model_dump(mode="json")})
    with st.expander("Advanced: attention, KV cache, batching, switches, limits", icon=":material/tune:"):
        recipe = recipe.replace(_advanced(recipe, hardware, key))
    return recipe if model is not None else None


def _model(model: ModelRef, key: Key) -> ModelRef | None:
    """The chosen model; None, with the reason, while something is missing or contradictory."""
    try:
        return model_form(model, key)
    except RecipeError as error:
        st.warning(f"{error.message} {error.hint}", icon=":material/edit:")
        return None


def _engine(recipe: Recipe, hardware: Hardware, key: Key) -> str:
    options = options_of(recipe, hardware, "engine", _ENGINES)
    return _segments(options, "engine", _ENGINE_TITLES, key)


def _numbers(recipe: Recipe, hardware: Hardware, key: Key) -> dict[str, Any]:
    by_file = recipe.engine == "llama.cpp"  # types are the file's, and the device is the CPU
    dtype = recipe.dtype if by_file else _dtype(recipe, hardware, key)
    device_column, thread_column = st.columns([2, 1])
    with device_column:
        device = "cpu" if by_file else _device(recipe, hardware, key)
    threads = thread_column.number_input(
        label_of("threads"),
        min_value=1,
        max_value=max(hardware.cores, recipe.threads or 1),
        value=recipe.threads,
        placeholder=f"auto: {resolve(recipe.replace({'threads': None}), hardware).threads}",
        help=describe("threads"),
        key=key("threads"),
    )
    return {"dtype": dtype, "device": device, "threads": threads}


def _dtype(recipe: Recipe, hardware: Hardware, key: Key) -> str:
    options = options_of(recipe, hardware, "dtype", choices_of("dtype"))
    return _segments(options, "dtype", _DTYPE_TITLES, key)


def _device(recipe: Recipe, hardware: Hardware, key: Key) -> str:
    ids = ("auto", *(device.id for device in hardware.devices))
    options = options_of(recipe, hardware, "device", ids)
    titles = {device.id: f"{device.id} · {device.name}" for device in hardware.devices}
    auto = hardware.device("auto")
    titles["auto"] = f"auto · {auto.id}" if auto else "auto"
    return _select(options, "device", titles, key)


def _advanced(recipe: Recipe, hardware: Hardware, key: Key) -> dict[str, Any]:
    if recipe.engine == "llama.cpp":  # it reads none of the others
        return _limits(recipe, key)
    left, right = st.columns(2)
    with left:
        options = options_of(recipe, hardware, "attention", choices_of("attention"))
        attention = _select(options, "attention", {}, key)
    with right:
        kv = _kv(recipe, hardware, key)
    serving = _serving(recipe, hardware, key)
    limits = _limits(recipe, key)
    context = limits.pop("kv.max_context")
    switches = _switches(recipe, hardware, key)
    return {"attention": attention, "kv": {**kv, "max_context": context}, **serving, **limits, "switches": switches}


def _serving(recipe: Recipe, hardware: Hardware, key: Key) -> dict[str, Any]:
    """How requests share the model, and what makes their steps fewer or cheaper."""
    options = options_of(recipe, hardware, "batching.mode", choices_of("batching.mode"))
    mode = _segments(options, "batching.mode", BATCHING_TITLES, key)
    # A draft model is named in a Recipe file only.
    guesses = [each for each in choices_of("speculation") if each != "draft" or recipe.draft is not None]
    options = options_of(recipe, hardware, "speculation", guesses)
    speculation = _select(options, "speculation", SPECULATION_TITLES, key)
    steps = _select(options_of(recipe, hardware, "compile", choices_of("compile")), "compile", COMPILE_TITLES, key)
    prefix = _toggle(recipe, hardware, "prefix_cache", key)
    return {"batching.mode": mode, "speculation": speculation, "compile": steps, "prefix_cache": prefix}


def _limits(recipe: Recipe, key: Key) -> dict[str, Any]:
    left, right = st.columns(2)
    with left:
        context = _count("kv.max_context", recipe.kv.max_context, 16, "up to 4,096", key)
    with right:
        held = _count("batching.max_requests", recipe.batching.max_requests, 1, None, key)
    return {"kv.max_context": context, "batching.max_requests": held or recipe.batching.max_requests}


def _kv(recipe: Recipe, hardware: Hardware, key: Key) -> dict[str, Any]:
    """The kind, and what only that kind reads."""
    options = options_of(recipe, hardware, "kv.kind", choices_of("kv.kind"))
    kind = _select(options, "kv.kind", KV_TITLES, key)
    if kind == "sliding":
        return {"kind": kind, "window": _count("kv.window", recipe.kv.window, 16, "512", key)}
    if kind in ("quantized-quanto", "quantized-hqq"):
        bits = st.selectbox(
            label_of("kv.bits"),
            _KV_BITS,
            index=_KV_BITS.index(recipe.kv.bits or _DEFAULT_KV_BITS),
            help=describe("kv.bits"),
            key=key("kv.bits"),
        )
        return {"kind": kind, "bits": None if bits == _DEFAULT_KV_BITS else bits}
    return {"kind": kind}


def _switches(recipe: Recipe, hardware: Hardware, key: Key) -> dict[str, Any]:
    """torch's switches; one that this machine cannot honour is disabled, with the reason as its tooltip."""
    tf32, cudnn = (_toggle(recipe, hardware, field, key) for field in _TOGGLES)
    options = options_of(recipe, hardware, "switches.autocast", ("None", "bf16", "fp16"))
    autocast = _select(options, "switches.autocast", {"None": "Off"}, key)
    frame.link("handbook", "What each switch is worth on this machine", icon=":material/menu_book:")
    return {"tf32": tf32, "autocast": None if autocast == "None" else autocast, "cudnn_benchmark": cudnn}


def _toggle(recipe: Recipe, hardware: Hardware, field: str, key: Key) -> bool:
    value = bool(functools.reduce(getattr, field.split("."), recipe))
    asked = recipe.replace({field: True}).conflicts(hardware)
    reason = next((each.reason for each in asked if each.field == field), None)
    return st.toggle(
        label_of(field),
        value=value,
        disabled=reason is not None and not value,
        help=f"{describe(field)} Not here: {reason}" if reason else describe(field),
        key=key(field),
    )


def _count(field: str, value: int | None, least: int, absent: str | None, key: Key) -> int | None:
    number = st.number_input(
        label_of(field),
        min_value=least,
        value=value,
        step=1,
        placeholder=absent,
        help=describe(field),
        key=key(field),
    )
    return None if number is None else int(number)


def _segments(options: Options, field: str, titles: dict[str, str], key: Key) -> str:
    chosen = st.segmented_control(
        label_of(field),
        options.offered,
        default=options.chosen,
        required=True,
        format_func=lambda each: titles.get(each, each),
        help=describe(field),
        key=key(field),
    )
    say_refused(options, titles)
    return str(chosen)


def _select(options: Options, field: str, titles: dict[str, str], key: Key) -> str:
    chosen = st.selectbox(
        label_of(field),
        options.offered,
        index=options.index,
        format_func=lambda each: titles.get(each, each),
        help=describe(field),
        key=key(field),
    )
    say_refused(options, titles)
    return str(chosen)
