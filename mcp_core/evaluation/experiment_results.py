"""The latest result of each experiment on this machine's devices, kept under MCP_HOME as one JSON file each.

This file does not know how a result is measured or shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from mcp_core import paths
from mcp_core.evaluation.experiment_values import ExperimentResult
from mcp_core.hardware import Hardware

__all__ = ["keep", "latest"]


def keep(result: ExperimentResult) -> None:
    """In place of an earlier result of the same experiment on the same device."""
    path = _folder() / f"{result.name}-{_digest(result.device_name)}.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(result.model_dump_json(indent=2) + "\n")
    fresh.replace(path)


def latest(machine: Hardware) -> dict[str, ExperimentResult]:
    """By the experiment's name, the newest result on any of this machine's devices."""
    names = {device.name for device in machine.devices}
    here = [result for result in _all() if result.device_name in names]
    return {result.name: result for result in sorted(here, key=lambda result: result.created)}


def _all() -> Iterable[ExperimentResult]:
    for path in sorted(_folder().glob("*.json")):
        try:
            yield ExperimentResult.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue  # of another version, or a wreck: it is measured again


def _folder() -> Path:
    return paths.home("experiments")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
