"""What differs between a loaded Recipe and an edited one, and whether it changes live. Pure.

This file does not know how a change is applied (``load_panel.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mcp_core.conflicts import resolve
from mcp_core.hardware import Hardware
from mcp_core.recipe import Recipe
from pages._ui.recipe_options import label_of

__all__ = ["Change", "Changes", "compare"]


@dataclass(frozen=True, slots=True)
class Change:
    """One dotted field with its value in the worker and in the form."""

    field: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{label_of(self.field)}: `{_text(self.before)}` → `{_text(self.after)}`"


@dataclass(frozen=True, slots=True)
class Changes:
    """Every difference; ``live`` when the running worker can take them all."""

    fields: tuple[Change, ...]
    live: bool

    def __bool__(self) -> bool:
        return bool(self.fields)

    def as_markdown(self) -> str:
        """A list of ``label: before → after`` lines."""
        return "\n".join(f"- {each}" for each in self.fields)

    def as_line(self) -> str:
        """The same in one line."""
        return " · ".join(map(str, self.fields))


def compare(loaded: Recipe, edited: Recipe, hardware: Hardware) -> Changes:
    """Differences after ``auto`` device and threads are resolved; a content hash found while loading is none."""
    before, after = (_settled(recipe, hardware) for recipe in (loaded, edited))
    old, new = (dict(_flatten(recipe.model_dump(mode="json"))) for recipe in (before, after))
    fields = [
        Change(field, old.get(field), new.get(field))
        for field in {**old, **new}
        if old.get(field) != new.get(field)
    ]
    return Changes(fields=tuple(fields), live=before.load_key == after.load_key)


def _settled(recipe: Recipe, hardware: Hardware) -> Recipe:
    model = recipe.model.model_copy(update={"sha256": None})
    return resolve(recipe, hardware).model_copy(update={"model": model})


def _flatten(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _text(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
