"""Foreign errors of a forward pass, mapped once to ours. Knows nothing of what was computed."""

from __future__ import annotations

from mcp_core.errors import McpError, OutOfMemory
from mcp_core.models.load_errors import first_line, is_out_of_memory

__all__ = ["as_error"]


def as_error(error: Exception) -> McpError:
    """What a user is told of it."""
    if is_out_of_memory(error):
        return OutOfMemory(
            "Memory ran out while generating.",
            "Shorten the context (kv.max_context), choose a smaller dtype or scheme, or unload other models.",
        )
    if isinstance(error, McpError):
        return error
    return McpError(
        f"Generation failed: {type(error).__name__}: {first_line(error)}", "The worker's log says more."
    )
