"""Workload: what is asked of a server. Lengths, arrivals, seed; no limits (those belong to a goal).

This file does not know how requests are sent (``evaluation/loadgen.py``) or what tokens mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mcp_core.errors import ModelNotFound, WorkloadError
from mcp_core.recipe import validation_message

__all__ = ["WORKLOADS", "Lengths", "Workload", "workload_preset"]


class Lengths(BaseModel):
    """Token counts, drawn uniformly from min to max, both included; given as one number, always that many."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: Annotated[int, Field(ge=1, le=1_000_000)] = Field(description="Smallest count, tokens.")
    max: Annotated[int, Field(ge=1, le=1_000_000)] = Field(description="Largest count, tokens.")

    @model_validator(mode="before")
    @classmethod
    def _one_number_is_both(cls, given: Any) -> Any:
        return {"min": given, "max": given} if type(given) is int else given

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        return self


class Workload(BaseModel):
    """Requests of random tokens with given lengths, sent by a closed loop of clients."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = Field(default=1, description="Version of this document's form.")
    name: str = Field(default="custom", min_length=1, max_length=80, description="Name shown with results.")
    requests: Annotated[int, Field(ge=1, le=1_000_000)] = Field(default=16, description="Measured requests.")
    prompt_tokens: Lengths = Field(default=Lengths(min=64, max=64), description="Prompt length, tokens.")
    output_tokens: Lengths = Field(default=Lengths(min=32, max=32), description="Reply length, tokens.")
    concurrency: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=1, description="Clients; each sends its next request when the last one ended."
    )
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
        """SHA-256 of everything that changes what is sent; the name does not."""
        document = self.model_dump(mode="json", exclude={"name", "smoke_test"})
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


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
    """Chat: 200 requests by 8 clients, 50-500 tokens in, 50-250 out."""
    return _closed_loop("chat", Lengths(min=50, max=500), Lengths(min=50, max=250))


def rag() -> Workload:
    """Retrieval: 200 requests by 8 clients, 1,000-3,000 tokens in, 50-200 out."""
    return _closed_loop("rag", Lengths(min=1000, max=3000), Lengths(min=50, max=200))


def code() -> Workload:
    """Code completion: 200 requests by 8 clients, 200-1,500 tokens in, 10-80 out."""
    return _closed_loop("code", Lengths(min=200, max=1500), Lengths(min=10, max=80))


def _closed_loop(name: str, prompt: Lengths, output: Lengths) -> Workload:
    return Workload(name=name, requests=200, concurrency=8, prompt_tokens=prompt, output_tokens=output)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "short-chat": short_chat,
    "burst": burst,
    "chat": chat,
    "rag": rag,
    "code": code,
}


def workload_preset(name: str) -> Workload:
    """The preset of that name. Raises ModelNotFound listing the names there are."""
    if name not in WORKLOADS:
        raise ModelNotFound(f'There is no Workload preset "{name}".', f"There are: {', '.join(WORKLOADS)}.")
    return WORKLOADS[name]()
