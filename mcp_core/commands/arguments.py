"""Arguments that several verbs share: a RECIPE or WORKLOAD is a JSON file or a preset's name, with overrides.

This file does not know whether a machine can run what it reads.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcp_core.errors import InputError, ModelNotFound
from mcp_core.presets import RECIPES, recipe_preset
from mcp_core.recipe import Recipe
from mcp_core.workload import WORKLOADS, Workload, workload_preset

__all__ = [
    "CONTROL_VARIABLE",
    "add_json",
    "add_listing",
    "add_progress",
    "add_recipe",
    "add_set",
    "add_workload",
    "control_token",
    "hub_token",
    "read_recipe",
    "read_workload",
    "require_place",
    "whole_number",
]


CONTROL_VARIABLE = "MCP_CONTROL_TOKEN"
_LEAST_TOKEN = 16


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """The RECIPE argument."""
    parser.add_argument("recipe", metavar="RECIPE", help=f"JSON file, or one of: {', '.join(RECIPES)}")


def add_workload(parser: argparse.ArgumentParser) -> None:
    """The WORKLOAD argument."""
    parser.add_argument("workload", metavar="WORKLOAD", help=f"JSON file, or one of: {', '.join(WORKLOADS)}")


def add_set(parser: argparse.ArgumentParser, *, workload: bool = False) -> None:
    """--set, once for every field that is to differ."""
    what = "a Recipe's, as quantization.scheme=bnb-nf4"
    what += ", or a Workload's, as workload.requests=50" if workload else ""
    parser.add_argument(
        "--set",
        dest="settings",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help=f"replace one field: {what}. The value is JSON, else text. Repeatable.",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="answer with one JSON document")


def add_listing(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Action list, which is also what comes without one."""
    listing = actions.add_parser(
        "list", help="list those kept; so without an ACTION", description="List those kept."
    )
    # Without a default of its own, so that it does not undo a --json before it.
    listing.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="answer with one JSON document"
    )


def add_progress(parser: argparse.ArgumentParser) -> None:
    """--progress."""
    about = "how progress is written to stderr: text for people (default), or a JSON document a line"
    parser.add_argument("--progress", choices=("text", "json"), default="text", help=about)


def read_recipe(options: argparse.Namespace) -> Recipe:
    """The RECIPE with its overrides. Raises ModelNotFound or RecipeError."""
    changes, _ = _settings(options)
    text = _file_text(options.recipe, RECIPES)
    recipe = Recipe.from_json(text) if text is not None else recipe_preset(options.recipe)
    return recipe.replace(changes) if changes else recipe


def read_workload(options: argparse.Namespace) -> Workload:
    """The WORKLOAD with its overrides. Raises ModelNotFound or WorkloadError."""
    _, changes = _settings(options)
    text = _file_text(options.workload, WORKLOADS)
    workload = Workload.from_json(text) if text is not None else workload_preset(options.workload)
    return workload.replace(changes) if changes else workload


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an argument that counts: ``least`` to ``most``, both included."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f'"{text}" is not a whole number') from error
        if number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(
                f"must be at least {least}" if most is None else f"must be between {least} and {most}"
            )
        return number

    return read


def hub_token() -> str | None:
    """The Hugging Face token of the environment."""
    return os.environ.get("HF_TOKEN") or None


def control_token() -> str | None:
    """The token of a worker's control routes: what ``serve`` is to demand, and ``profile --url`` to present.

    Raises InputError for one that is too short to be a secret.
    """
    token = os.environ.get(CONTROL_VARIABLE) or None
    if token is not None and len(token) < _LEAST_TOKEN:
        raise InputError(f"{CONTROL_VARIABLE} has fewer than {_LEAST_TOKEN} characters.", "Choose a longer secret.")
    return token


def require_place(path: Path | None) -> None:
    """Raise InputError, before minutes are spent, where --out names no file that can be made."""
    if path is not None and not path.absolute().parent.is_dir():
        raise InputError(f"There is no folder {path.parent}.", "Make it first, or write elsewhere.")
    if path is not None and path.is_dir():
        raise InputError(f"{path} is a folder.", "Give --out the name of a file.")


def _file_text(name: str, presets: Any) -> bytes | None:
    """The file's content; None when ``name`` is a preset's, or no path either."""
    if not name:
        raise ModelNotFound("A name is empty.", "Give a JSON file or a preset's name.")
    path = Path(name)
    if name in presets or not (path.suffix or path.exists() or os.sep in name):
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelNotFound(
            f"{name} cannot be read: {error.strerror}.", "Give a JSON file or a preset's name."
        ) from error


def _settings(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """--set as dotted fields of the Recipe and of the Workload. Raises InputError."""
    recipe: dict[str, Any] = {}
    workload: dict[str, Any] = {}
    for setting in options.settings:
        path, equals, value = setting.partition("=")
        if not equals or not path:
            raise InputError(f'--set "{setting}" has no "=".', "Write it as --set quantization.scheme=bnb-nf4.")
        if path.startswith("workload."):
            if "workload" not in options:
                raise InputError(f'--set "{setting}": this verb takes no Workload.', "Use it with bench.")
            workload[path.removeprefix("workload.")] = _value(value)
        else:
            recipe[path.removeprefix("recipe.")] = _value(value)
    return recipe, workload


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # what JSON cannot be read is text, which the field then refuses
        return text
