"""Which requests the engine can serve: each refusal names its field.

This file does not know how a request is served, or which mode bounds it (``engine.py``).
"""

from __future__ import annotations

from mcp_core.errors import ContextTooLong, RequestRejected
from mcp_core.generation import GenerationRequest

__all__ = ["require_fitting", "require_servable"]


def require_servable(request: GenerationRequest, vocab_size: int, longest: int) -> None:
    """Raise RequestRejected for a prompt that is empty or has foreign tokens, ContextTooLong."""
    if not request.prompt:
        raise RequestRejected("The prompt is empty.", "Send at least one token.", param="prompt")
    require_fitting(request, longest)
    if min(request.prompt) < 0 or max(request.prompt) >= vocab_size:
        raise RequestRejected(f"Token ids go from 0 to {vocab_size - 1}.", "Check the tokenizer.", param="prompt")


def require_fitting(request: GenerationRequest, longest: int) -> None:
    """Raise ContextTooLong where prompt and the first token of a reply, if one is asked for, exceed ``longest``."""
    if len(request.prompt) >= longest + (request.max_tokens == 0):
        raise ContextTooLong(
            f"The prompt has {len(request.prompt)} tokens; the context holds {longest}.",
            "Shorten it, or raise kv.max_context (or batching.kv_blocks) in the Recipe.",
            param="prompt",
        )
