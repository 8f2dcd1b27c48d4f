"""The part of the Recipe form that says which model: five sources, one ModelRef out.

This file does not know whether the model exists (the Workbench looks it up) or how it is served.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from mcp_core.errors import RecipeError
from mcp_core.models.shapes import SHAPES
from mcp_core.paths import model_roots
from mcp_core.recipe import ModelRef, Recipe, ShapeSpec
from pages._ui import hub_token

__all__ = ["SOURCES", "model_form"]

Key = Callable[[str], str]  # field name -> widget key of the present form

SOURCES: dict[str, str] = {
    "bundled": "Bundled",
    "hub": "Hub",
    "folder": "Folder",
    "gguf": "GGUF",
    "shape": "Random weights",
}

# A quarter of a billion parameters: loads in seconds on any machine.
_SMALL_CUSTOM = ShapeSpec(layers=16, hidden=1024, intermediate=2816, heads=16, kv_heads=8, vocab=32_000)


def model_form(model: ModelRef, key: Key) -> ModelRef:
    """Draw the source and its fields; return the chosen model.

    Raises RecipeError while something is missing ("Type a Hub id") or sizes contradict each other.
    """
    source = st.segmented_control(
        "Model",
        list(SOURCES),
        format_func=SOURCES.__getitem__,
        default=model.source if model.source in SOURCES else "bundled",
        required=True,
        label_visibility="collapsed",
        key=key("model.source"),
        persist_state="session",
    )
    chosen = _FIELDS[str(source)](model, key)
    # The same model again keeps its content hash.
    return model if chosen == model.model_copy(update={"sha256": None}) else chosen


def _bundled(model: ModelRef, key: Key) -> ModelRef:
    st.caption(
        "**SmolLM2-135M-Instruct**, installed with this app. Nothing is downloaded. llama.cpp reads its GGUF as it "
        "is; engine transformers expands it to dense weights on disk, once."
    )
    return ModelRef()


def _hub(model: ModelRef, key: Key) -> ModelRef:
    name, revision = st.columns([2, 1])
    asked = name.text_input(
        "Hub id",
        value=_id_if(model, "hub"),
        placeholder="owner/name",
        key=key("model.hub"),
        persist_state="session",
        help="A text-only causal language model with safetensors weights. Nothing is downloaded before Load.",
    )
    wanted = revision.text_input(
        "Revision",
        value=(model.revision or "") if model.source == "hub" else "",
        placeholder="main",
        key=key("model.revision"),
        persist_state="session",
        help="A branch, tag or commit of the repository.",
    )
    hub_token.token_field()
    return _reference("hub", asked, "Type a Hub id, such as HuggingFaceTB/SmolLM2-360M-Instruct.", revision=wanted)


def _folder(model: ModelRef, key: Key) -> ModelRef:
    asked = st.text_input(
        "Folder",
        value=_id_if(model, "folder"),
        placeholder="/path/to/model",
        key=key("model.folder"),
        persist_state="session",
        help="Holds config.json, the tokenizer and safetensors weights. Pickle weights are refused.",
    )
    _say_roots()
    return _reference("folder", asked, "Type the path of a folder on this machine.")


def _gguf(model: ModelRef, key: Key) -> ModelRef:
    asked = st.text_input(
        "GGUF file",
        value=_id_if(model, "gguf"),
        placeholder="/path/to/model.gguf",
        key=key("model.gguf"),
        persist_state="session",
        help="llama.cpp reads it as it is; for engine transformers its weights are expanded to dense safetensors "
        "once, on disk.",
    )
    _say_roots()
    return _reference("gguf", asked, "Type the path of a .gguf file on this machine.")


def _shape(model: ModelRef, key: Key) -> ModelRef:
    names = [*SHAPES, "custom"]
    current = model.id if model.source == "shape" and model.id in names else names[0]
    name = st.selectbox(
        "Sizes of",
        names,
        index=names.index(current),
        format_func=lambda each: "Custom sizes" if each == "custom" else _shape_title(each),
        key=key("model.shape"),
        persist_state="session",
    )
    st.info("Random weights: speed and memory are true, text is not.", icon=":material/casino:")
    if name != "custom":
        return ModelRef(source="shape", id=str(name))
    return _validated(source="shape", id="custom", shape=_custom_sizes(model.shape or _SMALL_CUSTOM, key))


def _shape_title(name: str) -> str:
    spec = SHAPES[name]
    return f"{name} · {spec.layers} layers × {spec.hidden}"


_SIZE_LABELS = {
    "layers": "Layers",
    "hidden": "Hidden size",
    "intermediate": "MLP size",
    "heads": "Query heads",
    "kv_heads": "KV heads",
    "head_dim": "Head size",
    "vocab": "Vocabulary",
    "context": "Context, tokens",
}


def _custom_sizes(spec: ShapeSpec, key: Key) -> dict[str, Any]:
    columns = st.columns(4)
    sizes: dict[str, Any] = {}
    for position, (field, label) in enumerate(_SIZE_LABELS.items()):
        sizes[field] = columns[position % 4].number_input(
            label,
            min_value=1,
            value=getattr(spec, field),
            step=1,
            placeholder="hidden / heads" if field == "head_dim" else None,
            help=ShapeSpec.model_fields[field].description,
            key=key(f"model.shape.{field}"),
            persist_state="session",
        )
    sizes["tied"] = st.checkbox(
        "Tied embeddings",
        value=spec.tied,
        help=ShapeSpec.model_fields["tied"].description,
        key=key("model.shape.tied"),
        persist_state="session",
    )
    return sizes


_FIELDS = {"bundled": _bundled, "hub": _hub, "folder": _folder, "gguf": _gguf, "shape": _shape}


def _id_if(model: ModelRef, source: str) -> str:
    return model.id if model.source == source else ""


def _say_roots() -> None:
    roots = " · ".join(f"`{root}`" for root in dict.fromkeys(model_roots()))
    st.caption(f"Models are read from under {roots} (MCP_MODEL_ROOTS).")


def _reference(source: str, asked: str | None, missing: str, *, revision: str | None = None) -> ModelRef:
    if not (asked or "").strip():
        raise RecipeError("No model chosen yet.", missing)
    return _validated(source=source, id=str(asked).strip(), revision=(revision or "").strip() or None)


def _validated(**fields: Any) -> ModelRef:
    return Recipe.from_dict({"model": fields}).model
