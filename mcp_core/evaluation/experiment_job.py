"""The experiment job: one piece of advice tried on one model, both ways in turn, and its result kept.

This file does not know which advice there is (``experiments.py``) or what a step does (``experiment_arms.py``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mcp_core import conflicts, hardware
from mcp_core.errors import McpError, OutOfMemory
from mcp_core.evaluation import experiment_results
from mcp_core.evaluation.experiment_arms import Arm, Work, arms_of, distribution_agreement, peak_bytes, timed_ms
from mcp_core.evaluation.experiment_values import Agreement, Comparison, ExperimentResult, median_ratio
from mcp_core.evaluation.experiments import Experiment, experiment
from mcp_core.hardware import Hardware
from mcp_core.jobs import Job, Outcome
from mcp_core.memory.checkpointing import checkpointing, trainable, training_step
from mcp_core.models import catalog, loader
from mcp_core.models.architecture import DTYPE_BYTES
from mcp_core.models.load_errors import memory_watched
from mcp_core.models.loaded import LoadedModel
from mcp_core.recipe import Recipe
from mcp_core.results import now

__all__ = ["REPEATS", "Sizes", "run"]

# Pairs; from six on the interval of the median reaches 95 %.
REPEATS = 7
# A training step takes a CPU a quarter of a minute: five pairs, whose range holds the median with 94 %.
TRAINING_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work one step is, tokens."""

    prompt: int
    long_prompt: int
    new: int
    judged: int
    batch: int
    batch_tokens: int


_SIZES = {"cpu": Sizes(64, 256, 8, 512, 2, 512), "cuda": Sizes(512, 2048, 32, 1024, 2, 512)}


async def run(job: Job) -> Outcome:
    """Request: name, recipe. Secrets: hub_token. The result is an ExperimentResult, which is kept as well."""
    machine = hardware.detect()
    asked, what = (
        conflicts.resolve(Recipe.from_dict(job.request["recipe"]), machine),
        experiment(job.request["name"]),
    )
    torch.set_num_threads(asked.threads or 1)
    started_s = time.monotonic()
    with memory_watched(f"trying {what.title}"):
        study = _Study(what, asked, machine, job)
        found = await (study.training() if what.name == "gradient-checkpointing" else study.serving())
    result = found.result(study, time.monotonic() - started_s)
    experiment_results.keep(result)
    return Outcome("done", result=result.model_dump(mode="json"))


@dataclass(slots=True)
class _Found:
    """What is known so far."""

    comparisons: list[Comparison] = field(default_factory=list)
    agreement: Agreement | None = None
    notes: list[str] = field(default_factory=list)

    def result(self, study: _Study, seconds: float) -> ExperimentResult:
        device = study.machine.device(study.baseline_recipe.device)
        assert device is not None, "the model was loaded on it"
        return ExperimentResult(
            name=study.what.name,
            model=study.loaded.title,
            device=device.id,
            device_name=device.name,
            dtype=study.baseline_recipe.dtype,
            threads=torch.get_num_threads(),
            created=now(),
            seconds=seconds,
            comparisons=tuple(self.comparisons),
            agreement=self.agreement,
            notes=tuple(self.notes),
            random_weights=study.loaded.random_weights,
        )


class _Study:
    """One experiment while it runs."""

    def __init__(self, what: Experiment, recipe: Recipe, machine: Hardware, job: Job) -> None:
        """Loads what both ways need. Raises RecipeError for what cannot run here, and what loading raises."""
        self.what = what
        self.machine = machine
        self._job = job
        self._done = 0
        self._planned = 1
        self.baseline_recipe, self.changed_recipe = what.recipes(recipe)
        for each in (self.baseline_recipe, self.changed_recipe):
            conflicts.require_runnable(each, machine)
        self.loaded = self._load(self.baseline_recipe)
        self.sizes = _SIZES[torch.device(recipe.device).type]

    async def serving(self) -> _Found:
        """Prefill and decode both ways; then whether they say the same."""
        other = self._load(self.changed_recipe) if self._needs_both() else self.loaded
        baseline, changed = arms_of(self.what, self.loaded, other, self.baseline_recipe, self.changed_recipe)
        works = [each for each in self._works(baseline) if self._tells_something(each)]
        self._planned = len(works) * REPEATS
        found = _Found()
        tokens: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        for work in works:
            comparison, tokens = await self._compare(work, baseline, changed)
            found.comparisons.append(comparison)
        found.notes += [arm.note for arm in (baseline, changed) if arm.note]
        found.agreement = self._agreement(baseline, changed, tokens)
        return found

    async def training(self) -> _Found:
        """A training step with and without checkpointing, then the same switch around decoding."""
        self._require_room_for_gradients()
        self._planned = TRAINING_REPEATS + REPEATS
        found, model = _Found(), self.loaded.model
        ids = torch.randint(3, self.loaded.vocab_size, (self.sizes.batch, self.sizes.batch_tokens))
        ids = ids.to(model.device)
        losses: dict[str, float] = {}

        def step(on: bool) -> Callable[[], None]:
            def work() -> None:
                with checkpointing(model, on=on):
                    losses[str(on)] = training_step(model, ids)

            return work

        label = f"Training step, {self.sizes.batch} x {self.sizes.batch_tokens} tokens"
        with trainable(model):
            found.comparisons.append(
                await self._pairs(label, step(on=False), step(on=True), repeats=TRAINING_REPEATS)
            )
        found.notes.append(f"Loss {losses['False']:.4f} without and {losses['True']:.4f} with checkpointing.")
        baseline, changed = arms_of(self.what, self.loaded, self.loaded, self.baseline_recipe, self.changed_recipe)
        decode = self._works(baseline)[-1]
        comparison, tokens = await self._compare(decode, baseline, changed)
        found.comparisons.append(comparison)
        found.agreement = self._agreement(baseline, changed, tokens)
        return found

    def _works(self, arm: Arm) -> list[Work]:
        sizes = self.sizes
        longest = arm.max_context - sizes.new
        asked = (sizes.prompt, sizes.long_prompt * self.what.prompt_times)
        prompt, long_prompt = (min(each, longest) for each in asked)
        ordinary = [index for index in range(self.loaded.vocab_size) if index not in self.loaded.special_ids]
        ids = tuple(ordinary[(7 * at + 5) % len(ordinary)] for at in range(long_prompt))
        return [
            Work(f"Prompt of {long_prompt} tokens", ids, 0),
            Work(f"{sizes.new} tokens after {prompt}", ids[:prompt], sizes.new),
            Work(f"{sizes.new} tokens after {long_prompt}", ids, sizes.new),
        ]

    def _tells_something(self, work: Work) -> bool:
        """A prompt costs the same with and without a cache; tokens after a short one are told by a longer one."""
        if self.what.name == "kv-cache-off":
            return work.new > 0
        return work.new == 0 or len(work.prompt) > self.sizes.prompt

    async def _compare(
        self, work: Work, baseline: Arm, changed: Arm
    ) -> tuple[Comparison, tuple[tuple[int, ...], tuple[int, ...]]]:
        answers: dict[str, tuple[int, ...]] = {}

        def of(arm: Arm) -> Callable[[], float]:
            def once() -> float:
                answers[arm.label], elapsed_ms = arm.do(work)
                return elapsed_ms

            return once

        comparison = await self._pairs(work.what, of(baseline), of(changed), baseline, changed)
        return comparison, (answers[baseline.label], answers[changed.label])

    async def _pairs(
        self,
        what: str,
        baseline: Callable[[], Any],
        changed: Callable[[], Any],
        baseline_arm: Arm | None = None,
        changed_arm: Arm | None = None,
        repeats: int | None = None,
    ) -> Comparison:
        """Both once for memory and warmth, then in turn, the order turned around each time."""
        device = torch.device(self.baseline_recipe.device)
        ways = (baseline, changed)
        peaks = []
        for way, arm in zip(ways, (baseline_arm, changed_arm), strict=True):
            way()  # what the first time allocates for good is no peak of the work
            peaks.append(peak_bytes(way, device, arm.weights_bytes if arm else self.loaded.weights_bytes))
            await asyncio.sleep(0)  # where a cancellation arrives
        times: tuple[list[float], list[float]] = ([], [])
        for repeat in range(repeats or REPEATS):
            for index in (0, 1) if repeat % 2 == 0 else (1, 0):
                times[index].append(timed_ms(ways[index], device))
                await asyncio.sleep(0)
            self._report(what)
        return _comparison(what, self.what, times, peaks)

    def _agreement(
        self, baseline: Arm, changed: Arm, tokens: tuple[Sequence[int], Sequence[int]]
    ) -> Agreement | None:
        """Raises McpError where a lossless way says something else in fp32: that is no opinion but a fault."""
        if not self.what.lossless:
            return distribution_agreement(baseline, changed, self.loaded, self.sizes.judged)
        before, after = tokens
        identical = list(before) == list(after)
        if not identical and self.baseline_recipe.dtype == "fp32":
            raise McpError(
                f"{self.what.title}: both ways must give the same tokens in fp32, and did not.",
                "Report it with the job's log; nothing was kept.",
            )
        return Agreement(tokens=len(before), identical=identical)

    def _needs_both(self) -> bool:
        return self.baseline_recipe.quantization != self.changed_recipe.quantization

    def _load(self, recipe: Recipe) -> LoadedModel:
        token = self._job.secrets.get("hub_token")
        plain = recipe.replace({"switches": {}})  # an arm sets them, so that one model serves both
        return loader.load(catalog.resolve(recipe.model, hub_token=token), plain, self._job.tell, token)

    def _report(self, what: str) -> None:
        self._done += 1
        self._job.tell("measure", min(1.0, self._done / self._planned), what)

    def _require_room_for_gradients(self) -> None:
        """Raises OutOfMemory where gradients and activations will not fit beside the weights."""
        device = self.machine.device(self.baseline_recipe.device)
        assert device is not None
        needed = 2 * self.loaded.weights_bytes + self._activation_bytes()  # weights, and a gradient for each
        if needed > device.memory_free_bytes:
            raise OutOfMemory(
                f"A training step of {self.loaded.title} needs about {needed / 1e9:.1f} GB in fp32.",
                "Choose a smaller model for this experiment, as the bundled one.",
            )

    def _activation_bytes(self) -> int:
        """For the backward pass: about ten hidden vectors and four of the MLP a layer, and four rows of logits.

        SmolLM2-135M at 2 x 512 tokens: 2.3 GB, and 0.5 GB of gradients; 2.6 GB were measured in all.
        """
        model, tokens = self.loaded.resolved.architecture, self.sizes.batch * self.sizes.batch_tokens
        layer = 10 * model.hidden + 4 * model.intermediate * max(1, model.active_experts)
        return tokens * (model.layers * layer + 4 * model.vocab) * DTYPE_BYTES["fp32"]


def _comparison(
    what: str, of: Experiment, times: tuple[list[float], list[float]], peaks: Sequence[int | None]
) -> Comparison:
    before, after = times
    return Comparison(
        what=what,
        baseline=of.baseline_label,
        changed=of.changed_label,
        baseline_ms=sorted(before)[len(before) // 2],
        changed_ms=sorted(after)[len(after) // 2],
        ratio=median_ratio(before, after),
        repeats=len(before),
        baseline_peak_bytes=peaks[0],
        changed_peak_bytes=peaks[1],
    )
