"""What a Workload is made of: lengths, arrivals, where prompts come from, shared prefixes, chats.

This file does not know how a length becomes a prompt (``evaluation/prompts.py``) or an arrival a request
(``evaluation/arrivals.py``).
"""

from __future__ import annotations

import bisect
import math
import random
from functools import cached_property
from itertools import accumulate
from statistics import NormalDist
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "ArrivalKind",
    "Arrivals",
    "Chats",
    "LengthKind",
    "Lengths",
    "PromptSource",
    "SharedPrefix",
    "SourceKind",
]

LengthKind = Literal["uniform", "lognormal", "zipf", "values"]
ArrivalKind = Literal["closed", "constant", "poisson", "bursty", "ramp", "replay"]
SourceKind = Literal["random", "sample", "file", "recording"]

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Rate = Annotated[float, Field(gt=0, le=100_000)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

# Quantiles that a mean is taken over: exact to a part in a thousand for smooth shapes.
_GRID = 2000


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Lengths(_Part):
    """Token counts between min and max, both included. One number is always that many, a list is drawn from."""

    min: Count = Field(description="Smallest count, tokens.")
    max: Count = Field(description="Largest count, tokens.")
    kind: LengthKind = Field(
        default="uniform", description=f"Their distribution: {', '.join(get_args(LengthKind))}."
    )
    median: Count | None = Field(default=None, description="lognormal: the median before it is cut to min and max.")
    sigma: Annotated[float, Field(gt=0, le=5)] = Field(
        default=0.8, description="lognormal: standard deviation of the logarithm."
    )
    exponent: Annotated[float, Field(gt=0, le=5)] = Field(
        default=1.0, description="zipf: a count is drawn in proportion to count ^ -exponent."
    )
    values: tuple[Count, ...] = Field(default=(), max_length=100_000, description="values: counts, each as likely.")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, given: Any) -> Any:
        if type(given) is int:
            return {"min": given, "max": given}
        if isinstance(given, list | tuple):
            given = {"kind": "values", "values": given}
        if isinstance(given, dict) and given.get("values"):
            counts = [each for each in given["values"] if type(each) is int]
            return given | {"min": min(counts, default=1), "max": max(counts, default=1)}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        if (self.kind == "values") != bool(self.values):
            raise ValueError('"values" go with kind "values"')
        if (self.kind == "lognormal") != (self.median is not None):
            raise ValueError('a median goes with kind "lognormal"')
        if self.median is not None and not self.min <= self.median <= self.max:
            raise ValueError(f"median {self.median} is not between min {self.min} and max {self.max}")
        return self

    def draw(self, by: random.Random) -> int:
        """One count; the same generator state gives the same."""
        if self.kind == "uniform":
            return by.randint(self.min, self.max)
        return self._quantile(by.random())

    @property
    def mean(self) -> float:
        """Mean count, tokens."""
        if self.kind == "uniform":
            return (self.min + self.max) / 2
        if self.kind == "values":
            return sum(self.values) / len(self.values)
        return sum(self._quantile((step + 0.5) / _GRID) for step in range(_GRID)) / _GRID

    def _quantile(self, share: float) -> int:
        if self.kind == "values":
            return self.values[int(share * len(self.values))]
        if self.kind == "lognormal":
            return self._lognormal(share)
        weights = self._zipf_weights
        return self.min + bisect.bisect_right(weights, share * weights[-1])

    def _lognormal(self, share: float) -> int:
        """Inverse of the distribution function between the two ends, so that nothing piles up there."""
        assert self.median is not None
        normal = NormalDist(math.log(self.median), self.sigma)
        low, high = normal.cdf(math.log(self.min - 0.5)), normal.cdf(math.log(self.max + 0.5))
        inside = low + share * (high - low)
        if not 0 < inside < 1:
            return self.min if inside <= 0 else self.max
        return min(self.max, max(self.min, round(math.exp(normal.inv_cdf(inside)))))

    @cached_property
    def _zipf_weights(self) -> list[float]:
        return list(accumulate(count**-self.exponent for count in range(self.min, self.max + 1)))


class Arrivals(_Part):
    """When requests are sent. Closed: a client sends when its last reply ended; otherwise nobody waits for replies.

    A rate counts requests, or the first turns of chats. ``bursty`` gaps are gamma distributed with shape
    ``burstiness``, as in vLLM's ``bench serve --burstiness``: 1 is Poisson, less comes in bursts.
    """

    kind: ArrivalKind = Field(default="closed", description=f"One of {', '.join(get_args(ArrivalKind))}.")
    rate_s: Rate | None = Field(default=None, description="Mean arrivals a second; of a ramp, at its beginning.")
    end_rate_s: Rate | None = Field(default=None, description="ramp: arrivals a second at its end.")
    burstiness: Annotated[float, Field(gt=0, le=1)] = Field(default=0.25, description="bursty: the shape of gaps.")
    speed: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=1.0, description="replay: how many times as fast as recorded."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.rate_s is not None) != (self.kind not in ("closed", "replay")):
            raise ValueError(
                f'rate_s {"is missing for" if self.rate_s is None else "does not go with"} "{self.kind}"'
            )
        if (self.end_rate_s is not None) != (self.kind == "ramp"):
            raise ValueError('end_rate_s goes with kind "ramp", which needs it')
        return self


class PromptSource(_Part):
    """Where prompts come from. Only random ones have exact lengths; what a server counted is recorded."""

    kind: SourceKind = Field(
        default="random",
        description="random: tokens of the model's vocabulary, words for a server that takes only text. sample: "
        "passages of a built-in book. file: prompts of one of your texts. recording: lengths and times of one.",
    )
    sha256: Sha256 | None = Field(default=None, description="Which text (mcp-core texts) or which recording.")
    as_chat: bool = Field(
        default=False, description="Send text as a user's message, through the model's chat template."
    )

    @model_validator(mode="after")
    def _named(self) -> Self:
        if (self.sha256 is not None) != (self.kind in ("file", "recording")):
            raise ValueError('sha256 goes with kind "file" or "recording", which need it')
        return self


class SharedPrefix(_Part):
    """Tokens that many prompts begin with, as system prompts do; they come before the prompt's own tokens.

    Others begin with as many tokens of their own, so that every prompt is as long whoever shares.
    """

    groups: Annotated[int, Field(ge=1, le=10_000)] = Field(default=1, description="Different prefixes.")
    tokens: Count = Field(default=256, description="Length of a prefix.")
    hit_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0, description="Share of prompts that begin with one of them."
    )


class Chats(_Part):
    """Requests come in chats: each turn sends all that was said before and adds a prompt of its own."""

    turns: Lengths = Field(default=Lengths(min=2, max=5), description="Turns of a chat.")
    think_s: Annotated[float, Field(ge=0, le=86_400)] = Field(
        default=0.0, description="Mean time from a reply to the next turn, s."
    )
    think: Literal["exponential", "fixed"] = Field(
        default="exponential", description="Whether the time to think varies."
    )
