"""ProfilePlan: how many steps of a worker are recorded, with which details, and under which load.

Frozen values. This file does not know how a profile is recorded (``inference/profiling.py``).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mcp_core.errors import InputError
from mcp_core.recipe import Recipe

__all__ = ["MOST_RECORDED", "MOST_STEPS", "ProfileLoad", "ProfilePlan", "require_traceable"]

# Engine steps that one profile may last: wait, warm-up and active ones of every repeat.
MOST_STEPS = 2000
# Recorded in one trace: of a model with 80 layers that is about 700 MB, which is still read.
MOST_RECORDED = 64

Count = Annotated[int, Field(ge=0, le=1000)]
Activity = Literal["cpu", "cuda"]


def require_traceable(recipe: Recipe) -> None:
    """Raises InputError for an engine whose operators torch does not see."""
    if recipe.engine != "transformers":
        raise InputError(
            f"{recipe.engine} records no trace of its operators.", "Profile a Recipe with engine transformers."
        )


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ProfilePlan(_Value):
    """torch.profiler's schedule, counted in steps of the engine, and what is written down of each operator."""

    steps: Annotated[int, Field(ge=1, le=MOST_RECORDED)] = Field(
        default=8, description="Steps recorded in each repeat."
    )
    wait: Count = Field(default=0, description="Steps that pass before, without the profiler.")
    warmup: Count = Field(default=2, description="Steps with the profiler on whose events are thrown away.")
    repeat: Annotated[int, Field(ge=1, le=10)] = Field(default=1, description="How often wait, warm-up, steps.")
    activities: tuple[Activity, ...] = Field(
        default=("cpu", "cuda"), min_length=1, description="What is watched; cuda counts where there is a GPU."
    )
    shapes: bool = Field(default=True, description="Shapes and dtypes of every operator's inputs.")
    memory: bool = Field(
        default=False, description="Every allocation; other threads than the engine's are not watched then."
    )
    stacks: bool = Field(default=False, description="Every Python call: slow, and a large file.")

    @property
    def total_steps(self) -> int:
        """Engine steps from the start to the end of the recording."""
        return (self.wait + self.warmup + self.steps) * self.repeat

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.total_steps > MOST_STEPS:
            raise ValueError(f"{self.total_steps} steps in all; {MOST_STEPS} at most")
        return self


class ProfileLoad(_Value):
    """What a worker is sent while it is recorded: clients that ask again as soon as they are answered."""

    concurrency: Annotated[int, Field(ge=1, le=256)] = Field(default=1, description="Clients.")
    prompt_tokens: Annotated[int, Field(ge=1, le=100_000)] = Field(default=64, description="Prompt length, tokens.")
    output_tokens: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=8, description="Reply length, tokens; short ones let prefill come often enough to be seen."
    )
