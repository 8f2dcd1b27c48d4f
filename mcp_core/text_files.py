"""A user's file as documents: .txt is split into passages, .jsonl and .csv have a row a document.

This file does not know where texts are kept (``texts.py``) or what tokens are.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from mcp_core.documents import Document, Message, Role
from mcp_core.errors import InputError

__all__ = ["MOST_BYTES", "TOO_SMALL_CHARACTERS", "read_documents", "split_prose"]

MOST_BYTES = 32 * 2**20
# Fewer characters than this are not one passage of the shortest length that calibration takes (16 tokens).
TOO_SMALL_CHARACTERS = 200
# A passage of plain text ends with the paragraph in which it reaches this: about 500 tokens of English.
_PASSAGE_CHARACTERS = 2000
_ROW = 'A row has "text", "prompt" or "messages", and may have "stratum".'


def read_documents(name: str, content: bytes) -> tuple[Document, ...]:
    """The documents of a file; its ending says how it is read: .jsonl, .csv, else plain text.

    Raises InputError: empty, too large, not UTF-8, binary, malformed rows, under 200 characters in all.
    """
    text = _decode(name, content)
    ending = name.lower().rpartition(".")[2]
    if ending == "jsonl":
        documents = tuple(_rows(name, _json_rows(name, text)))
    elif ending == "csv":
        documents = tuple(_rows(name, _csv_rows(name, text)))
    else:
        documents = split_prose(text, "own")
    _require_unicode(name, documents)
    size = sum(document.characters for document in documents)
    if size < TOO_SMALL_CHARACTERS:
        raise InputError(
            f"{name} has {size} characters of text; at least {TOO_SMALL_CHARACTERS} are needed for one passage.",
            "Give a longer text: a few pages like what the model will read.",
        )
    return documents


def split_prose(text: str, stratum: str) -> tuple[Document, ...]:
    """Passages of about 2,000 characters that end with a paragraph, or a sentence where a paragraph is longer."""
    passages = list(_passages(text))
    return tuple(Document(f"passage {index}", text=each, stratum=stratum) for index, each in enumerate(passages, 1))


def _decode(name: str, content: bytes) -> str:
    if not content.strip():
        raise InputError(f"{name} is empty.", "Give a text of a few pages.")
    if len(content) > MOST_BYTES:
        raise InputError(
            f"{name} has {len(content) / 1e6:,.0f} MB; at most {MOST_BYTES / 1e6:,.0f} MB are read.",
            "Give a part of it: calibration and fidelity read a few hundred kB.",
        )
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{name} is UTF-16, not UTF-8.", _save_as_utf8(name, "UTF-16"))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{name} is not UTF-8: byte 0x{content[error.start]:02x} at position {error.start:,} (line {line:,}).",
            _save_as_utf8(name, "WINDOWS-1252"),
        ) from error
    if "\0" in text:
        raise InputError(f"{name} is a binary file, not text.", "Give a .txt, .jsonl or .csv file.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _save_as_utf8(name: str, encoding: str) -> str:
    return f"Save it as UTF-8, for example: iconv -f {encoding} -t UTF-8 {name} > utf8-{name}"


def _passages(text: str) -> Iterator[str]:
    passage = ""
    for paragraph in _paragraphs(text):
        passage = f"{passage}\n\n{paragraph}" if passage else paragraph
        if len(passage) >= _PASSAGE_CHARACTERS:
            yield passage
            passage = ""
    if passage:
        yield passage


def _paragraphs(text: str) -> Iterator[str]:
    """Blocks between blank lines; one that is longer than a passage in pieces, cut after a sentence or a word."""
    for block in re.split(r"\n\s*\n", text):
        rest = block.strip("\n")
        while len(rest) > 2 * _PASSAGE_CHARACTERS:
            cut = _end_of_piece(rest)
            yield rest[:cut].strip()
            rest = rest[cut:].lstrip()
        if rest.strip():
            yield rest


def _end_of_piece(text: str) -> int:
    window = text[:_PASSAGE_CHARACTERS]
    for mark in ("\n", ". ", "。", " "):
        found = window.rfind(mark)
        if found > _PASSAGE_CHARACTERS // 2:
            return found + len(mark)
    return _PASSAGE_CHARACTERS


def _require_unicode(name: str, documents: Iterable[Document]) -> None:
    """JSON can escape half of a surrogate pair, which has no UTF-8 and no tokens."""
    for document in documents:
        said = (document.stratum, document.text or "", *(message.content for message in document.messages))
        if any("\ud800" <= character <= "\udfff" for character in "".join(said)):
            raise InputError(f"{name}, {document.name}, has half of a surrogate pair.", "Write valid Unicode.")


def _json_rows(name: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, row in enumerate(text.split("\n"), 1):
        if not row.strip():
            continue
        try:
            document = json.loads(row)
        except json.JSONDecodeError as error:
            raise InputError(f"{name}, line {line}, is not JSON: {error.msg}.", f"A line a row. {_ROW}") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
            raise InputError(f"{name}, line {line}, cannot be read: {error}.", f"A line a row. {_ROW}") from error
        if not isinstance(document, dict):
            raise InputError(f"{name}, line {line}, is not a JSON object.", f"A line a row. {_ROW}")
        yield line, document


def _csv_rows(name: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if not {"text", "prompt", "messages"} & set(reader.fieldnames or ()):
            raise InputError(f'{name} has no column "text", "prompt" or "messages" in its first line.', _ROW)
        for row in reader:
            yield reader.line_num, {key: value for key, value in row.items() if key and value}
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}, is not CSV: {error}.", _ROW) from error


def _rows(name: str, rows: Iterator[tuple[int, Mapping[str, Any]]]) -> Iterator[Document]:
    for line, row in rows:
        given = [key for key in ("text", "prompt", "messages") if row.get(key)]
        if len(given) != 1:
            what = f"has {' and '.join(given)}" if given else "has no text"
            raise InputError(f"{name}, line {line}, {what}.", _ROW)
        stratum = str(row.get("stratum") or "own")
        if given == ["messages"]:
            messages = _messages(name, line, row["messages"])
            yield Document(f"row {line}", messages=messages, stratum=stratum)
            continue
        said = row[given[0]]
        if not isinstance(said, str):
            raise InputError(f'{name}, line {line}: "{given[0]}" is not a text.', _ROW)
        if given == ["prompt"]:
            yield Document(f"row {line}", messages=(Message("user", said),), stratum=stratum)
        else:
            yield Document(f"row {line}", text=said, stratum=stratum)


def _messages(name: str, line: int, given: Any) -> tuple[Message, ...]:
    try:
        turns = json.loads(given) if isinstance(given, str) else given
        messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _bad_messages(name, line) from error
    plain = all(each.role in get_args(Role) and isinstance(each.content, str) for each in messages)
    if not messages or not plain:
        raise _bad_messages(name, line)
    return messages


def _bad_messages(name: str, line: int) -> InputError:
    return InputError(
        f'{name}, line {line}: "messages" is not a list of {{"role", "content"}}.',
        f"Roles are {', '.join(get_args(Role))}; content is text.",
    )
