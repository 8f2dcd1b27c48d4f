"""Texts: the registry of what calibration and fidelity read; the built-in one, and the user's own by content hash.

Own texts are kept under MCP_HOME/texts. This file does not know how files are read (``text_files.py``), nor tokens:
how many passages a model makes of a text is found where it is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from mcp_core import paths
from mcp_core.documents import Document, Message, TextSet, text_set
from mcp_core.errors import InputError, StoreError
from mcp_core.text_files import read_documents, split_prose

__all__ = [
    "BUILTIN",
    "Document",
    "Message",
    "StoredText",
    "TextSet",
    "add",
    "builtin_calibration",
    "delete",
    "get",
    "list_texts",
    "text_set",
]

# How a Recipe names the built-in calibration text.
BUILTIN = "builtin"


@dataclass(frozen=True, slots=True)
class StoredText:
    """One of the user's texts in the registry."""

    sha256: str
    name: str
    documents: int
    characters: int
    added: datetime


@cache
def builtin_calibration() -> TextSet:
    """Jane Austen, *Emma*, volume I (public domain; data/README.md): about 60,000 tokens of English prose."""
    prose = (files("mcp_core") / "data" / "emma-volume-1.txt").read_text(encoding="utf-8")
    return text_set("Jane Austen, Emma, volume I", split_prose(prose, "prose"))


def add(name: str, content: bytes, title: str | None = None) -> TextSet:
    """Keep the text of a file; ``name`` is the file's, whose ending says how it is read; ``title`` is shown.

    Adding the same text again changes what it is called only. Raises InputError as ``text_files.read_documents``.
    """
    kept = text_set(title or name, read_documents(name, content))
    path = _folder() / f"{kept.sha256}.json"
    document = {
        "name": kept.name,
        "added": datetime.now(UTC).isoformat(),
        "documents": [asdict(each) for each in kept.documents],
    }
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(document, ensure_ascii=False))
    fresh.replace(path)
    return kept


def get(sha256: str) -> TextSet:
    """The text of that hash, or the built-in one for "builtin". Raises InputError when it is not kept here."""
    if sha256 == BUILTIN:
        return builtin_calibration()
    document = _read(_path(sha256))
    return TextSet(document["name"], sha256, tuple(_document(each) for each in document["documents"]))


def list_texts() -> tuple[StoredText, ...]:
    """The user's texts, newest first."""
    return tuple(sorted(map(_stored, _folder().glob("*.json")), key=lambda each: each.added, reverse=True))


def delete(sha256: str) -> None:
    """Remove one. Raises InputError when it is not kept here; the first characters of a hash name nothing."""
    _path(sha256).unlink()


def _folder() -> Path:
    return paths.home("texts")


def _path(sha256: str) -> Path:
    path = _folder() / f"{sha256}.json"
    if not re.fullmatch(r"[0-9a-f]{64}", sha256) or not path.is_file():
        raise InputError(
            f'There is no text "{sha256[:64]}" on this machine.',
            "mcp-core texts lists them; add one: mcp-core texts add FILE.",
        )
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"The text {path} cannot be read.", "Delete it, and add the file again.") from error
    return document


def _document(kept: Mapping[str, Any]) -> Document:
    messages = tuple(Message(each["role"], each["content"]) for each in kept["messages"])
    return Document(kept["name"], kept["text"], messages, kept["stratum"])


def _stored(path: Path) -> StoredText:
    document = _read(path)
    documents = [_document(each) for each in document["documents"]]
    return StoredText(
        sha256=path.stem,
        name=document["name"],
        documents=len(documents),
        characters=sum(each.characters for each in documents),
        added=datetime.fromisoformat(document["added"]),
    )
