"""Whether a reply ends with its newest token, alike in every batching mode. Knows nothing of how it was chosen."""

from __future__ import annotations

from mcp_core.generation import FinishReason, GenerationRequest

__all__ = ["finish_of"]


def finish_of(
    request: GenerationRequest, token: int, count: int, eos_ids: frozenset[int], longest: int
) -> FinishReason | None:
    """The end that ``token``, the reply's number ``count``, brings; ``longest`` bounds prompt + reply."""
    if token in eos_ids and not request.ignore_eos:
        return "stop"
    if count >= request.max_tokens or len(request.prompt) + count >= longest:
        return "length"
    return None
