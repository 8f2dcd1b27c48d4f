"""Document, Message, TextSet: text as calibration and fidelity read it, named by its content.

This file does not know where texts come from (``texts.py``, ``text_files.py``) or what tokens are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mcp_core.errors import InputError

__all__ = ["Document", "Message", "TextSet", "require_disjoint", "text_set"]

Role = Literal["system", "user", "assistant"]

# Two texts overlap where they share this many letters and digits in a row: longer than a common phrase.
# Every run of at least _RUN + _STRIDE is found: a run of _RUN is looked for, at every _STRIDE-th place of one text.
_RUN = 100
_STRIDE = 50


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    """A passage of plain ``text``, or a chat's ``messages``, which go through the model's chat template.

    Exactly one of the two is there. A prompt is a chat of one user message. ``stratum`` is the kind of text
    ("prose", "code", ...); ``name`` tells documents of one set apart.
    """

    name: str
    text: str | None = None
    messages: tuple[Message, ...] = ()
    stratum: str = "own"

    def __post_init__(self) -> None:
        assert (self.text is None) != (not self.messages), "a document is a text or a chat"

    @property
    def characters(self) -> int:
        """Characters of the text, or of all messages."""
        return len(self.text or "") + sum(len(message.content) for message in self.messages)

    @property
    def opening(self) -> str:
        """Its first words, for people."""
        words = (self.text or self.messages[-1].content).split()
        return " ".join(words[:8])


@dataclass(frozen=True, slots=True)
class TextSet:
    """Documents in order. ``sha256`` is of their content and order alone, not of names or strata."""

    name: str
    sha256: str
    documents: tuple[Document, ...]

    @property
    def characters(self) -> int:
        """Characters of all documents."""
        return sum(document.characters for document in self.documents)


def text_set(name: str, documents: Sequence[Document]) -> TextSet:
    """A set of these documents with its content hash."""
    content = [
        document.text if document.text is not None else [[each.role, each.content] for each in document.messages]
        for document in documents
    ]
    canonical = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return TextSet(name, hashlib.sha256(canonical.encode()).hexdigest(), tuple(documents))


def require_disjoint(calibration: TextSet, evaluation: TextSet) -> None:
    """Raise InputError naming the overlap when a passage of ``evaluation`` stands in ``calibration`` too.

    Letters and digits alone are compared, so other line breaks, quotes or capitals hide nothing. A shared run of
    150 of them is always found wherever passages begin, one under 100 is none; shorter passages must be equal.
    System messages may be shared.
    """
    seen = {key for document in calibration.documents for key in _marks(_normal(document))}
    shared = [each for each in evaluation.documents if any(key in seen for key in _windows(_normal(each)))]
    if shared:
        raise InputError(
            f'{len(shared)} of {len(evaluation.documents)} passages of "{evaluation.name}" stand in the '
            f'calibration text "{calibration.name}" too, the first: "{shared[0].opening} ...".',
            "Evaluate on text that the scheme was not calibrated on.",
        )


def _normal(document: Document) -> str:
    said = (message.content for message in document.messages if message.role != "system")
    text = document.text if document.text is not None else "\n".join(said)
    return "".join(filter(str.isalnum, text.casefold()))


def _marks(normal: str) -> Iterator[str]:
    """What is remembered of a calibration passage: a run at every _STRIDE-th place, or all of a short one."""
    if 0 < len(normal) < _RUN:
        yield normal
    for start in range(0, len(normal) - _RUN + 1, _STRIDE):
        yield normal[start : start + _RUN]


def _windows(normal: str) -> Iterator[str]:
    """What is looked for of an evaluation passage: every run."""
    if 0 < len(normal) < _RUN:
        yield normal
    for start in range(len(normal) - _RUN + 1):
        yield normal[start : start + _RUN]
