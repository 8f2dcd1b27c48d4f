"""What differs between two Recipes, and changes together with what they need of other fields. Pure.

This file does not know why a Recipe is changed (``advisor.py``, ``evaluation/remedies.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mcp_core.recipe import Recipe

__all__ = ["changed_fields", "with_companions"]

# What batching, prefix_cache and recorded steps want: a cache that holds many sequences, attention over its pages.
_PAGED: dict[str, Any] = {
    "kv.kind": "dynamic",
    "kv.window": None,
    "kv.bits": None,
    "speculation": "off",
    "draft": None,
    "draft_tokens": None,
    "attention": "sdpa",
}


def changed_fields(before: Recipe, after: Recipe) -> dict[str, Any]:
    """Dotted fields whose value differs -> the new value."""
    return dict(_walk("", before.model_dump(mode="json"), after.model_dump(mode="json")))


def with_companions(recipe: Recipe, changes: Mapping[str, Any]) -> Iterator[Recipe]:
    """The Recipe with these changes alone, then with what pages of keys and values need as well."""
    yield recipe.replace(changes)
    yield recipe.replace({**_PAGED, **changes})


def _walk(path: str, before: Any, after: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name, value in after.items():
            yield from _walk(f"{path}.{name}" if path else name, before.get(name), value)
    elif before != after:
        yield path, after
