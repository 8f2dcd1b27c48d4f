"""The Recipe of a server that someone else started: as far as it is known, by its URL.

This file does not know how it is measured or judged.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from mcp_core.errors import InputError
from mcp_core.recipe import ModelRef, Recipe

__all__ = ["endpoint_recipe", "require_url"]


def require_url(url: str) -> None:
    """Raise InputError unless this is the URL of a server."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f'"{url}" is not the URL of a server.', "Write it as http://127.0.0.1:8000.")


def endpoint_recipe(recipe: Recipe, url: str) -> Recipe:
    """The Recipe as far as it is known of a server that someone else started; it names the engine, if any.

    Raises InputError for what is no URL.
    """
    require_url(url)
    engine = "endpoint" if recipe.engine == "transformers" else recipe.engine
    return recipe.model_copy(update={"model": ModelRef(source="endpoint", id=url), "engine": engine})
