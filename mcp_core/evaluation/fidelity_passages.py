"""From a text to passages of ids with the reference at hand: plain documents, chats with its own greedy replies.

This file does not know candidates, or how passages are scored (``fidelity_scoring.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mcp_core.documents import Document
from mcp_core.errors import ContextTooLong, InputError
from mcp_core.evaluation.fidelity_plan import Plan
from mcp_core.evaluation.fidelity_text import (
    Passage,
    decoded_passages,
    plain_passage,
    require_scored,
    within_context,
)
from mcp_core.generation import GenerationRequest, Sampling
from mcp_core.inference.decoding import Decoder
from mcp_core.inference.kv_cache import cache_factory
from mcp_core.models.loaded import LoadedModel, Report
from mcp_core.recipe import Recipe
from mcp_core.serving.chat_template import ChatTemplate
from mcp_core.serving.text import encode

__all__ = ["REPLY_TOKENS", "fresh_cache", "make_passages", "require_same_tokens"]

# The longest greedy reply of the reference that is scored.
REPLY_TOKENS = 128


def make_passages(
    plan: Plan, reference: LoadedModel, report: Report, check: Callable[[], None]
) -> tuple[tuple[Passage, ...], tuple[str, ...]]:
    """The plan's text as ids, cut to what its path and the context take, and notes on what was left out.

    ``check`` raises when the work is to end. Raises ContextTooLong, InputError for too little text, RequestRejected
    from the chat template.
    """
    documents = plan.text.documents
    plain = [_plain(each, reference) for each in documents if each.text is not None]
    chats = [each for each in documents if each.text is None]
    replied = list(_Replies(reference, report, check).of(chats)) if chats else []
    kept, note = within_context((*plain, *replied), reference.max_context)
    scored = require_scored(kept, plan.text.name)
    if plan.path == "decode":
        scored = decoded_passages(scored, plan.prefill_tokens)
    return scored, (note,) if note else ()


def require_same_tokens(plan: Plan, reference: Any, candidate: Any) -> None:
    """Raise InputError unless both tokenizers read the plan's texts alike; one model's own two need no look."""
    if plan.original is None:
        return
    for document in plan.text.documents:
        text = document.text or document.messages[-1].content
        one, other = (encode(each, text, add_special_tokens=True) for each in (reference, candidate))
        if one != other:
            raise InputError(
                f'{plan.original.title} cannot be the original of {plan.resolved.title}: "{document.opening} ..." '
                f"is {len(one)} tokens to the one and {len(other)} other tokens to the other.",
                "Name the checkpoint that it was made of.",
            )


def fresh_cache(loaded: LoadedModel, recipe: Recipe, passages: Sequence[Passage]) -> Any:
    """An empty cache of the Recipe's kind; a static one is as long as the longest passage, not as the context."""
    longest = max(len(each.ids) for each in passages)
    kv = recipe.kv
    return cache_factory(kv.kind, loaded.model.config, longest, window=kv.window, bits=kv.bits)()


def _plain(document: Document, reference: LoadedModel) -> Passage:
    assert document.text is not None, "a plain document"
    return plain_passage(document, encode(reference.tokenizer, document.text, add_special_tokens=True))


class _Replies:
    """The reference's own answers to chats: what it says greedily, at most REPLY_TOKENS."""

    def __init__(self, reference: LoadedModel, report: Report, check: Callable[[], None]) -> None:
        self._reference = reference
        self._report = report
        self._check = check
        self._decoder = Decoder(reference.model, reference.eos_ids, reference.max_context)

    def of(self, chats: Sequence[Document]) -> Iterator[Passage]:
        """Each chat with its reply, which alone is scored. A last message of the assistant is not read."""
        prompts = asyncio.run(_render(self._reference, [_question(each) for each in chats]))
        for number, (document, text) in enumerate(zip(chats, prompts, strict=True)):
            self._report("replies", number / len(chats), "The reference answers the prompts.")
            prompt = encode(self._reference.tokenizer, text, add_special_tokens=False)
            yield Passage(document, prompt + self._reply(document.name, prompt), len(prompt), is_reply=True)

    def _reply(self, name: str, prompt: tuple[int, ...]) -> tuple[int, ...]:
        if len(prompt) >= self._reference.max_context:
            raise ContextTooLong(
                f"The prompt of {name} has {len(prompt):,} tokens; the context holds "
                f"{self._reference.max_context:,}, reply included.",
                "Raise kv.max_context in the Recipe, or shorten the prompt.",
            )
        request = GenerationRequest(name, prompt, REPLY_TOKENS, Sampling(temperature=0))
        cache = cache_factory("dynamic", self._reference.model.config, self._reference.max_context)()
        reply = []
        for step in self._decoder.steps(request, cache, lambda: False):
            self._check()
            reply += [] if step.token is None else [step.token]
        return tuple(reply)


def _question(document: Document) -> list[dict[str, str]]:
    *before, last = document.messages
    asked = before if before and last.role == "assistant" else document.messages
    return [{"role": each.role, "content": each.content} for each in asked]


async def _render(reference: LoadedModel, chats: Sequence[list[dict[str, str]]]) -> list[str]:
    template = ChatTemplate(reference.chat_template, reference.template_tokens)
    try:
        return [await template.render(messages) for messages in chats]
    finally:
        await template.close()
