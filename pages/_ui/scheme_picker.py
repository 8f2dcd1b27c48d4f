"""The quantization part of the Recipe form: a family, a scheme in it, and only the options that the scheme reads.

This file does not know what a scheme costs before it was measured (``footprint_chart.py``), or how it is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from mcp_core.conflicts import options_read_by
from mcp_core.hardware import Hardware
from mcp_core.recipe import Calibration, Quantization, Recipe, SchemeName
from mcp_core.schemes import INT4_GROUP_SIZES, SCHEMES, DeviceKind
from pages._ui import format as fmt
from pages._ui import frame
from pages._ui.calibration_form import calibration_form
from pages._ui.recipe_options import Options, describe, label_of, options_of, say_refused

__all__ = ["FAMILIES", "family_of", "scheme_picker"]

Key = Callable[[str], str]

_NONE, _OTHER = "Unquantized", "Other"
FAMILIES: dict[str, tuple[SchemeName, ...]] = {
    _NONE: ("none",),
    "8-bit": ("bnb-int8", "torchao-int8-weight-only"),
    "8-bit + activations": (
        "torchao-int8-dynamic",
        "torchao-int8-static",
        "torchao-int8-static-smoothquant",
        "classic-dynamic",
    ),
    "4-bit": ("bnb-nf4", "bnb-fp4", "torchao-int4-weight-only"),
    "fp8": ("torchao-fp8-weight-only", "torchao-fp8-dynamic"),
}

# Patterns that are often wanted, offered beside whatever is typed.
_SKIP_EXAMPLES = ("*.down_proj", "*.o_proj", "*.v_proj", "model.layers.0.*")


def family_of(name: str) -> str:
    """The family that a scheme is listed under."""
    return next((family for family, names in FAMILIES.items() if name in names), _OTHER)


def scheme_picker(
    recipe: Recipe, hardware: Hardware, key: Key, measured: Mapping[str, str], came: str
) -> Quantization:
    """Draw it and return what was chosen.

    ``measured`` has a sentence for each scheme that was measured with this model here; ``came`` says how a
    checkpoint that came quantized is stored, empty where it did not.
    """
    applied = [name for name, row in SCHEMES.items() if row.engine != "llama.cpp"]  # its scheme is its files'
    options = options_of(recipe, hardware, "quantization.scheme", applied)
    without = fmt.scheme_of(recipe.model_copy(update={"quantization": Quantization()}))
    family = _family(options, key, fmt.sentence(without))
    offered = [name for name in options.offered if family_of(name) == family]
    refused = tuple(each for each in options.refused if family_of(each[0]) == family)
    if family == _NONE:
        st.caption(came or f"{SCHEMES['none'].about} This is the baseline that schemes are compared with.")
        return Quantization()
    name = _scheme(offered, options.chosen, family, key, measured) if offered else None
    say_refused(Options((), refused, ""), {each: scheme.title for each, scheme in SCHEMES.items()})
    if name is None:
        return Quantization()
    if name in SCHEMES:
        row = SCHEMES[name]
        st.caption(frame.plain(f"Needs: {row.needs} Deploys as: {row.deployable_as}."))
    return Quantization.model_validate({"scheme": name, **_options(recipe, name, hardware, key)})


def _family(options: Options, key: Key, without: str) -> str:
    """``without`` is what the model is called where no scheme is applied to it."""
    names = [*options.offered, *(name for name, _ in options.refused)]
    families = [each for each in (*FAMILIES, _OTHER) if any(family_of(name) == each for name in names)]
    chosen = st.segmented_control(
        label_of("quantization.scheme"),
        families,
        default=family_of(options.chosen),
        required=True,
        format_func=lambda each: without if each == _NONE else each,
        label_visibility="collapsed",
        key=key("quantization.family"),
    )
    return str(chosen)


def _scheme(offered: list[str], chosen: str, family: str, key: Key, measured: Mapping[str, str]) -> str:
    name = st.radio(
        describe("quantization.scheme"),
        offered,
        index=offered.index(chosen) if chosen in offered else 0,
        format_func=lambda each: SCHEMES[each].title if each in SCHEMES else each,
        captions=[_caption(each, measured) for each in offered],
        label_visibility="collapsed",
        key=key(f"quantization.scheme-{family}"),
    )
    return str(name)


def _caption(name: str, measured: Mapping[str, str]) -> str:
    """What it is and usually costs, and what was measured here."""
    about = SCHEMES[name].about if name in SCHEMES else ""  # type: ignore[index]
    return f"{about} **{measured[name]}**" if name in measured else about


def _options(recipe: Recipe, name: str, hardware: Hardware, key: Key) -> dict[str, Any]:
    """The scheme's own fields as their widgets have them, and the layers that stay dense."""
    read = options_read_by(name)
    drawn = {field: draw for field, draw in _FIELDS.items() if field in read}
    values = {field: draw(recipe, hardware, key) for field, draw in drawn.items()}
    return values | {"skip": _skip(recipe, key)}


def _skip(recipe: Recipe, key: Key) -> list[str]:
    chosen = list(recipe.quantization.skip)
    return st.multiselect(
        label_of("quantization.skip"),
        list(dict.fromkeys((*chosen, *_SKIP_EXAMPLES))),
        default=chosen,
        accept_new_options=True,
        select_all=False,
        placeholder="patterns of layer names, such as *.down_proj",
        help=describe("quantization.skip") + " Type a pattern and press Enter.",
        key=key("quantization.skip"),
    )


def _double_quant(recipe: Recipe, hardware: Hardware, key: Key) -> bool:
    return st.toggle(
        label_of("quantization.double_quant"),
        value=recipe.quantization.double_quant,
        help=describe("quantization.double_quant"),
        key=key("quantization.double_quant"),
    )


def _group_size(recipe: Recipe, hardware: Hardware, key: Key) -> int | None:
    device = hardware.device(recipe.device)
    kind: DeviceKind = "cuda" if device is not None and device.kind == "cuda" else "cpu"
    own = recipe.quantization.group_size
    sizes = sorted({*INT4_GROUP_SIZES[kind], *([own] if own else [])})
    return st.selectbox(
        label_of("quantization.group_size"),
        [None, *sizes],
        index=sizes.index(own) + 1 if own else 0,
        format_func=lambda each: "the scheme's own (64)" if each is None else f"{each} weights",
        help=describe("quantization.group_size") + " Smaller groups lose less and take more memory.",
        key=key("quantization.group_size"),
    )


def _parameters(recipe: Recipe, hardware: Hardware, key: Key) -> str:
    titles = {"minmax": "Min and max", "hqq": "HQQ (slower to load, loses less)"}
    return _choice("parameters", recipe.quantization.parameters, titles, key)


def _activations(recipe: Recipe, hardware: Hardware, key: Key) -> str:
    titles = {"symmetric": "Symmetric", "asymmetric": "Asymmetric (loses less)"}
    return _choice("activations", recipe.quantization.activations, titles, key)


def _choice(field: str, value: str, titles: dict[str, str], key: Key) -> str:
    chosen = st.segmented_control(
        label_of(f"quantization.{field}"),
        list(titles),
        default=value,
        required=True,
        format_func=lambda each: titles[each],
        help=describe(f"quantization.{field}"),
        key=key(f"quantization.{field}"),
    )
    return str(chosen)


def _outlier_threshold(recipe: Recipe, hardware: Hardware, key: Key) -> float | None:
    return st.number_input(
        label_of("quantization.outlier_threshold"),
        min_value=0.0,
        max_value=1000.0,
        value=recipe.quantization.outlier_threshold,
        step=0.5,
        placeholder="6",
        help=describe("quantization.outlier_threshold"),
        key=key("quantization.outlier_threshold"),
    )


def _alpha(recipe: Recipe, hardware: Hardware, key: Key) -> float | None:
    return st.number_input(
        label_of("quantization.alpha"),
        min_value=0.0,
        max_value=1.0,
        value=recipe.quantization.alpha,
        step=0.05,
        placeholder="searched for",
        help=describe("quantization.alpha"),
        key=key("quantization.alpha"),
    )


def _calibration(recipe: Recipe, hardware: Hardware, key: Key) -> Calibration:
    return calibration_form(recipe.quantization.calibration, key)


_FIELDS: dict[str, Callable[[Recipe, Hardware, Key], Any]] = {
    "double_quant": _double_quant,
    "group_size": _group_size,
    "parameters": _parameters,
    "activations": _activations,
    "outlier_threshold": _outlier_threshold,
    "calibration": _calibration,
    "alpha": _alpha,
}
