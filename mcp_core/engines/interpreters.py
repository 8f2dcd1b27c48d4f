"""Which Python interpreter runs another engine. Only those that this machine's user named are ever started.

A Recipe can come from anywhere and may name a path; a path that is executed must not. So the environment decides:
MCP_VLLM_PYTHON and MCP_SGLANG_PYTHON name one each, MCP_ENGINE_PYTHONS (os.pathsep list) further ones that a Recipe
may choose. This file does not start anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ALLOWED", "VARIABLES", "interpreter", "why_none"]

VARIABLES = {"vllm": "MCP_VLLM_PYTHON", "sglang": "MCP_SGLANG_PYTHON"}
ALLOWED = "MCP_ENGINE_PYTHONS"


def interpreter(engine: str, asked: str | None, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The interpreter of this engine, None where ``why_none`` says why. ``asked``: the Recipe's engine_python."""
    if why_none(engine, asked, environment):
        return None
    return _plain(asked or environment[VARIABLES[engine]])


def why_none(engine: str, asked: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """Why no interpreter can be run for this engine, as a sentence; empty where one can."""
    variable = VARIABLES[engine]
    text = asked or environment.get(variable)
    if not text:
        return f"no interpreter that has {engine} is named."
    path = _plain(text)
    if path not in _named(environment):
        return f"{text} is not among the interpreters that this machine's user allowed."
    if not path.is_file():
        return f"{path} does not exist."
    return "" if os.access(path, os.X_OK) else f"{path} cannot be executed."


def _named(environment: Mapping[str, str]) -> frozenset[Path]:
    texts = [environment.get(variable, "") for variable in VARIABLES.values()]
    texts += environment.get(ALLOWED, "").split(os.pathsep)
    return frozenset(_plain(text) for text in texts if text)


def _plain(text: str) -> Path:
    """Absolute, without ``..``; links stay, for a virtual environment's interpreter is one."""
    return Path(os.path.abspath(Path(text).expanduser()))  # noqa: PTH100 - resolve() follows links
