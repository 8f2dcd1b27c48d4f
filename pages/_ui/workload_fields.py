"""Every field of a Workload of one's own: when requests come, what they say, how long they are.

This file does not know presets (``workload_form.py``) or how a Workload is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st
from pydantic import BaseModel

from mcp_core import recordings
from mcp_core.errors import McpError, WorkloadError
from mcp_core.workload import Arrivals, Chats, Lengths, PromptSource, SharedPrefix, Workload
from pages._ui import workbench
from pages._ui.frame import errors_shown, show_error

__all__ = ["draw"]

Document = dict[str, Any]

_ARRIVALS = {
    "closed": "users who wait for their reply",
    "constant": "at a constant rate",
    "poisson": "at random (Poisson)",
    "bursty": "in bursts",
    "ramp": "at a rising or falling rate",
    "replay": "as recorded",
}
_SOURCES = {
    "random": "random tokens",
    "sample": "passages of a built-in book",
    "file": "prompts of a file",
    "recording": "lengths of a recording",
}
_KINDS = {"uniform": "uniform", "lognormal": "lognormal", "zipf": "zipf", "values": "a list"}
_UPLOAD = "Add a file"


def draw(now: Workload) -> Document:
    """Draw the fields as of ``now`` and return the Workload's document, without a name.

    Raises WorkloadError while a file is still to be given.
    """
    document: Document = {}
    _arrivals(now, document)
    _source(now, document)
    _both_lengths(now, document)
    with st.expander("Chats and shared prefixes", icon=":material/forum:", expanded=bool(now.chats or now.prefix)):
        _chats(now, document)
        _prefix(now, document)
    return document


def _arrivals(now: Workload, document: Document) -> None:
    left, middle, right = st.columns(3)
    with left:
        kind = _choice("Requests come", "arrivals", _ARRIVALS, now.arrivals.kind, Workload, "arrivals")
    given: Document = {"kind": kind}
    with middle:
        if kind == "closed":
            document["concurrency"] = _whole("Users at once", "concurrency", now.concurrency, 1, Workload)
        elif kind == "replay":
            given["speed"] = _real("Times as fast", "speed", now.arrivals.speed, Arrivals)
        else:
            given["rate_s"] = _real("Arrivals a second", "rate_s", now.arrivals.rate_s or 1.0, Arrivals)
    with right:
        if kind == "ramp":
            given["end_rate_s"] = _real("At its end", "end_rate_s", now.arrivals.end_rate_s or 4.0, Arrivals)
        elif kind == "bursty":
            given["burstiness"] = _real("Burstiness", "burstiness", now.arrivals.burstiness, Arrivals)
    document["arrivals"] = given
    _end(now, document)


def _end(now: Workload, document: Document) -> None:
    """What ends it, and what is not measured."""
    left, middle, right, last = st.columns(4)
    with left:
        ends = {"count": "a number of requests", "time": "time"}
        by = _choice("Ended by", "ends", ends, "time" if now.duration_s else "count", Workload, "duration_s")
    with middle:
        if by == "time":
            document["duration_s"] = _real("Seconds", "duration_s", now.duration_s or 60.0, Workload)
        else:
            document["requests"] = _whole("Requests", "requests", now.requests, 1, Workload)
    with right:
        warm = _whole("Warm-up requests", "warmup_requests", now.warmup_requests, 0, Workload)
        document["warmup_requests"] = warm
    with last:
        document["seed"] = _whole("Seed", "seed", now.seed, 0, Workload)


def _source(now: Workload, document: Document) -> None:
    left, middle = st.columns([1, 2], vertical_alignment="bottom")
    with left:
        kind = _choice("Prompts are", "source", _SOURCES, now.prompts.kind, PromptSource, "kind")
    given: Document = {"kind": kind}
    with middle:
        if kind in ("file", "recording"):
            given["sha256"] = _kept(kind, now.prompts.sha256)
            if given["sha256"] is None:
                raise WorkloadError(f"No {kind} is chosen yet.", "Add one.")
        else:
            given["as_chat"] = st.toggle(
                "Sent as a user's message",
                value=now.prompts.as_chat,
                help=PromptSource.model_fields["as_chat"].description,
                key="workload-as_chat",
            )
    document["prompts"] = given


def _kept(kind: str, chosen: str | None) -> str | None:
    """Which text or recording; a new one can be added."""
    known = _known(kind)
    options = [*known, _UPLOAD]
    picked = st.selectbox(
        "Which",
        options,
        index=options.index(chosen) if chosen in options else 0,
        format_func=lambda each: known.get(each, each),
        key=f"workload-which-{kind}",
    )
    if picked != _UPLOAD:
        return str(picked)
    forms = "JSON lines or CSV with a prompt, text or messages a row" if kind == "file" else _RECORDING_FORMS
    file = st.file_uploader(forms, type=["jsonl", "csv"], key=f"workload-upload-{kind}")
    if file is None:
        return None
    with errors_shown():
        if kind == "file":
            return workbench.get_workbench().studies.add_text(file.name, file.getvalue()).sha256
        return recordings.add(file.name, file.getvalue()).sha256
    return None


_RECORDING_FORMS = "JSON lines or CSV with at_s, prompt_tokens and output_tokens (or Mooncake's or Azure's columns)"


def _known(kind: str) -> dict[str, str]:
    """Hash → name of what is kept here."""
    try:
        if kind == "file":
            texts = workbench.get_workbench().studies.texts()
            return {each.sha256: f"{each.name}, {each.documents:,} prompts" for each in texts}
        kept = recordings.list_recordings()
        return {each.sha256: f"{each.name}, {len(each.requests):,} in {each.duration_s:,.0f} s" for each in kept}
    except McpError as error:
        show_error(error)
        return {}


def _both_lengths(now: Workload, document: Document) -> None:
    source = document["prompts"]["kind"]
    if source == "recording":
        return
    if source != "file":
        document["prompt_tokens"] = _lengths("Prompt tokens", "prompt", now.prompt_tokens)
    document["output_tokens"] = _lengths("Reply tokens", "output", now.output_tokens)


def _lengths(label: str, key: str, now: Lengths) -> Document | list[int]:
    columns = st.columns(4)
    with columns[0]:
        kind = _choice(label, f"{key}-kind", _KINDS, now.kind, Lengths, "kind")
    if kind == "values":
        with columns[1]:
            return _list(key, now)
    document: Document = {"kind": kind}
    with columns[1]:
        document["min"] = _whole(f"{label}, least", f"{key}-min", now.min, 1, Lengths, "min")
    with columns[2]:
        document["max"] = _whole(f"{label}, most", f"{key}-max", now.max, 1, Lengths, "max")
    with columns[3]:
        if kind == "lognormal":
            middle = now.median or round((now.min * now.max) ** 0.5)
            document["median"] = _whole("Median", f"{key}-median", middle, 1, Lengths, "median")
        elif kind == "zipf":
            document["exponent"] = _real("Exponent", f"{key}-exponent", now.exponent, Lengths, "exponent")
    return document


def _list(key: str, now: Lengths) -> list[int]:
    said = st.text_input(
        "Counts",
        value=", ".join(map(str, now.values or (now.min, now.max))),
        help="Whole numbers with commas between them; each is as likely.",
        key=f"workload-{key}-values",
    )
    return [int(each) if each.strip().isdecimal() else 0 for each in said.split(",")]


def _chats(now: Workload, document: Document) -> None:
    chats = now.chats or Chats()
    on = st.toggle(
        "Chats of several turns",
        value=now.chats is not None,
        help=_meaning(Workload, "chats"),
        key="workload-chats",
    )
    if not on:
        return
    left, middle, right = st.columns(3)
    with left:
        least = _whole("Turns, least", "turns-min", chats.turns.min, 1, Chats, "turns")
    with middle:
        most = _whole("Turns, most", "turns-max", chats.turns.max, 1, Chats, "turns")
    with right:
        think_s = _real("Time to think, s", "think_s", chats.think_s, Chats, least=0.0)
    document["chats"] = {"turns": {"min": least, "max": most}, "think_s": think_s, "think": chats.think}


def _prefix(now: Workload, document: Document) -> None:
    prefix = now.prefix or SharedPrefix()
    on = st.toggle(
        "Shared prefixes", value=now.prefix is not None, help=_meaning(Workload, "prefix"), key="workload-prefix"
    )
    if not on:
        return
    left, middle, right = st.columns(3)
    with left:
        tokens = _whole("Prefix tokens", "prefix-tokens", prefix.tokens, 1, SharedPrefix, "tokens")
    with middle:
        groups = _whole("Different prefixes", "prefix-groups", prefix.groups, 1, SharedPrefix, "groups")
    with right:
        share = st.slider(
            "Share of prompts, %",
            0,
            100,
            value=round(100 * prefix.hit_rate),
            help=_meaning(SharedPrefix, "hit_rate"),
            key="workload-prefix-hit_rate",
        )
    document["prefix"] = {"tokens": tokens, "groups": groups, "hit_rate": share / 100}


def _meaning(model: type[BaseModel], field: str) -> str | None:
    return model.model_fields[field].description


def _choice(label: str, key: str, words: Mapping[str, str], now: str, model: type[BaseModel], field: str) -> str:
    names = list(words)
    chosen = st.selectbox(
        label,
        names,
        index=names.index(now),
        format_func=lambda each: words[each],
        help=_meaning(model, field),
        key=f"workload-{key}",
    )
    return str(chosen)


def _whole(label: str, key: str, value: int, least: int, model: type[BaseModel], field: str | None = None) -> int:
    number = st.number_input(
        label, min_value=least, value=value, step=1, help=_meaning(model, field or key), key=f"workload-{key}"
    )
    return value if number is None else int(number)


def _real(
    label: str, key: str, value: float, model: type[BaseModel], field: str | None = None, least: float = 0.01
) -> float:
    number = st.number_input(
        label, min_value=least, value=float(value), help=_meaning(model, field or key), key=f"workload-{key}"
    )
    return value if number is None else float(number)
