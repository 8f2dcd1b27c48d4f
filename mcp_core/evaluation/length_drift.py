"""Length drift: whether a candidate says more or less than the reference before it stops by itself.

The same prompts go through each server's own chat template, greedily. A reply that was still going at the limit is
counted as capped, with the length that it had. This file does not know who serves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from mcp_core.documents import Document
from mcp_core.errors import InputError, error_from
from mcp_core.evaluation.paired import Interval, ratio_of_sums
from mcp_core.text_files import read_documents

if TYPE_CHECKING:
    from mcp_core.evaluation.endpoints import Endpoint

__all__ = ["LengthDrift", "Reply", "ReplyPair", "builtin_prompts", "compare", "first_difference", "replies"]

Turns = Sequence[dict[str, str]]
OnReply = Callable[[int], None]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Reply(_Value):
    """What one server said."""

    text: str
    tokens: int = Field(description="Output tokens by the server's own count.")
    capped: bool = Field(description="Stopped by the limit, not by itself.")


class ReplyPair(_Value):
    """One prompt and both replies."""

    prompt: str = Field(description="The last message of the user.")
    reference: Reply
    candidate: Reply
    diverges_at: int | None = Field(
        default=None, description="Index of the first word that differs, in either reply; null when they are equal."
    )


class LengthDrift(_Value):
    """Replies of two servers to the same prompts, compared."""

    reference: str = Field(description="What the reference is, in words.")
    candidate: str = Field(description="What the candidate is, in words.")
    max_tokens: int = Field(description="Limit of a reply, tokens.")
    pairs: tuple[ReplyPair, ...]
    ratio: Interval | None = Field(
        default=None, description="Candidate's output tokens over the reference's, all prompts together."
    )
    reference_capped: float = Field(description="Share of the reference's replies that reached the limit.")
    candidate_capped: float = Field(description="Share of the candidate's replies that reached the limit.")
    identical: float = Field(description="Share of prompts whose replies are the same text.")

    @property
    def tokens(self) -> tuple[int, int]:
        """Output tokens of all replies: the reference's and the candidate's."""
        return sum(each.reference.tokens for each in self.pairs), sum(each.candidate.tokens for each in self.pairs)

    @property
    def verdict(self) -> str:
        """In words; the interval decides."""
        if self.ratio is None or self.ratio.low is None or self.ratio.high is None:
            return "too few replies to tell"
        if self.ratio.low > 1:
            return "the candidate says more"
        return "the candidate says less" if self.ratio.high < 1 else "no difference in length was found"


def builtin_prompts() -> tuple[Document, ...]:
    """Sixteen everyday questions, written for MCP."""
    return read_documents("chat-prompts.jsonl", (files("mcp_core") / "data" / "chat-prompts.jsonl").read_bytes())


async def replies(
    endpoint: Endpoint, chats: Sequence[Turns], max_tokens: int, on_reply: OnReply = lambda _: None
) -> tuple[Reply, ...]:
    """The greedy reply to each chat, one after the other. Raises what the server refuses or breaks off with."""
    said: list[Reply] = []
    for chat in chats:
        said.append(await _reply(endpoint, chat, max_tokens))
        on_reply(len(said))
    return tuple(said)


def compare(
    chats: Sequence[Turns],
    reference: tuple[str, Sequence[Reply]],
    candidate: tuple[str, Sequence[Reply]],
    max_tokens: int,
) -> LengthDrift:
    """Pair the replies of both sides, each given with its title. Raises InputError for no chats at all."""
    if not chats:
        raise InputError(
            "There is no prompt to reply to.", 'Give a .jsonl file with a "prompt" or "messages" a row.'
        )
    pairs = [_pair(*each) for each in zip(chats, reference[1], candidate[1], strict=True)]
    return LengthDrift(
        reference=reference[0],
        candidate=candidate[0],
        max_tokens=max_tokens,
        pairs=tuple(pairs),
        ratio=ratio_of_sums([each.reference.tokens for each in pairs], [each.candidate.tokens for each in pairs]),
        reference_capped=_share([each.reference.capped for each in pairs]),
        candidate_capped=_share([each.candidate.capped for each in pairs]),
        identical=_share([each.diverges_at is None for each in pairs]),
    )


def first_difference(reference: str, candidate: str) -> int | None:
    """Index of the first word, split at spaces, that the two have not in common; None when all words are equal."""
    ours, theirs = reference.split(), candidate.split()
    for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return index
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


async def _reply(endpoint: Endpoint, chat: Turns, max_tokens: int) -> Reply:
    body = {"model": endpoint.model, "messages": list(chat), "temperature": 0.0, "max_tokens": max_tokens}
    text, counted, finish, chunks = "", None, None, 0
    async for chunk in endpoint.client.stream("/v1/chat/completions", body):
        if chunk.error is not None:
            raise error_from(chunk.error.model_dump())
        text += chunk.text
        chunks += chunk.has_token
        finish = chunk.finish_reason or finish
        counted = (chunk.usage or {}).get("completion_tokens", counted)
    return Reply(text=text, tokens=chunks if counted is None else counted, capped=finish == "length")


def _pair(chat: Turns, reference: Reply, candidate: Reply) -> ReplyPair:
    return ReplyPair(
        prompt=chat[-1]["content"],
        reference=reference,
        candidate=candidate,
        diverges_at=first_difference(reference.text, candidate.text),
    )


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)
