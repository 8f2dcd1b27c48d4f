"""Decision: what a Goal and the stored Runs come to. Frozen values with a JSON form, no arithmetic.

It is what ``recommend --json`` prints, and what ``verify`` and the Ship page read. This file does not know how a
decision is made (``recommend.py``).
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mcp_core.errors import InputError
from mcp_core.goal import Goal
from mcp_core.recipe import Recipe, validation_message
from mcp_core.results import RunId, now
from mcp_core.workload import LoadKind, Workload

__all__ = ["Cause", "Choice", "Decision", "Evidence", "Figures", "LoadPoint", "Missing", "Refused"]

# Weakest first. Figures of one engine never stand for another's, so "measured" names its engine in words.
Evidence = Literal["none", "predicted", "probed", "measured", "confirmed"]
# Why a configuration is refused: a broken limit by its name, or what makes its Runs no evidence.
Cause = Literal[
    "slo",
    "failures",
    "fidelity",
    "memory",
    "gpus",
    "failed",
    "not measured at this load",
    "not measured",
    "not comparable",
    "stale",
    "other workload",
    "other hardware",
    "other model",
]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class LoadPoint(_Value):
    """One measured load of a configuration; ``load`` is users or requests/s."""

    load: float
    run: str
    meets: bool = Field(description="Whether every limit held.")
    output_tok_s: float | None = None
    attainment: float | None = Field(default=None, description="Share of requests that met every latency limit.")
    goodput_s: float | None = Field(default=None, description="Such requests per second.")


class Figures(_Value):
    """What a configuration does at the load that was decided for; None was not measured."""

    output_tok_s: float | None = None
    requests_s: float | None = None
    ttft_ms: float | None = Field(default=None, description="Median, ms.")
    tpot_ms: float | None = Field(default=None, description="Median, ms.")
    attainment: float | None = Field(default=None, description="Share of requests that met every latency limit.")
    goodput_s: float | None = Field(default=None, description="Such requests per second.")
    failed_share: float | None = None
    peak_bytes: int | None = None
    kv_tokens: int | None = Field(default=None, description="Tokens that its KV pool holds.")
    kl: float | None = Field(default=None, description="Mean, nats.")
    kl_over_floor: float | None = None
    top1: float | None = None
    energy_j_per_token: float | None = None
    cost_per_million_tokens: float | None = Field(default=None, description="Of output tokens, energy included.")
    cost_per_request: float | None = Field(default=None, description="Of a completed request.")
    within: tuple[str, ...] = Field(default=(), description='Every limit that held: "p95 TTFT 312 ≤ 500 ms".')


class Choice(_Value):
    """A configuration that meets the Goal."""

    run: RunId = Field(description="The Run that stands for it: the newest at the decided load.")
    runs: tuple[str, ...] = Field(description="Every Run behind its figures.")
    name: str = Field(description="In a few words.")
    recipe: Recipe
    workload: Workload = Field(description="Of ``run``.")
    load: float = Field(description="Users or requests/s that its figures are for.")
    starts: int = Field(description="Fresh process starts behind its figures.")
    figures: Figures
    evidence: Evidence
    evidence_text: str = Field(description='As "measured on transformers".')
    points: tuple[LoadPoint, ...] = Field(default=(), description="Every measured load, lowest first.")
    capacity: float | None = Field(default=None, description="Largest measured load that meets every limit.")
    broken_at: float | None = Field(default=None, description="Smallest measured load above that does not.")


class Refused(_Value):
    """A configuration that does not meet the Goal, and why."""

    run: str | None = Field(description="The Run that it was judged by.")
    name: str
    recipe: Recipe
    cause: Cause
    reason: str = Field(description='The figure and the limit: "p95 TTFT 812 > 500 ms".')
    limit: str = Field(default="", description='Which limit: "p95 TTFT", "peak memory", ...; empty without one.')
    figure: float | None = None
    bound: float | None = Field(default=None, description="The limit's own value, in the unit of ``figure``.")
    command: str = Field(default="", description="What measures the figure that is lacking.")


class Missing(_Value):
    """A Run that would tell more, or a fidelity."""

    name: str
    recipe: Recipe
    workload: Workload | None = Field(
        default=None, description="What the Run is of; null: the fidelity is lacking."
    )
    why: str
    repeats: int = Field(default=1, description="Fresh process starts, each with new prompts.")
    seconds: float | None = Field(default=None, description="Device time of all repeats; null is not known.")
    command: str = ""

    @property
    def title(self) -> str:
        """The configuration's name; "fidelity of" it where that is lacking."""
        return self.name if self.workload else f"fidelity of {self.name}"


class Decision(_Value):
    """The answer to a Goal."""

    schema_version: Literal[1] = 1
    created: datetime = Field(default_factory=now)
    goal: Goal
    answer: str = Field(description="One sentence.")
    workload: str = Field(default="", description="Name of the traffic that it holds for.")
    device: str = Field(default="", description="Name of the device that it holds for.")
    load_kind: LoadKind = "concurrency"
    load: float | None = Field(default=None, description="Asked users or requests/s; null: each at its capacity.")
    winner: Choice | None = None
    runners_up: tuple[Choice, ...] = Field(default=(), description="Best first.")
    equivalent: tuple[str, ...] = Field(default=(), description="Runs of runners-up that are within 3 % of it.")
    undecided: tuple[str, ...] = Field(default=(), description="Runs of runners-up that data cannot tell from it.")
    refused: tuple[Refused, ...] = ()
    missing: tuple[Missing, ...] = ()
    evidence: Evidence = "none"
    notes: tuple[str, ...] = ()

    @property
    def runner_up(self) -> Choice | None:
        """The best one after the winner."""
        return self.runners_up[0] if self.runners_up else None

    @property
    def is_recommendation(self) -> bool:
        """Whether it was confirmed on the engine that is exported to; else the winner is a candidate."""
        return self.winner is not None and self.evidence == "confirmed"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a Decision document. Raises InputError naming the field."""
        try:
            return cls.from_dict(json.loads(text))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"The Decision is not valid JSON: {error}.", _MAKE_ONE) from error

    @classmethod
    def from_dict(cls, document: Any) -> Self:
        """As ``from_json``, from parsed JSON."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise InputError(f"The Decision is not valid: {validation_message(error)}.", _MAKE_ONE) from error

    def to_json(self) -> str:
        """The whole document, two-space indented."""
        return self.model_dump_json(indent=2) + "\n"


_MAKE_ONE = "mcp-core recommend GOAL --out FILE writes one."
