"""Workload: what is asked of a server, and the presets. No limits in it: those belong to a goal.

This file does not know how requests are sent (``evaluation/loadgen.py``) or what tokens mean; its parts are in
``workload_parts.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mcp_core.errors import ModelNotFound, WorkloadError
from mcp_core.recipe import validation_message
from mcp_core.workload_parts import Arrivals, Chats, Lengths, PromptSource, SharedPrefix

__all__ = [
    "WORKLOADS",
    "Arrivals",
    "Chats",
    "Lengths",
    "LoadKind",
    "PromptSource",
    "SharedPrefix",
    "Workload",
    "workload_preset",
]

# What a capacity is counted in: clients of a closed loop, or arrivals a second.
LoadKind = Literal["concurrency", "rate_s"]

# Indexes from here on are of warm-up requests where the number of measured ones is not known ahead.
_BEYOND_COUNTING = 1_000_000_000
_DIFFERENT_IN_NAME_ONLY = frozenset({"name", "smoke_test"})


class Workload(BaseModel):
    """Requests, how long they are and when they are sent; of random tokens by a closed loop unless it says more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = Field(default=1, description="Version of this document's form.")
    name: str = Field(default="custom", min_length=1, max_length=80, description="Name shown with results.")
    requests: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=16, description="Measured requests; with duration_s that alone ends it."
    )
    prompt_tokens: Lengths = Field(default=Lengths(min=64, max=64), description="Prompt length, tokens.")
    output_tokens: Lengths = Field(default=Lengths(min=32, max=32), description="Reply length, tokens.")
    concurrency: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=1, description="Clients of a closed loop; each sends its next request when the last one ended."
    )
    arrivals: Arrivals = Field(default=Arrivals(), description="When requests are sent.")
    duration_s: Annotated[float, Field(gt=0, le=86_400)] | None = Field(
        default=None, description="Nothing more is sent after so long, s; what runs then still counts."
    )
    prompts: PromptSource = Field(default=PromptSource(), description="Where prompts come from.")
    prefix: SharedPrefix | None = Field(default=None, description="What many prompts begin with.")
    chats: Chats | None = Field(default=None, description="Requests come in chats of several turns.")
    warmup_requests: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=2, description="Requests sent first and not counted."
    )
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = Field(default=0, description="Seed of lengths and prompts.")
    repeat: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=0, description="Which repetition; every repeat draws new prompts from (seed, repeat)."
    )
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        default=600.0, description="A request that takes longer has failed, s."
    )
    smoke_test: bool = Field(
        default=False, description="Too small to decide anything; shown as such with every result."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kind = self.prompts.kind
        if self.arrivals.kind == "replay" and kind != "recording":
            raise ValueError('arrivals of kind "replay" need prompts of kind "recording"')
        if kind == "file" and self.prefix is not None:
            raise ValueError("prompts of a file have no prefix but their own")
        if kind == "file" and self.chats is not None:
            raise ValueError("prompts of a file are one turn each")
        if self.arrivals.kind == "replay" and self.chats is not None:
            raise ValueError("a recording is replayed request by request, without chats")
        return self

    @classmethod
    def from_json(cls, text: str | bytes) -> Workload:
        """Read a Workload document. Raises WorkloadError naming the field."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:  # a number too long, brackets too deep: not JSONDecodeError
            raise WorkloadError(
                f"The Workload is not valid JSON: {error}.", "Print a valid one: mcp-core preset short-chat."
            ) from error
        return cls.from_dict(document)

    @classmethod
    def from_dict(cls, document: Any) -> Workload:
        """As ``from_json``, from parsed JSON."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise WorkloadError(
                f"The Workload is not valid: {validation_message(error)}.",
                "mcp-core schema lists every field.",
            ) from error

    def replace(self, changes: Mapping[str, Any]) -> Workload:
        """A copy with dotted fields replaced. Raises WorkloadError for an unknown field or bad value."""
        document = self.model_dump(mode="json")
        for path, value in changes.items():
            node, _, leaf = path.rpartition(".")
            target = document.get(node) if node else document
            if not isinstance(target, dict) or leaf not in target:
                raise WorkloadError(f'A Workload has no field "{path}".', "mcp-core schema lists every field.")
            target[leaf] = value
        return Workload.from_dict(document)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that changes what is sent; the name does not.

        Fields that came later count only where they are used, so that older Workloads keep theirs.
        """
        document = self.model_dump(mode="json", exclude=set(_DIFFERENT_IN_NAME_ONLY))
        for field in ("arrivals", "duration_s", "prompts", "prefix", "chats"):
            if getattr(self, field) == type(self).model_fields[field].get_default():
                del document[field]
        for field in ("prompt_tokens", "output_tokens"):
            document[field] = getattr(self, field).model_dump(mode="json", exclude=_unused(getattr(self, field)))
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()

    @property
    def is_open(self) -> bool:
        """Whether requests are sent whatever becomes of earlier ones."""
        return self.arrivals.kind != "closed"

    def at_once(self, let_in: int) -> int:
        """Requests that can be running at once on a server that lets in so many."""
        asked = let_in if self.is_open else min(self.concurrency, let_in)
        return asked if self.duration_s else min(asked, self.requests)

    @property
    def load_kind(self) -> LoadKind:
        """What its load is counted in."""
        return "rate_s" if self.is_open else "concurrency"

    @property
    def load(self) -> float | None:
        """Clients, or arrivals a second (of a ramp, at its end); None for a replay."""
        if not self.is_open:
            return self.concurrency
        return self.arrivals.end_rate_s or self.arrivals.rate_s

    @property
    def load_words(self) -> str:
        """As "8 users" or "2.5 requests/s, Poisson"."""
        arrivals = self.arrivals
        if not self.is_open:
            return f"{self.concurrency} user{'s' if self.concurrency > 1 else ''}"
        if arrivals.rate_s is None:
            return "as recorded" if arrivals.speed == 1 else f"{arrivals.speed:g} times as fast as recorded"
        to = f" to {arrivals.end_rate_s:g}" if arrivals.end_rate_s else ""
        kind = "Poisson" if arrivals.kind == "poisson" else arrivals.kind
        return f"{arrivals.rate_s:g}{to} {'chats' if self.chats else 'requests'}/s, {kind}"

    def at_load(self, load: float) -> Workload:
        """The same at so many users, or arrivals a second. Raises WorkloadError for a ramp and a replay."""
        if not self.is_open:
            return self.replace({"concurrency": int(load)})
        if self.arrivals.kind in ("ramp", "replay"):
            raise WorkloadError(
                f"A {self.arrivals.kind} has no one load that could be varied.",
                "Choose constant, poisson or bursty.",
            )
        return self.replace({"arrivals.rate_s": load})

    @property
    def longest_prompt(self) -> int:
        """Tokens of its longest prompt, a chat's last turn included. What a file holds is not known here."""
        turns = self.chats.turns.max if self.chats else 1
        return self._prefix_tokens + turns * self.prompt_tokens.max + (turns - 1) * self.output_tokens.max

    @property
    def longest_request(self) -> int:
        """Tokens of its longest prompt and the reply to it."""
        return self.longest_prompt + self.output_tokens.max

    @property
    def mean_prompt(self) -> float:
        """Mean tokens of a prompt, earlier turns included."""
        own = self.prompt_tokens.mean
        if self.chats is None:
            return self._prefix_tokens + own
        turns = self.chats.turns.mean  # a chat's turn number k repeats k - 1 prompts and replies
        return self._prefix_tokens + own + (turns - 1) / 2 * (own + self.output_tokens.mean)

    @property
    def warmup_from(self) -> int:
        """Index of the first warm-up request, which shares none with measured ones."""
        return self.requests if self.duration_s is None else _BEYOND_COUNTING

    @property
    def _prefix_tokens(self) -> int:
        return self.prefix.tokens if self.prefix else 0


def _unused(lengths: Lengths) -> set[str]:
    """Fields of a length that its kind does not read."""
    used = {"uniform": set(), "lognormal": {"kind", "median", "sigma"}, "zipf": {"kind", "exponent"}}.get(
        lengths.kind, {"kind", "values"}
    )
    return {"kind", "median", "sigma", "exponent", "values"} - used


def short_chat() -> Workload:
    """Smoke test: 16 requests one after the other, 64 tokens in, 32 out."""
    return Workload(name="short-chat", smoke_test=True)


def burst() -> Workload:
    """Smoke test: 32 requests at once, 16-96 tokens in, 4-24 out."""
    return Workload(
        name="burst",
        requests=32,
        concurrency=32,
        prompt_tokens=Lengths(min=16, max=96),
        output_tokens=Lengths(min=4, max=24),
        smoke_test=True,
    )


def chat() -> Workload:
    """Chat: 200 requests by 8 users, 50-500 tokens in, 50-250 out."""
    return _closed_loop("chat", Lengths(min=50, max=500), Lengths(min=50, max=250))


def rag() -> Workload:
    """Retrieval: 200 requests by 8 users, 1,000-3,000 tokens in, 50-200 out."""
    return _closed_loop("rag", Lengths(min=1000, max=3000), Lengths(min=50, max=200))


def code() -> Workload:
    """Code completion: 200 requests by 8 users, 200-1,500 tokens in, 10-80 out."""
    return _closed_loop("code", Lengths(min=200, max=1500), Lengths(min=10, max=80))


def summarization() -> Workload:
    """Summarization: 200 requests by 8 users, long texts (median 1,200, 300-6,000 tokens) in, 50-200 out."""
    texts = Lengths(min=300, max=6000, kind="lognormal", median=1200, sigma=0.7)
    return _closed_loop("summarization", texts, Lengths(min=50, max=200))


def agents() -> Workload:
    """Agents: 200 requests in chats of 3-8 turns by 8 users, one of 4 prefixes of 512 tokens, tools take 1 s."""
    steps = _closed_loop("agents", Lengths(min=30, max=200), Lengths(min=20, max=150))
    return steps.model_copy(
        update={
            "prefix": SharedPrefix(groups=4, tokens=512),
            "chats": Chats(turns=Lengths(min=3, max=8), think_s=1.0),
        }
    )


def reasoning() -> Workload:
    """Reasoning: 200 requests by 8 users, 50-500 tokens in, long replies out (median 1,000, 200-4,000 tokens)."""
    replies = Lengths(min=200, max=4000, kind="lognormal", median=1000, sigma=0.6)
    asked = _closed_loop("reasoning", Lengths(min=50, max=500), replies)
    return asked.model_copy(update={"prompts": PromptSource(as_chat=True)})


def _closed_loop(name: str, prompt: Lengths, output: Lengths) -> Workload:
    return Workload(name=name, requests=200, concurrency=8, prompt_tokens=prompt, output_tokens=output)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "short-chat": short_chat,
    "burst": burst,
    "chat": chat,
    "rag": rag,
    "code": code,
    "summarization": summarization,
    "agents": agents,
    "reasoning": reasoning,
}


def workload_preset(name: str) -> Workload:
    """The preset of that name. Raises ModelNotFound listing the names there are."""
    if name not in WORKLOADS:
        raise ModelNotFound(f'There is no Workload preset "{name}".', f"There are: {', '.join(WORKLOADS)}.")
    return WORKLOADS[name]()
