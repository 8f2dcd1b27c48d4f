"""Shipment: what is to be deployed: a Recipe with the Run or Decision that speaks for it.

This file does not know how it is deployed (``export.py``) or where Runs are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mcp_core.decision.decision import Decision
from mcp_core.errors import InputError, ModelNotFound
from mcp_core.recipe import Recipe, validation_message
from mcp_core.results import Measurement, Run
from mcp_core.workload import Workload

__all__ = ["Shipment", "holds_decision", "of_decision", "of_run", "read_decision", "read_shipment"]

_HINT = "Give a Run's id, a file that bench --out wrote, or one that recommend --out wrote."


@dataclass(frozen=True, slots=True)
class Shipment:
    """One configuration, what was measured of it, and the Decision that chose it, if any.

    ``run`` is None where the Decision's Run is not in this store: its figures are the Decision's then.
    """

    recipe: Recipe
    workload: Workload
    evidence: str
    run: Run | None = None
    decision: Decision | None = None

    @property
    def run_id(self) -> str:
        """The Run that stands for it."""
        if self.run is not None:
            return self.run.id
        assert self.decision is not None
        assert self.decision.winner is not None
        return self.decision.winner.run

    @property
    def measurement(self) -> Measurement | None:
        """What was measured of it."""
        return self.run.measurement if self.run else None

    def is_confirmed_on(self, engine: str) -> bool:
        """Whether a deployment on this engine was measured: only then it is a recommendation."""
        return self.evidence == f"confirmed on {engine}"

    @property
    def max_context(self) -> int:
        """Longest prompt and reply, tokens. Raises InputError where neither Recipe nor Run says it."""
        asked = self.recipe.kv.max_context
        if asked is not None:
            return asked
        if self.run is not None and self.run.effective is not None:
            return self.run.effective.max_context
        raise InputError(
            "The context length of this configuration is not known: the Recipe leaves it open and its Run is not "
            "in this store.",
            "Set kv.max_context in the Recipe, or merge the store that has the Run (mcp-core runs merge FILE).",
        )


def of_run(run: Run) -> Shipment:
    """The configuration of one Run. Raises InputError for a Run that measured nothing, or a server of others."""
    if run.status != "ok" or run.measurement is None:
        raise InputError(
            f"Run {run.id} measured nothing ({run.status}): there is no figure that speaks for it.",
            "Choose a Run that ended well.",
        )
    _require_known(run.recipe)
    return Shipment(run.recipe, run.workload, run.evidence, run)


def of_decision(decision: Decision, find: Callable[[str], Run | None] = lambda run_id: None) -> Shipment:
    """The winner of a Decision. Raises InputError where there is none."""
    winner = decision.winner
    if winner is None:
        raise InputError(f"This Decision has no winner: {decision.answer}", "Change the Goal, or measure more.")
    _require_known(winner.recipe)
    return Shipment(winner.recipe, winner.workload, winner.evidence_text, find(winner.run), decision)


def read_decision(path: Path) -> Decision:
    """The Decision in a file. Raises ModelNotFound where there is no such file, InputError for another document."""
    written_by = "mcp-core recommend GOAL --out FILE writes one."
    content = _bytes_of(path, written_by)
    try:
        return Decision.from_json(content)
    except InputError as error:
        if not _is_run(content):
            raise
        raise InputError(f"{path} holds a Run and no Decision.", written_by) from error


def holds_decision(path: Path) -> bool:
    """Whether the file's document is a Decision's and not a Run's. Raises ModelNotFound, InputError for no JSON."""
    return _is_decision(_document(path))


def read_shipment(text: str, find: Callable[[str], Run | None]) -> Shipment:
    """By a Run's id, or from a file that holds a Run or a Decision. Raises ModelNotFound, InputError."""
    path = Path(text)
    if not path.is_file():
        run = find(text)
        if run is None:
            raise ModelNotFound(f'There is no Run and no file "{text}".', _HINT)
        return of_run(run)
    document = _document(path)
    if _is_decision(document):
        return of_decision(Decision.from_dict(document), find)
    try:
        return of_run(Run.model_validate(document))
    except ValidationError as error:
        raise InputError(f"{path} is neither a Run nor a Decision: {validation_message(error)}.", _HINT) from error


def _is_decision(document: Any) -> bool:
    return isinstance(document, dict) and "goal" in document


def _is_run(content: bytes) -> bool:
    """Of a document that is no Decision: whether it is what ``bench --out`` wrote."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and {"recipe", "workload", "status"} <= document.keys()


def _require_known(recipe: Recipe) -> None:
    if recipe.model.source == "endpoint":
        raise InputError(
            f"{recipe.model.id} is a server that someone else set up: its configuration is not known here.",
            "Choose a Run of a model that MCP loaded.",
        )


def _bytes_of(path: Path, hint: str = _HINT) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelNotFound(f"{path} cannot be read: {error.strerror}.", hint) from error


def _document(path: Path) -> Any:
    try:
        return json.loads(_bytes_of(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.", _HINT) from error
