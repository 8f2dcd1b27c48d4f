"""The ids of tokens that llama.cpp's server swallows: those that end inside a character make no event of their own.

The event that completes the character carries its text and the newest id; the ids before follow from the text's
bytes. This file does not know how the server is asked.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from tokenizers import Tokenizer

__all__ = ["TokenBytes"]

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# GPT-2's printable stand-ins of the 256 bytes: these stand for themselves, the others begin at 256.
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))


class TokenBytes:
    """What each token of a tokenizer is in bytes: byte-level BPE, or SentencePiece with byte fallback."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._sentencepiece = tokenizer.token_to_id("<0x0A>") is not None

    def swallowed(self, text: str, newest: int, count: int) -> list[int] | None:
        """The ``count`` ids before ``newest``; all their bytes are ``text``. None where that does not tell them.

        It cannot where bytes made no character. Where bytes can be cut in several ways (the second and third of a
        four-byte character), the longest first token is taken, which is how merges cut them.
        """
        data, own = text.encode(), self.of(newest)
        if _REPLACEMENT in text or own is None or not data.endswith(own):
            return None
        return next(self._cuts(b"", data[: len(data) - len(own)], count), None)

    def of(self, token: int) -> bytes | None:
        """One token's bytes; None for an id without any."""
        name = self._tokenizer.id_to_token(token)
        return None if name is None else self._bytes(name)

    def ends_inside(self, token: int) -> bool:
        """Whether the server shows nothing of it until more tokens complete its character."""
        return _is_open(self.of(token) or b"")

    @functools.cached_property
    def whole_character(self) -> int:
        """A token that is one character."""
        return next(token for data, token in self._ids.items() if len(data) == 1 and data.isalpha())

    def _cuts(self, before: bytes, data: bytes, count: int) -> Iterator[list[int]]:
        """Ways to cut ``data`` into ``count`` tokens, each of which ends inside a character."""
        if count == 0:
            if not data:
                yield []
            return
        for end in range(len(data), 0, -1):
            token = self._ids.get(data[:end])
            if token is not None and _is_open(before + data[:end]):
                yield from ([token, *rest] for rest in self._cuts(before + data[:end], data[end:], count - 1))

    @functools.cached_property
    def _ids(self) -> dict[bytes, int]:
        special = self._tokenizer.get_added_tokens_decoder()
        named = self._tokenizer.get_vocab(with_added_tokens=False).items()
        return {self._bytes(name): token for name, token in named if token not in special}

    def _bytes(self, name: str) -> bytes:
        if self._sentencepiece:
            single = _BYTE_TOKEN.fullmatch(name)
            return bytes([int(single[1], 16)]) if single else name.replace("\u2581", " ").encode()
        try:
            return name.translate(_stand_ins()).encode("latin-1")
        except UnicodeEncodeError:  # an added token, written as it reads
            return name.encode()


@functools.cache
def _stand_ins() -> dict[int, int]:
    """For str.translate: the characters that stand for other bytes than their own -> those bytes, as Latin-1."""
    others = [byte for byte in range(256) if byte not in _PRINTABLE]
    return {256 + place: byte for place, byte in enumerate(others)}


def _is_open(data: bytes) -> bool:
    """Whether it ends inside a character, as llama.cpp's server judges it: by its last three bytes."""
    for back in (1, 2, 3):
        if back > len(data):
            return False
        byte = data[-back]
        wanted = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 0
        if wanted > back:
            return True
    return False
