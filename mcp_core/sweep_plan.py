"""SweepPlan: a Recipe, the axes along which it is varied, a Workload, a Goal and how long each stage may take.

Its cells are the product of the axes. Frozen values. This file does not know whether a cell can run
(``evaluation/sweep_cells.py``), how long it takes (``evaluation/sweep_budget.py``) or how it is measured.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from mcp_core import llama_cpp
from mcp_core.errors import InputError, ModelNotFound
from mcp_core.goal import FidelityLimits, Goal
from mcp_core.goal_presets import goal_preset
from mcp_core.presets import recipe_preset
from mcp_core.recipe import (
    Attention,
    BatchingMode,
    Compile,
    DType,
    Engine,
    KVKind,
    ModelRef,
    Recipe,
    SchemeName,
    validation_message,
)
from mcp_core.workload import Workload, workload_preset

__all__ = ["AXES", "MOST_CELLS", "RACED", "Axes", "BatchingChoice", "Cell", "Stage", "SweepPlan"]

# Stages that make Runs. probe: a short look at every cell. measure: those that the probes and their fidelity left.
# confirm: the best, each freshly started.
Stage = Literal["probe", "measure", "confirm"]
# How the evidence of a Run ends by which a sweep chose whom to confirm.
RACED = ", in a race"
MOST_CELLS = 2000
_LEAST_TIMEOUT_S, _TIMEOUT_SHARE = 60.0, 3.0
_HELP = "mcp-core schema lists every field; mcp-core sweep --help names the presets."


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BatchingChoice(_Value):
    """A mode, and how many requests it holds; the mode's name alone leaves that to the base Recipe."""

    mode: BatchingMode = Field(description="off, static or continuous.")
    max_requests: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="Requests held at once; null is the base Recipe's."
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, given: Any) -> Any:
        return {"mode": given} if isinstance(given, str) else given

    def __str__(self) -> str:
        return self.mode if self.max_requests is None else f"{self.mode} {self.max_requests}"


class Axes(_Value):
    """What is varied; an empty axis keeps the base Recipe's value. Cells are every combination."""

    model: tuple[ModelRef, ...] = Field(default=(), description="Checkpoints.")
    engine: tuple[Engine, ...] = Field(default=(), description="What runs them.")
    dtype: tuple[DType, ...] = Field(default=(), description="Types of dense weights and activations.")
    scheme: tuple[SchemeName, ...] = Field(default=(), description="Quantization schemes.")
    attention: tuple[Attention, ...] = Field(default=(), description="Attention implementations.")
    kv: tuple[KVKind, ...] = Field(default=(), description="Kinds of key/value cache.")
    compile: tuple[Compile, ...] = Field(default=(), description="How decode steps are made ahead.")
    batching: tuple[BatchingChoice, ...] = Field(default=(), description="Batching modes and sizes.")
    max_context: tuple[Annotated[int, Field(ge=16, le=10_000_000)], ...] = Field(
        default=(), description="Longest prompt + reply, tokens."
    )

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name in AXES:
            values = getattr(self, name)
            if len(set(map(str, values))) < len(values):
                raise ValueError(f"{name} names a value twice")
        return self


# Slowest to change first: cells that one loaded worker can serve are neighbours.
AXES = tuple(Axes.model_fields)
_FIELDS = {"scheme": "quantization.scheme", "kv": "kv.kind", "max_context": "kv.max_context"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One configuration of a sweep. ``name`` says by which values of the varied axes it differs."""

    position: int
    name: str
    recipe: Recipe

    @property
    def load_key(self) -> str:
        """Cells of one key are served by one loaded worker, changed live in between.

        llama.cpp allocates its slots as it loads; servers of other engines cannot change live at all.
        """
        if self.recipe.engine == "llama.cpp":
            return f"{self.recipe.load_key}-{llama_cpp.slots(self.recipe)}"
        return self.recipe.load_key if self.recipe.engine == "transformers" else self.recipe.fingerprint


class SweepPlan(_Value):
    """Many configurations measured by racing: all are probed, ``keep`` are measured, the best are confirmed.

    Before it is measured, each is judged by its fidelity where ``judges_fidelity`` says so.
    """

    schema_version: Literal[1] = Field(default=1, description="Version of this document's form.")
    name: str = Field(default="custom", min_length=1, max_length=80, description="Name shown with results.")
    base: Recipe = Field(default=Recipe(), description="What the axes vary; a preset's name stands for it.")
    axes: Axes = Field(default=Axes(), description="Along which fields, with which values.")
    workload: Workload = Field(
        description="What is asked of every configuration; a preset's name stands for it. Stages end it by time."
    )
    goal: Goal | None = Field(
        default=None, description="By which limits and objective they are ranked; or a preset's name."
    )
    probe_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=30.0, description="Seconds of load on every configuration at first; 0 leaves probes out."
    )
    keep: Annotated[int, Field(ge=1, le=MOST_CELLS)] | None = Field(
        default=8, description="So many of the best probes are measured; null measures all."
    )
    fidelity: bool = Field(
        default=False,
        description="Whether the fidelity of what the probes leave is judged before it is measured. Where the Goal "
        "has a fidelity limit it always is, and what breaks the limit is not measured.",
    )
    capacity_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        default=120.0,
        description="Seconds that measuring one configuration may take: at the Goal's users or rate, the search "
        "for its capacity where the Goal has limits but no load, else the Workload's own load.",
    )
    confirm: Annotated[int, Field(ge=0, le=100)] = Field(
        default=3, description="So many of the best are measured anew; 0 confirms none."
    )
    starts: Annotated[int, Field(ge=1, le=100)] = Field(
        default=3, description="Fresh starts with new prompts of each that is confirmed."
    )
    confirm_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        default=60.0, description="Seconds of load of each confirmation."
    )

    @field_validator("base", "workload", "goal", mode="before")
    @classmethod
    def _by_name(cls, given: Any, info: ValidationInfo) -> Any:
        """The preset of that name, whole: another version's preset must not change what a sweep resumes."""
        read = {"base": recipe_preset, "workload": workload_preset, "goal": goal_preset}
        try:
            return read[str(info.field_name)](given) if isinstance(given, str) else given
        except ModelNotFound as error:
            raise ValueError(f"{error.message} {error.hint}".rstrip(".")) from error

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        count = math.prod(len(getattr(self.axes, name)) or 1 for name in AXES)
        if count > MOST_CELLS:
            raise ValueError(f"the axes make {count:,} configurations; a sweep has at most {MOST_CELLS:,}")
        return self

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a SweepPlan document. Raises InputError naming the field."""
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"The sweep plan is not valid JSON: {error}.", _HELP) from error

    @classmethod
    def from_dict(cls, document: Any) -> Self:
        """As ``from_json``, from parsed JSON."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise InputError(f"The sweep plan is not valid: {validation_message(error)}.", _HELP) from error

    def to_json(self) -> str:
        """The whole document, two-space indented."""
        return self.model_dump_json(indent=2) + "\n"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything but the name: a sweep is resumed by the same plan."""
        return hashlib.sha256(self.model_dump_json(exclude={"name"}).encode()).hexdigest()

    def cells(self) -> tuple[Cell, ...]:
        """Every configuration, those of one worker together. Raises RecipeError for one that is no Recipe."""
        return tuple(
            Cell(position, _name(values), self._recipe(values))
            for position, values in enumerate(self._combinations())
        )

    def load(self) -> Workload:
        """The Workload at the Goal's users or rate, where it names one. Raises WorkloadError."""
        goal, asked = self.goal, self.workload
        if goal is not None and goal.rate_s is not None:
            kind = asked.arrivals.kind if asked.is_open else "poisson"
            return asked.replace({"arrivals": {"kind": kind, "rate_s": goal.rate_s}})
        if goal is not None and goal.users is not None:
            return asked.replace({"arrivals": {"kind": "closed"}, "concurrency": goal.users})
        return asked

    @property
    def seeks_capacity(self) -> bool:
        """Whether the Goal has limits and leaves the load open."""
        goal = self.goal
        return goal is not None and bool(goal.slo.limits()) and goal.users is None and goal.rate_s is None

    @property
    def fidelity_limits(self) -> FidelityLimits | None:
        """The Goal's, where it has any."""
        limits = None if self.goal is None else self.goal.fidelity
        return None if limits == FidelityLimits() else limits

    @property
    def judges_fidelity(self) -> bool:
        """Whether there is a fidelity stage."""
        return self.fidelity or self.fidelity_limits is not None

    def workload_of(self, stage: Stage, cell: Cell, start: int = 0, again: int = 0) -> Workload:
        """What is sent in a stage: prompts of its own, the same for every cell so that cells can be paired.

        A start that is made ``again``, for so many times, has prompts that none had before.
        A prefix cache may have seen another cell's prompts; such a cell gets prompts that nobody else has.
        A request that takes three times as long as its stage has failed: one slow cell must not hold up all others.
        """
        seconds = {"probe": self.probe_s, "measure": self.capacity_s, "confirm": self.confirm_s}[stage]
        repeat = self.workload.repeat + {"probe": 0, "measure": 1, "confirm": 2}[stage]
        repeat += start + again * self.starts
        if cell.recipe.prefix_cache:
            repeat += 1000 * (1 + cell.position)
        load = self.load()
        timeout_s = min(load.timeout_s, max(_LEAST_TIMEOUT_S, _TIMEOUT_SHARE * seconds))
        return load.replace({"duration_s": seconds, "repeat": repeat, "timeout_s": timeout_s})

    def _combinations(self) -> Iterator[dict[str, Any]]:
        varied = [name for name in AXES if getattr(self.axes, name)]
        for values in product(*(getattr(self.axes, name) for name in varied)):
            yield dict(zip(varied, values, strict=True))

    def _recipe(self, values: dict[str, Any]) -> Recipe:
        recipe = llama_cpp.with_engine(self.base, values["engine"]) if "engine" in values else self.base
        changes: dict[str, Any] = {}
        for name, value in values.items():
            if name == "batching":
                changes["batching.mode"] = value.mode
                if value.max_requests is not None:
                    changes["batching.max_requests"] = value.max_requests
            elif name == "model":
                changes["model"] = value.model_dump(mode="json")
            elif name != "engine":
                changes[_FIELDS.get(name, name)] = value
        return recipe.replace(changes)


def _name(values: dict[str, Any]) -> str:
    """As "llama.cpp · gguf · continuous 16"; "as it is" where nothing is varied."""
    return " · ".join(_word(name, value) for name, value in values.items()) or "as it is"


def _word(axis: str, value: Any) -> str:
    if axis == "model":
        return model_name(value)
    if axis == "scheme":
        return "unquantized" if value == "none" else str(value)
    if axis in ("kv", "compile"):
        return f"{axis} {value}"
    return f"context {value}" if axis == "max_context" else str(value)


def model_name(model: ModelRef) -> str:
    """Its id, of a path the last part; a shape of one's own by layers and width."""
    if model.shape is not None:
        return f"shape {model.shape.layers}×{model.shape.hidden}"
    return model.id.rstrip("/").rsplit("/", 1)[-1]
