"""A RUN argument: the id of a stored Run, or a JSON file that holds one, as ``bench --out`` writes it.

This file does not know what is asked of the Run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import ValidationError

from mcp_core.decision.store import Store
from mcp_core.errors import InputError, ModelNotFound
from mcp_core.recipe import validation_message
from mcp_core.results import Run

__all__ = ["RUN_HELP", "find_run", "is_file_name"]

RUN_HELP = "id of a stored Run, or a file that bench --out wrote"
_HINT = "Give a Run's id (mcp-core runs lists them), or a file that bench --out wrote."


def is_file_name(text: str) -> bool:
    """Whether a file is meant: one that is there, or a name that no id has."""
    path = Path(text)
    return bool(path.suffix) or os.sep in text or path.exists()


def find_run(store: Store, text: str) -> Run:
    """The Run that is meant. Raises ModelNotFound for an unknown id or a file that cannot be read, InputError for a
    file that holds no Run, StoreError."""
    found = _in_file(Path(text)) if is_file_name(text) else store.get(text)
    if found is None:
        raise ModelNotFound(f'There is no Run and no file "{text}".', _HINT)
    return found


def _in_file(path: Path) -> Run:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelNotFound(f"{path} cannot be read: {error.strerror}.", _HINT) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} does not hold one Run: this is not one JSON document.",
            "Of a sweep's result file, add the Runs to the store first: mcp-core runs merge FILE.",
        ) from error
    try:
        return Run.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{path} is no Run: {validation_message(error)}.", _HINT) from error
