"""A conversation as a file: JSON for programs, Markdown for people. Pure.

This file does not know how either is downloaded.
"""

from __future__ import annotations

import dataclasses
import json

from mcp_core.recipe import Recipe
from mcp_core.views import ConversationView
from pages._ui.chat import reply_line

__all__ = ["as_json", "as_markdown"]


def as_json(view: ConversationView, recipe: Recipe | None) -> str:
    """Messages with their figures and the Recipe they were made with."""
    messages = [
        {
            "role": message.role,
            "content": message.content,
            "finish_reason": message.finish_reason,
            "stats": dataclasses.asdict(message.stats) if message.stats else None,
            "failure": message.failure.model_dump() if message.failure else None,
        }
        for message in view.messages
    ]
    document = {"messages": messages, "recipe": recipe.model_dump(mode="json") if recipe else None}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def as_markdown(view: ConversationView, title: str) -> str:
    """One heading a message, its figures in italics."""
    parts = [f"# Conversation with {title}"]
    for message in view.messages:
        parts.append(f"## {message.role.capitalize()}\n\n{message.content}")
        if message.stats is not None:
            parts.append(f"*{reply_line(message.stats, message.finish_reason)}*")
    return "\n\n".join(parts) + "\n"
