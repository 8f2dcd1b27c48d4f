"""Command lines that measure what a decision lacks: the nearest preset with every field that differs.

This file does not know what a verb does (``commands/``).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from mcp_core.decision.recipe_changes import changed_fields
from mcp_core.presets import RECIPES
from mcp_core.recipe import Recipe
from mcp_core.workload import WORKLOADS, Workload

__all__ = ["bench_command", "fidelity_command"]

# Filled in when a model is resolved; the command resolves it anew.
_RESOLVED = ("model.sha256",)


def bench_command(recipe: Recipe, workload: Workload, *, fidelity: bool = False) -> str:
    """``mcp-core bench`` with this Recipe and Workload; an endpoint's is its URL."""
    name, changes = _nearest(recipe, {name: preset() for name, preset in RECIPES.items()})
    load, asked = _nearest_workload(workload)
    settings = [*_settings(changes), *_settings({f"workload.{path}": value for path, value in asked.items()})]
    url = ["--url", recipe.model.id] if recipe.model.source == "endpoint" else []
    return shlex.join(["mcp-core", "bench", name, load, *settings, *url, *(["--fidelity"] if fidelity else [])])


def fidelity_command(recipe: Recipe) -> str:
    """``mcp-core fidelity`` with this Recipe."""
    name, changes = _nearest(recipe, {name: preset() for name, preset in RECIPES.items()})
    return shlex.join(["mcp-core", "fidelity", name, *_settings(changes)])


def _nearest(recipe: Recipe, presets: Mapping[str, Recipe]) -> tuple[str, dict[str, Any]]:
    """The preset of the same engine, where there is one, that differs in the fewest fields, and those fields."""
    same = {name: preset for name, preset in presets.items() if preset.engine == recipe.engine}
    differing = {name: _without(changed_fields(preset, recipe)) for name, preset in (same or presets).items()}
    name = min(differing, key=lambda each: len(differing[each]))
    return name, differing[name]


def _nearest_workload(workload: Workload) -> tuple[str, dict[str, Any]]:
    wanted = _short(workload)
    differing = {}
    for name, preset in WORKLOADS.items():
        document = _short(preset())
        differing[name] = {key: value for key, value in wanted.items() if document[key] != value}
    name = workload.name if workload.name in WORKLOADS else min(differing, key=lambda each: len(differing[each]))
    return name, differing[name]


def _short(workload: Workload) -> dict[str, Any]:
    """Its document, lengths in their shortest form."""
    document = workload.model_dump(mode="json")
    for name in ("prompt_tokens", "output_tokens"):
        lengths = getattr(workload, name)
        given = lengths.model_dump(mode="json", exclude_defaults=True)
        document[name] = given["min"] if given == {"min": lengths.max, "max": lengths.max} else given
    return document


def _without(changes: dict[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in changes.items() if path not in _RESOLVED}


def _settings(changes: Mapping[str, Any]) -> list[str]:
    return [word for path, value in changes.items() for word in ("--set", f"{path}={_text(value)}")]


def _text(value: Any) -> str:
    """As --set reads it: JSON, or else text. A text that is JSON by chance ("123") is quoted."""
    return value if isinstance(value, str) and not _is_json(value) else json.dumps(value)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):  # as --set takes it
        return False
    return True
