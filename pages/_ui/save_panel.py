"""The quantized model written as a checkpoint that others can serve: format, folder name, progress, where it is.

This file does not know how a format is written, only which can be (``mcp_core/checkpoint_formats.py``).
"""

from __future__ import annotations

import re
from pathlib import Path

import streamlit as st

from mcp_core import conflicts, paths
from mcp_core.checkpoint_formats import FORMATS, CheckpointFormat, SavedCheckpoint, why_not_saved
from mcp_core.hardware import Hardware
from mcp_core.llama_cpp import with_engine
from mcp_core.recipe import Recipe
from mcp_core.schemes import SCHEMES
from mcp_core.views import JobView
from pages._ui import format as fmt
from pages._ui import frame, session, workbench
from pages._ui.hub_token import current_token
from pages._ui.job_panel import ACTIVE, job_panel

__all__ = ["save_panel"]

_TITLES: dict[CheckpointFormat, str] = {
    "library": "The scheme's own format",
    "compressed-tensors": "compressed-tensors",
    "llmcompressor": "compressed-tensors, by llmcompressor",
    "gguf": "GGUF Q8_0",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def save_panel(recipe: Recipe, hardware: Hardware) -> None:
    """The formats that this Recipe can be written in and why not the others; then a name, Save and the result."""
    st.caption(
        "Writes the quantized model to a folder of this machine, loads it again and compares its predictions; what "
        "llama.cpp or llmcompressor quantize anew is judged on the Quality page, against its original."
    )
    job = workbench.get_workbench().studies.latest("quantize", recipe)
    if job is not None and job.state in ACTIVE:
        job_panel(job)
        return
    if recipe.quantization.scheme not in SCHEMES:  # of another version; the load panel says so
        return
    reasons = _refused(recipe, hardware)
    formats = [each for each in FORMATS if each not in reasons]
    if formats:
        _form(recipe, formats)
    if job is not None:
        _ended(recipe, job)
    for each, reason in reasons.items():
        st.caption(f":material/block: **{_TITLES[each]}**: {frame.plain(' '.join(reason))}")


def _refused(recipe: Recipe, hardware: Hardware) -> dict[CheckpointFormat, tuple[str, str]]:
    """The formats that this Recipe cannot be written in, with the reason and what to do."""
    kind = conflicts.resolve(recipe, hardware).device.partition(":")[0]
    asked = {each: why_not_saved(recipe, kind, each) for each in FORMATS}
    return {each: refused for each, refused in asked.items() if refused is not None}


def _form(recipe: Recipe, formats: list[CheckpointFormat]) -> None:
    chosen = st.radio(
        "Format",
        formats,
        format_func=_TITLES.__getitem__,
        captions=[f"{FORMATS[each][0].upper()}{FORMATS[each][1:]}." for each in formats],
        key="save-format",
    )
    name = st.text_input(
        "Folder name",
        value=_suggested(recipe),
        help=f"Made in {_folder()}, where models may be loaded from.",
        key="save-name",
    )
    allowed = _NAME.fullmatch(name or "") is not None
    if not allowed:
        st.caption(":material/info: Letters, digits, dots, dashes and underscores, up to 100.")
    if st.button("Save", icon=":material/save:", disabled=not allowed, key="save"):
        with frame.errors_shown():
            out = _folder() / str(name)
            workbench.get_workbench().studies.start_quantize(recipe, out, chosen, current_token())
            st.rerun()


def _ended(recipe: Recipe, job: JobView) -> None:
    """Where it is and what serves it, with a way to load it; or why there is none."""
    if job.result is None:
        job_panel(job)
        return
    saved = SavedCheckpoint.model_validate(job.result)
    st.success(f"**{fmt.size(saved.bytes)} in** `{saved.folder}`", icon=":material/check_circle:")
    if saved.loaded_again:
        st.caption(f"Loaded again: {saved.loaded_again}.")
    if saved.deployable_as:
        st.caption(f"Served by: {frame.plain(saved.deployable_as)}.")
    _left_dense(saved.skip_reasons)
    if st.button("Use this checkpoint", icon=":material/folder_open:", key="save-use"):
        session.use_recipe(_of_saved(recipe, saved))
        st.rerun()


def _of_saved(recipe: Recipe, saved: SavedCheckpoint) -> Recipe:
    """The same Recipe of what was written; a GGUF is served by llama.cpp."""
    if saved.format == "gguf":
        model = {"source": "gguf", "id": str(Path(saved.folder) / saved.files[0])}
        return with_engine(recipe.replace({"model": model}), "llama.cpp")
    return recipe.replace({"model": {"source": "folder", "id": saved.folder}, "quantization": {}})


def _left_dense(reasons: dict[str, str]) -> None:
    """Every layer that was not quantized, by its reason, on demand."""
    if not reasons:
        return
    with st.expander(f"{fmt.count(len(reasons), 'layer')} left dense", icon=":material/layers:"):
        for reason in dict.fromkeys(reasons.values()):
            names = ", ".join(name for name, each in reasons.items() if each == reason)
            st.markdown(f"**{frame.plain(fmt.sentence(reason))}**")
            st.caption(frame.plain(names))


def _folder() -> Path:
    return paths.home("models", "written")


def _suggested(recipe: Recipe) -> str:
    words = f"{fmt.model_name(recipe)}-{recipe.quantization.scheme}".lower()
    return re.sub(r"[^a-z0-9._-]+", "-", words).strip("-.")[:100]
