"""Remarks: the tags and the note that people give a Run. A frozen value.

It stands apart from the Run, which is what was measured and is never edited. This file does not know where they are
kept (``store.py``).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, ValidationError

from mcp_core.errors import InputError
from mcp_core.recipe import validation_message
from mcp_core.results import now

__all__ = ["NOTE_LETTERS", "TAG_LETTERS", "Remarks"]

TAG_LETTERS = 40
NOTE_LETTERS = 4_000


def _is_text(text: str) -> bool:
    """Whether every database and terminal takes it: no control characters, no halves of letters."""
    return all(letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs") for letter in text)


def _tag(text: str) -> str:
    tag = " ".join(unicodedata.normalize("NFC", text).split())
    if not 0 < len(tag) <= TAG_LETTERS or "," in tag or not _is_text(tag):
        raise ValueError(f"a tag has 1 to {TAG_LETTERS} letters and no comma")
    return tag


def _tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(tags)))


def _note(text: str) -> str:
    note = text.replace("\r\n", "\n").strip()
    if len(note) > NOTE_LETTERS or not _is_text(note):
        raise ValueError(f"a note has at most {NOTE_LETTERS:,} letters, no control characters")
    return note


class Remarks(BaseModel):
    """``noted`` is when the note was written or emptied last; None: there never was one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tags: Annotated[tuple[Annotated[str, AfterValidator(_tag)], ...], AfterValidator(_tags)] = ()
    note: Annotated[str, AfterValidator(_note)] = ""
    noted: AwareDatetime | None = None

    def with_tags(self, tags: Iterable[str]) -> Self:
        """These tags and no others. Raises InputError for one that is none."""
        return self._changed(tags=tuple(tags))

    def with_note(self, note: str) -> Self:
        """This note, or none where it is empty. Raises InputError for one that is too long."""
        changed = self._changed(note=note, noted=now())
        return self if changed.note == self.note else changed

    def merged(self, other: Remarks) -> Self:
        """The tags of both, and the note that was written or emptied last."""
        newer = other if other.noted and (self.noted is None or other.noted > self.noted) else self
        return self._changed(tags=(*self.tags, *other.tags), note=newer.note, noted=newer.noted)

    def _changed(self, **values: object) -> Self:
        try:
            return type(self).model_validate(self.model_dump() | values)
        except ValidationError as error:
            raise InputError(f"{validation_message(error)}.", "Nothing was changed.") from error
