"""What the switches changed for one chat: the figures of its replies by how each was served. Pure.

This file does not know how a switch is set (``chat_switches.py``) or how a figure is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mcp_core.recipe import Recipe
from mcp_core.views import Message, ReplyStats
from pages._ui import format as fmt

__all__ = ["guess_words", "headline", "known_words", "reply_rows", "switch_words"]

_STEPS = {"graphs": "recorded steps", "compiled": "compiled steps", "autotuned": "tuned steps"}
_KV = {"dynamic": "", "off": "no KV cache"}


def switch_words(recipe: Recipe) -> str:
    """ "batching continuous · prefix cache": what the switches stand at."""
    words = [f"batching {recipe.batching.mode}"]
    words += ["prefix cache"] if recipe.prefix_cache else []
    words += filter(None, [_KV.get(recipe.kv.kind, f"{recipe.kv.kind} KV cache")])
    words += [] if recipe.compile == "off" else [_STEPS[recipe.compile]]
    words += [] if recipe.speculation == "off" else [f"{recipe.speculation} guesses"]
    return " · ".join(words)


def known_words(stats: ReplyStats) -> str | None:
    """ "812 of 840 prompt tokens known", None where a cache saved nothing."""
    if not stats.cached_tokens or stats.prompt_tokens is None:
        return None
    return f"{stats.cached_tokens:,} of {fmt.count(stats.prompt_tokens, 'prompt token')} known"


def guess_words(stats: ReplyStats) -> str | None:
    """ "18 of 30 guessed tokens kept", None where nothing was guessed or it is not known."""
    if not stats.drafted_tokens:
        return None
    return f"{stats.accepted_tokens or 0:,} of {fmt.count(stats.drafted_tokens, 'guessed token')} kept"


def headline(messages: Sequence[Message]) -> str | None:
    """What the last change of the switches did, in one sentence; None while there is nothing to compare.

    The newest reply beside the newest one that was served otherwise: to the same question where it was regenerated.
    """
    replies = list(_replies(messages))
    if not replies:
        return None
    now = replies[-1]
    before = next((each for each in reversed(replies) if _words(each) != _words(now)), None)
    if before is None or now.stats is None or before.stats is None:
        return None
    same = any(each is before for each in messages[-1].replaced)
    facts = list(filter(None, (known_words(now.stats), guess_words(now.stats))))
    facts += [_compared("TTFT", now.stats.ttft_ms, before.stats.ttft_ms)]
    facts += [_compared("TPOT", now.stats.tpot_ms, before.stats.tpot_ms)]
    return (
        f"**{_words(now)}**: {'; '.join(facts)} ({_words(before)}). {_prompts(now.stats, before.stats, same=same)}"
    )


def reply_rows(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A row a reply with its figures, oldest first; those that were regenerated come before what replaced them."""
    return [_row(reply) for reply in _replies(messages)]


def _replies(messages: Sequence[Message]) -> Iterator[Message]:
    for message in messages:
        if message.role == "assistant":
            yield from (
                each for each in (*message.replaced, message) if each.stats is not None and each.recipe is not None
            )


def _words(reply: Message) -> str:
    return switch_words(reply.recipe) if reply.recipe else ""


def _compared(name: str, now: float | None, before: float | None) -> str:
    return f"{name} {fmt.ms(now)}, before {fmt.ms(before)}"


def _prompts(now: ReplyStats, before: ReplyStats, *, same: bool) -> str:
    if same:
        return "Same prompt."
    if now.prompt_tokens is None or before.prompt_tokens is None:
        return "Another prompt."
    return (
        f"Prompts of {now.prompt_tokens:,} and {before.prompt_tokens:,} tokens; regenerate to compare on the same."
    )


def _row(reply: Message) -> dict[str, Any]:
    stats = reply.stats
    assert stats is not None
    kept = None if not stats.drafted_tokens else 100 * (stats.accepted_tokens or 0) / stats.drafted_tokens
    return {
        "Served by": _words(reply),
        "Prompt": stats.prompt_tokens,
        "Known": stats.cached_tokens,
        "TTFT ms": stats.ttft_ms,
        "Queue ms": stats.queue_ms,
        "Prefill ms": stats.prefill_ms,
        "Decode ms": stats.decode_ms,
        "TPOT ms": stats.tpot_ms,
        "tok/s": stats.output_tok_s,
        "Guesses kept %": kept,
    }
