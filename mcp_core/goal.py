"""Goal: what a deployment has to reach: a workload, users or a rate, limits, a price. Frozen values, no arithmetic.

Service level objectives live here only. This file does not know which Runs reach a Goal (``decision/recommend.py``)
or how a limit is judged on request records (``evaluation/attainment.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mcp_core.errors import GoalError
from mcp_core.recipe import validation_message
from mcp_core.workload import Workload, workload_preset

__all__ = ["METRICS", "FidelityLimits", "Goal", "LatencyLimits", "Limit", "Metric", "Objective", "Slo", "Statistic"]

Metric = Literal["ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"]
Statistic = Literal["p50", "p90", "p95", "p99", "mean"]
Objective = Literal["cost", "throughput", "latency"]
# In the order in which they are told.
METRICS: tuple[Metric, ...] = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")
# Strictest last: the tail says what a single request may take.
_STATISTICS: tuple[Statistic, ...] = ("mean", "p50", "p90", "p95", "p99")

Ms = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LatencyLimits(_Value):
    """Upper limits of one latency, ms."""

    p50: Ms | None = Field(default=None, description="Of half of the requests, ms.")
    p90: Ms | None = Field(default=None, description="Of 90 % of the requests, ms.")
    p95: Ms | None = Field(default=None, description="Of 95 %, ms; a Run needs 200 requests to tell.")
    p99: Ms | None = Field(default=None, description="Of 99 %, ms; a Run needs 1,000 requests to tell.")
    mean: Ms | None = Field(default=None, description="Of the mean, ms.")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        percentiles = [(name, getattr(self, name)) for name in _STATISTICS[1:]]
        given = [(name, limit) for name, limit in percentiles if limit is not None]
        for (low, low_ms), (high, high_ms) in pairwise(given):
            if high_ms < low_ms:
                raise ValueError(f"{high} {high_ms:g} ms is below {low} {low_ms:g} ms: both cannot be meant")
        return self


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of an Slo: ``metric`` at ``statistic`` must be at most ``limit_ms``."""

    metric: Metric
    statistic: Statistic
    limit_ms: float


class Slo(_Value):
    """Service level objective: upper limits of latencies, by metric and percentile."""

    ttft_ms: LatencyLimits = Field(default=LatencyLimits(), description="Time to first token.")
    tpot_ms: LatencyLimits = Field(default=LatencyLimits(), description="Time per output token.")
    itl_ms: LatencyLimits = Field(default=LatencyLimits(), description="Inter-token latency.")
    e2e_ms: LatencyLimits = Field(default=LatencyLimits(), description="End to end.")

    def limits(self) -> tuple[Limit, ...]:
        """Every limit that is set, metric by metric, the tail last."""
        return tuple(self._limits())

    def per_request(self) -> tuple[Limit, ...]:
        """What one request has to meet: of each metric, the limit of its highest percentile."""
        tails: dict[Metric, Limit] = {each.metric: each for each in self._limits()}
        return tuple(tails.values())

    def _limits(self) -> Iterator[Limit]:
        for metric in METRICS:
            for statistic in _STATISTICS:
                limit = getattr(getattr(self, metric), statistic)
                if limit is not None:
                    yield Limit(metric, statistic, limit)


class FidelityLimits(_Value):
    """How much of the native dtype's predictions must be kept."""

    kl_over_floor_max: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Mean KL as a multiple of the noise floor, at most."
    )
    kl_max: Annotated[float, Field(ge=0)] | None = Field(default=None, description="Mean KL at most, nats.")
    top1_min: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Share of positions with the same likeliest token, at least, 0..1."
    )


class Goal(_Value):
    """What is wanted. Every field is optional; a limit whose figure a Run lacks refuses it as "not measured"."""

    schema_version: Literal[1] = Field(default=1, description="Version of this document's form.")
    name: str = Field(default="", max_length=80, description="Name shown with the decision.")
    workload: Workload | str | None = Field(
        default=None,
        description="A preset's name or a whole Workload; its load and number of requests do not count. Null is "
        "the one under which most configurations were measured, with the asked load if any was.",
    )
    users: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Clients at once; each sends its next request when the last one ended."
    )
    rate_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        validation_alias=AliasChoices("rate_s", "rate"),
        description="Requests that arrive, per second, whether or not earlier ones ended.",
    )
    slo: Slo = Field(default=Slo(), description="Latency limits.")
    failures_max: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.01, description="Share of requests that may fail, 0..1."
    )
    fidelity: FidelityLimits = Field(default=FidelityLimits(), description="Fidelity limits.")
    gpus: Annotated[int, Field(ge=0, le=4096)] | None = Field(
        default=None, description="GPUs there are, at most; 0 allows CPU configurations only."
    )
    memory_bytes: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Memory that a worker may take at its peak, bytes (Memory.peak_bytes)."
    )
    price_per_hour: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="Of one GPU, or of the machine where there is none; any currency."
    )
    energy_price: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="Of a kWh, in the same currency."
    )
    objective: Objective = Field(
        default="cost",
        description="What decides among those that meet every limit: cost per output token, output tokens per "
        "second, or the median end-to-end latency.",
    )
    models: tuple[str, ...] = Field(
        default=(),
        description="Ids of the models that may answer, one model's checkpoints for one; empty is the model of "
        "which most configurations were measured, with the asked load if any was.",
    )
    device: str | None = Field(
        default=None, description="Name of the device that is decided for; null is this machine's."
    )

    @property
    def has_limits(self) -> bool:
        """Whether it sets a limit that a Run could break, besides the share of failed requests."""
        told = any(each is not None for each in self.fidelity.model_dump().values())
        return bool(self.slo.limits()) or told or self.memory_bytes is not None or self.gpus is not None

    @model_validator(mode="after")
    def _one_load(self) -> Self:
        if self.users is not None and self.rate_s is not None:
            raise ValueError("users and rate_s are two ways to load a server: give one of them")
        return self

    @classmethod
    def from_json(cls, text: str | bytes) -> Goal:
        """Read a Goal document. Raises GoalError naming the field."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise GoalError(
                f"The Goal is not valid JSON: {error}.", 'As: {"users": 40, "slo": {"ttft_ms": {"p95": 500}}}.'
            ) from error
        return cls.from_dict(document)

    @classmethod
    def from_dict(cls, document: Any) -> Goal:
        """As ``from_json``, from parsed JSON."""
        try:
            goal = cls.model_validate(document)
        except ValidationError as error:
            raise GoalError(
                f"The Goal is not valid: {validation_message(error)}.", "mcp-core schema lists every field."
            ) from error
        goal.traffic()
        return goal

    def to_json(self) -> str:
        """The document without what is not asked for, two-space indented."""
        return self.model_dump_json(indent=2, exclude_defaults=True) + "\n"

    def traffic(self) -> Workload | None:
        """The Workload that is meant, of whatever load. Raises ModelNotFound for a name that is no preset's."""
        return workload_preset(self.workload) if isinstance(self.workload, str) else self.workload
