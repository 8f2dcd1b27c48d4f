"""Where MCP keeps things: one home folder, overridable by MCP_HOME.

This file does not know what is kept there.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from mcp_core.errors import StoreError

__all__ = ["home", "model_roots", "store_url"]


def home(*parts: str) -> Path:
    """A folder under MCP_HOME (else the platform's user data folder), created, readable by its owner only.

    Raises StoreError when it cannot be made.
    """
    root = Path(os.environ.get("MCP_HOME") or platformdirs.user_data_dir("mcp-core", appauthor=False))
    folder = root.expanduser()
    try:
        for part in ("", *parts):  # one by one: parents that mkdir makes along are open to everybody
            folder /= part
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreError(
            f"The folder {folder} cannot be made: {error.strerror}.", "Set MCP_HOME to a folder you can write."
        ) from error
    return folder


def model_roots() -> tuple[Path, ...]:
    """Folders that local models may be loaded from: MCP_MODEL_ROOTS (os.pathsep list), else the user's home
    and the working folder; MCP_HOME's models always."""
    listed = os.environ.get("MCP_MODEL_ROOTS")
    roots = [Path(item) for item in listed.split(os.pathsep) if item] if listed else [Path.home(), Path.cwd()]
    return tuple(root.expanduser().resolve() for root in (*roots, home("models")))


def store_url() -> str:
    """SQLAlchemy URL of the results store: MCP_STORE_URL, else SQLite under MCP_HOME."""
    return os.environ.get("MCP_STORE_URL") or f"sqlite:///{home() / 'runs.sqlite'}"
