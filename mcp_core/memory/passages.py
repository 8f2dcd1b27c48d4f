"""A text as passages of token ids for one model, all of the same length.

This file does not know what the passages are for, nor where texts are kept (``texts.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import torch

from mcp_core.documents import Document, TextSet
from mcp_core.errors import RecipeError
from mcp_core.models.calibration_memory import held_out_count
from mcp_core.models.text_codec import TextCodec
from mcp_core.recipe import Calibration
from mcp_core.serving.chat_template import ChatTemplate

__all__ = ["Passages", "held_out", "passages", "random_passages"]

Passages = Sequence[Sequence[int]]

_SEED = 0


def passages(text: TextSet, codec: TextCodec, wanted: Calibration) -> Passages:
    """``wanted.samples`` passages of ``wanted.tokens`` tokens, spread evenly over the text.

    Documents follow one another; chats go through the model's template. Each passage begins with the special
    tokens that the tokenizer puts before a text, as a request's prompt does. Raises RecipeError when the text is
    too short, and RequestRejected when the template refuses a chat.
    """
    begin = _special_beginning(codec)
    length = wanted.tokens - len(begin)
    stream = codec.tokenizer.encode(_joined(text.documents, codec), add_special_tokens=False).ids
    found = len(stream) // length
    if found < wanted.samples:
        raise RecipeError(
            f'quantization.calibration: "{text.name}" has {found} passages of {wanted.tokens} tokens for this '
            f"model; {wanted.samples} are asked.",
            f"Set calibration.samples to at most {found}, or give a longer text."
            if found
            else "Give a longer text, or set calibration.tokens lower.",
        )
    starts = (index * found // wanted.samples * length for index in range(wanted.samples))
    return [[*begin, *stream[start : start + length]] for start in starts]


def random_passages(vocab: int, wanted: Calibration) -> Passages:
    """The same tokens for the same sizes, drawn evenly: for weights that are random too."""
    generator = torch.Generator().manual_seed(_SEED)
    drawn: list[list[int]] = torch.randint(vocab, (wanted.samples, wanted.tokens), generator=generator).tolist()
    return drawn


def held_out(token_ids: Passages) -> tuple[Passages, Passages]:
    """Most passages, and a few to judge on, spread evenly; a single one is both."""
    if len(token_ids) == 1:
        return token_ids, token_ids
    count = held_out_count(len(token_ids))
    chosen = {index * len(token_ids) // count for index in range(count)}
    rest = [ids for index, ids in enumerate(token_ids) if index not in chosen]
    return rest, [token_ids[index] for index in sorted(chosen)]


def _special_beginning(codec: TextCodec) -> list[int]:
    plain = codec.tokenizer.encode("a", add_special_tokens=False).ids
    whole: list[int] = codec.tokenizer.encode("a").ids
    return whole[: whole.index(plain[0])]


def _joined(documents: Iterable[Document], codec: TextCodec) -> str:
    documents = tuple(documents)
    chats = [document for document in documents if document.messages]
    rendered = iter(asyncio.run(_render(chats, codec)) if chats else ())
    return "\n\n".join(next(rendered) if each.text is None else each.text for each in documents)


async def _render(chats: Sequence[Document], codec: TextCodec) -> list[str]:
    template = ChatTemplate(codec.chat_template, codec.template_tokens)
    try:
        return [
            await template.render([{"role": turn.role, "content": turn.content} for turn in chat.messages])
            for chat in chats
        ]
    finally:
        await template.close()
