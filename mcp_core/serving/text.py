"""Text from tokens, one token at a time: detokenization, stop strings, the texts of single tokens.

This file does not know about requests, HTTP or log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from mcp_core.sections import profile_section

__all__ = ["Detokenizer", "StopStrings", "TokenTexts", "encode"]

_REPLACEMENT = "\ufffd"
# Prompt tokens decoded along, so that the first token keeps the space that some decoders strip at the start.
_CONTEXT_TOKENS = 5
# A character has at most four bytes; more tokens than this without one are bytes that make no character.
_MAX_PENDING = 8


def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
    """Token ids of a text. Unlike ``Tokenizer.encode`` it lets other threads run meanwhile and skips offsets."""
    return tuple(tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)


class Detokenizer:
    """Turns a stream of token ids into text; the pieces join to what decoding all at once gives.

    A token that ends inside a character gives "" and the character comes with the token that completes it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._ids = list(prompt[-_CONTEXT_TOKENS:])
        self._read = len(self._ids)  # ids before this are out already; they are context
        self._context = self._decode(self._ids)

    def push(self, token: int) -> str:
        """The text that this token completes."""
        with profile_section("detokenization"):
            return self._push(token)

    def _push(self, token: int) -> str:
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(_REPLACEMENT) and len(self._ids) - self._read <= _MAX_PENDING:
            return ""
        return self._take(text)

    def flush(self) -> str:
        """What is left when no token follows: bytes that make no character come out as U+FFFD."""
        return self._take(self._decode(self._ids))

    def _take(self, text: str) -> str:
        piece = text[len(self._context) :]
        if piece or len(self._ids) > self._read + _MAX_PENDING:
            self._ids = self._ids[self._read :]
            self._read = len(self._ids)
            self._context = self._decode(self._ids)
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._skip_special)
        return text


class StopStrings:
    """Cuts a stream of text at the first stop string, holding back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that may be shown now, and whether a stop string was met (it and what follows are dropped)."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What is still held when the stream ends without a stop string."""
        held, self._held = self._held, ""
        return held


class TokenTexts:
    """The text and the bytes of single tokens, as log-probability lists show them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Decoded after another token, because some decoders strip a leading space from the first.
        self._anchor: list[int] = tokenizer.encode("a", add_special_tokens=False).ids[-1:]
        self._anchor_text = tokenizer.decode(self._anchor, skip_special_tokens=False)
        self._texts: dict[int, str] = {}

    def text(self, token: int) -> str:
        """Its text; ``bytes:\\xf0\\x9f`` for a token that is part of a character, as OpenAI writes it."""
        known = self._texts.get(token)
        if known is None:
            text = self._plain(token)
            known = (
                text if _REPLACEMENT not in text else "bytes:" + "".join(f"\\x{b:02x}" for b in self.bytes(token))
            )
            self._texts[token] = known
        return known

    def bytes(self, token: int) -> bytes:
        """Its UTF-8 bytes, which for part of a character are not a text."""
        text = self._plain(token)
        if _REPLACEMENT not in text:
            return text.encode()
        symbol = self._tokenizer.id_to_token(token) or ""
        if len(symbol) == 6 and symbol.startswith("<0x") and symbol.endswith(">"):
            return bytes([int(symbol[3:5], 16)])
        if all(character in _BYTE_OF for character in symbol):
            return bytes(_BYTE_OF[character] for character in symbol)
        return text.encode()

    def _plain(self, token: int) -> str:
        text: str = self._tokenizer.decode([*self._anchor, token], skip_special_tokens=False)
        return text[len(self._anchor_text) :]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


def _byte_symbols() -> dict[str, int]:
    """GPT-2's alphabet of byte-level tokenizers: printable bytes stand for themselves, others from U+0100 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_symbols()
