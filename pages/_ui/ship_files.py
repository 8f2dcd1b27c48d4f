"""The files of a bundle: target, what did not carry over, each file, a zip, the commands to copy.

This file does not know how a bundle is made.
"""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath

import streamlit as st

from mcp_core.decision.bundle import Bundle, zipped
from mcp_core.decision.export import BUNDLE_FILE, TARGETS, export, why_not
from mcp_core.decision.shipment import Shipment
from mcp_core.decision.targets.readme import confirm_command, standing
from pages._ui import format as fmt
from pages._ui import frame, links

__all__ = ["choose_target", "draw_files"]

_LANGUAGES = {".sh": "bash", ".py": "python", ".yaml": "yaml", ".json": "json", ".md": "markdown"}
# Read by confirm and verify, not by people.
_PAPERS = (BUNDLE_FILE, "recipe.json", "workload.json", "run.json", "decision.json")
_HEIGHT_PX, _MOST_SHOWN = 360, 40_000


def choose_target(shipment: Shipment) -> tuple[str, str | None] | None:
    """Target and, for containers, engine; None where it cannot be exported there, with the reason."""
    names = list(TARGETS)
    first = _first_possible(shipment, names)
    asked = links.asked(
        "target",
        lambda name: name if name in TARGETS else None,
        "There is no target {}.",
        f"{TARGETS[first].title} is shown instead.",
    )
    target = st.segmented_control(
        "Target",
        names,
        default=asked or first,
        format_func=lambda name: TARGETS[name].title,
        key=f"ship-target-{shipment.run_id}",
        required=True,
        help="What it is deployed with.",
    )
    st.query_params["target"] = target
    row = TARGETS[target]
    st.caption(f"{fmt.sentence(row.about)}.")
    engine = _engine(shipment, row.engines) if row.engines else None
    error = why_not(shipment, target, engine)
    if error is None:
        return target, engine
    st.warning(f"{frame.plain(error.message)} {frame.plain(error.hint)}", icon=":material/block:")
    return None


def draw_files(shipment: Shipment, target: str, engine: str | None) -> Bundle:
    """What did not carry over, every file, the zip, the commands."""
    bundle = export(shipment, target, engine)
    st.markdown(f"**{frame.plain(standing(shipment, bundle.engine))}**")
    if bundle.not_carried:
        with st.expander(
            f"{fmt.count(len(bundle.not_carried), 'thing')} did not carry over", icon=":material/info:"
        ):
            for line in bundle.not_carried:
                st.markdown(f"- {frame.plain(line)}")
    shown = [name for name in bundle.files if name not in _PAPERS]
    for tab, name in zip(st.tabs(shown), shown, strict=True):
        with tab:
            text = bundle.files[name]
            more = "\n…" if len(text) > _MOST_SHOWN else ""
            st.code(text[:_MOST_SHOWN] + more, _LANGUAGES.get(PurePosixPath(name).suffix), height=_height(text))
    _download(bundle, shipment)
    _commands(bundle, shipment, engine)
    return bundle


def _first_possible(shipment: Shipment, names: list[str]) -> str:
    return next((name for name in names if why_not(shipment, name) is None), names[0])


def _engine(shipment: Shipment, engines: tuple[str, ...]) -> str:
    own = shipment.recipe.engine
    return st.selectbox(
        "Engine",
        engines,
        index=engines.index(own) if own in engines else 0,
        key=f"ship-engine-{shipment.run_id}",
        width=240,
        help="Whose image is started.",
    )


def _height(text: str) -> int | str:
    return _HEIGHT_PX if text.count("\n") > 16 else "content"


def _download(bundle: Bundle, shipment: Shipment) -> None:
    name = f"{fmt.model_name(shipment.recipe)}-{bundle.target}".lower().replace("/", "-")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            "Download all files",
            data=lambda: zipped(bundle, name),
            file_name=f"{name}.zip",
            mime="application/zip",
            on_click="ignore",
            type="primary",
            icon=":material/download:",
        )
        for copy, path in bundle.copies.items():
            megabytes = path.stat().st_size / 1e6
            st.caption(
                f"The zip leaves out {copy} ({megabytes:,.0f} MB); the command below copies it.", width="content"
            )


def _commands(bundle: Bundle, shipment: Shipment, engine: str | None) -> None:
    decision = shipment.decision
    lines = []
    if decision is not None:
        goal = decision.goal.model_dump_json(exclude_defaults=True)
        lines.append(["mcp-core", "recommend", goal, "--out", "decision.json"])
    what = "decision.json" if decision else shipment.run_id
    chosen = ["--engine", engine] if engine else []
    lines.append(["mcp-core", "export", what, "--target", bundle.target, *chosen, "--out", "DIR"])
    st.caption("Write the files from a shell, and check the deployment")
    st.code("\n".join([*map(shlex.join, lines), confirm_command(bundle, "DIR")]), "bash")
    if decision is not None:
        st.caption("Later: does the choice still hold?")
        st.code("mcp-core verify DIR/decision.json", "bash")
