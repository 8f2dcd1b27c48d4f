"""Which requests llama.cpp's server can serve: each refusal names its field.

This file does not know how a request is served (``llama_cpp_engine.py``).
"""

from __future__ import annotations

from mcp_core.errors import ContextTooLong, RequestRejected
from mcp_core.generation import GenerationRequest
from mcp_core.inference.llama_cpp_model import LlamaCppModel

__all__ = ["require_servable"]


def require_servable(request: GenerationRequest, loaded: LlamaCppModel) -> None:
    """Raise RequestRejected for what llama.cpp cannot do or means otherwise, ContextTooLong for a long prompt."""
    _require_able(request)
    _require_fitting(request, loaded)


def _require_fitting(request: GenerationRequest, loaded: LlamaCppModel) -> None:
    longest = loaded.max_context
    if len(request.prompt) + (request.max_tokens > 0) > longest:
        raise ContextTooLong(
            f"The prompt has {len(request.prompt)} tokens; the context holds {longest}.",
            "Shorten it, or raise kv.max_context in the Recipe.",
            param="prompt",
        )
    if min(request.prompt) < 0 or max(request.prompt) >= loaded.vocab_size:
        raise RequestRejected(
            f"Token ids go from 0 to {loaded.vocab_size - 1}.", "Check the tokenizer.", param="prompt"
        )


def _require_able(request: GenerationRequest) -> None:
    """Raise RequestRejected, naming the field, for what llama.cpp's server cannot do, or means otherwise."""
    sampling = request.sampling
    counted = "llama.cpp counts the prompt's tokens too, which OpenAI's definition does not."
    refused = (
        (not request.prompt, "prompt", "the prompt is empty.", "Send at least one token."),
        (
            request.prompt_logprobs is not None and len(request.prompt) < 2,
            "echo",
            "the first token of a prompt has no log-probability.",
            "Send at least two tokens.",
        ),
        (
            request.max_tokens < 1 and request.prompt_logprobs is None,
            "max_tokens",
            "llama.cpp generates at least one token.",
            "Ask for one.",
        ),
        (
            request.min_tokens > 0 and not request.ignore_eos,
            "min_tokens",
            "llama.cpp has no least length.",
            "Send ignore_eos with it, or leave it out.",
        ),
        (bool(sampling.frequency_penalty), "frequency_penalty", counted, "Use repetition_penalty."),
        (bool(sampling.presence_penalty), "presence_penalty", counted, "Use repetition_penalty."),
    )
    for applies, field_name, reason, hint in refused:
        if applies:
            raise RequestRejected(f"{field_name}: {reason}", hint, param=field_name)
