"""ChunkReader: the events of one stream read by the form that they share.

A token's event is mostly what the one before was: another text, another token id. Once that is known of a stream,
such events need no JSON parser; every other event still gets one. This file does not know how events arrive.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from mcp_core.serving.chunk import Chunk, read_chunk

__all__ = ["ChunkReader"]

# A JSON string; what an escape in it means, json says.
_STRING = re.compile(rb'"([^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*)"')
_IDS = re.compile(rb'"token_ids": ?\[([0-9]+)\]')
_TEXTS = re.compile(rb'"(?:text|content|(reasoning_content|reasoning))": ?(?=")')
# Forms tried in one stream: a server whose events all differ costs no more than these.
_MOST_FORMS = 4
_ZERO = ord("0")
_TRIAL_TEXT, _TRIAL_ID = "\x7ftrial\x7f", 987654321


@dataclass(frozen=True, slots=True)
class _Form:
    """An event's bytes: head, a text, middle, a token id, tail; without an id there is no middle, either."""

    head: bytes
    middle: bytes | None
    tail: bytes
    reasons: bool

    def read(self, received_s: float, payload: bytes) -> Chunk | None:
        """The chunk that ``read_chunk`` would read; None where it is another form. One function, for its cost."""
        if not payload.startswith(self.head):
            return None
        found = _STRING.match(payload, len(self.head))
        if found is None:
            return None
        said, end = found[1], found.end()
        ids: tuple[int, ...] = ()
        if self.middle is None:
            if payload[end:] != self.tail:
                return None
        else:
            number = payload[end + len(self.middle) : -len(self.tail)]
            if not (payload.startswith(self.middle, end) and payload.endswith(self.tail) and number.isdigit()):
                return None
            if number[0] == _ZERO and len(number) > 1:
                return None  # which JSON does not allow
        try:
            if self.middle is not None:
                ids = (int(number),)
            text = json.loads(found[0]) if b"\\" in said else said.decode()
        except ValueError:
            return None
        if self.reasons:
            return Chunk(received_s, "", ids, None, None, None, text)
        return Chunk(received_s, text, ids)

    def written(self, text: str, number: int) -> bytes:
        """An event of this form."""
        ids = b"" if self.middle is None else self.middle + str(number).encode()
        return self.head + json.dumps(text).encode() + ids + self.tail


class ChunkReader:
    """Reads one stream's events, as ``read_chunk`` reads each of them."""

    def __init__(self) -> None:
        self._form: _Form | None = None
        self._tried = 0

    def read(self, received_s: float, payload: bytes) -> Chunk:
        """The event whose data this is. Raises nothing."""
        chunk = self._form.read(received_s, payload) if self._form is not None else None
        if chunk is None:
            chunk = read_chunk(received_s, payload)
            if chunk.has_token and self._tried < _MOST_FORMS:
                self._tried += 1
                self._form = _form_of(payload, chunk) or self._form
        return chunk


def _form_of(payload: bytes, chunk: Chunk) -> _Form | None:
    """The form of an event that carries a text and at most one id, and nothing else that is read."""
    if chunk.finish_reason is not None or chunk.usage is not None or chunk.error is not None:
        return None
    for said in _TEXTS.finditer(payload):
        string = _STRING.match(payload, said.end())
        if string is not None:
            form = _parted(payload, said.end(), string.end(), reasons=said[1] is not None)
            if _holds(form, chunk):
                return form
    return None


def _parted(payload: bytes, start: int, end: int, *, reasons: bool) -> _Form:
    ids = _IDS.search(payload, end)
    if ids is None:
        return _Form(payload[:start], None, payload[end:], reasons)
    return _Form(payload[:start], payload[end : ids.start(1)], payload[ids.end(1) :], reasons)


def _holds(form: _Form, chunk: Chunk) -> bool:
    """Whether text and id of such an event are what is read of it: tried with others in their places. A JSON parser
    is at the same point after the same bytes, so it then holds for every text and id."""
    ids = () if form.middle is None else (_TRIAL_ID,)
    text, reasoning = ("", _TRIAL_TEXT) if form.reasons else (_TRIAL_TEXT, "")
    wanted = chunk._replace(text=text, reasoning=reasoning, token_ids=ids)
    return read_chunk(chunk.received_s, form.written(_TRIAL_TEXT, _TRIAL_ID)) == wanted
