"""What serving needs of a model and of an engine: structural types that ``LoadedModel`` and ``Engine`` satisfy.

So that the API can be tested and timed without torch (``fake_engine.py``). This file knows neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from mcp_core.generation import EngineStats, GenerationRequest, Preparation
from mcp_core.profile_plan import ProfilePlan
from mcp_core.recipe import Recipe
from mcp_core.results import Effective
from mcp_core.trace_summary import RawTrace

__all__ = ["ServedModel", "ServingEngine"]


class ServedModel(Protocol):
    """A model's face towards clients; the fields are ``models.loaded.LoadedModel``'s."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""

    @property
    def chat_template(self) -> str | None:
        """Its jinja source."""

    @property
    def template_tokens(self) -> Mapping[str, str]:
        """Special tokens that a template may name."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a reply."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens never shown as text."""

    @property
    def vocab_size(self) -> int:
        """Ids go from 0 to this, exclusive."""

    @property
    def max_context(self) -> int:
        """Longest prompt + reply, tokens."""

    @property
    def weights_bytes(self) -> int:
        """Unique tensor storages."""

    @property
    def effective(self) -> Effective:
        """What really runs."""

    @property
    def title(self) -> str:
        """For people."""

    @property
    def random_weights(self) -> bool:
        """Whether its text is random."""


class ServingEngine(Protocol):
    """Requests in, token events out to the sink it was made with; ``inference.engine.Engine``."""

    def submit(self, request: GenerationRequest, /) -> None:
        """Accept a request. Raises QueueFull, RequestRejected."""

    def cancel(self, request_id: str, /) -> None:
        """End it; unknown ids are ignored."""

    def stats(self) -> EngineStats:
        """Counters and what is going on."""

    @property
    def mode_name(self) -> str:
        """How requests share the model now."""

    @property
    def kernel_name(self) -> str | None:
        """What computes attention now, where it is not the model's own implementation."""

    @property
    def preparation(self) -> Preparation | None:
        """What making decode steps ahead took, in the mode that serves now."""

    def apply_live(self, recipe: Recipe, /) -> None:
        """Serve as its live fields say from now on. Blocks while running requests end; raises what it met."""

    def drain(self, timeout_s: float, /) -> bool:
        """Accept nothing more and wait for what is held; whether all of it ended in time."""

    def close(self) -> None:
        """End everything."""

    def profile(self, plan: ProfilePlan, folder: Path, timeout_s: float, /) -> tuple[RawTrace, ...]:
        """Record the next steps; blocks until they have come, time is over or it is stopped."""

    def stop_profile(self) -> None:
        """End the profile that is being recorded, if any; what was recorded so far is kept."""
