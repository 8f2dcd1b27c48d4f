"""The article's advice that one button can try: a table of experiments, and what their figures say in words.

This file does not know how an experiment is run (``experiment_job.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mcp_core.errors import InputError
from mcp_core.evaluation.experiment_values import Comparison, ExperimentResult
from mcp_core.hardware import Hardware
from mcp_core.recipe import Recipe

__all__ = ["EXPERIMENTS", "Experiment", "experiment", "verdict", "why_not"]

Chapter = Literal["Memory", "GPU utilization"]

# Differences smaller than this are not worth a word, even where the interval excludes 1.
_NOTHING = 0.03


@dataclass(frozen=True, slots=True)
class Experiment:
    """One piece of advice. The Recipe's ``baseline`` fields against its ``changed`` fields, all else equal.

    ``lossless`` says that both must give the same greedy tokens in fp32. ``dtype`` None keeps the Recipe's own.
    ``prompt_times`` lengthens the prompt where the effect grows with it.
    """

    name: str
    chapter: Chapter
    title: str
    advice: str
    expectation: str
    baseline_label: str
    changed_label: str
    changed: Mapping[str, Any]
    baseline: Mapping[str, Any]
    lossless: bool
    dtype: Literal["fp32"] | None = "fp32"
    prompt_times: int = 1

    def recipes(self, recipe: Recipe) -> tuple[Recipe, Recipe]:
        """Baseline and changed: model, device, threads of ``recipe``; all else as it is by default."""
        plain = Recipe(
            model=recipe.model, device=recipe.device, threads=recipe.threads, dtype=self.dtype or recipe.dtype
        )
        return plain.replace(self.baseline), plain.replace(self.changed)

    def job_title(self, recipe: Recipe) -> str:
        """As "TF32 on smollm2-135m-instruct"."""
        return f"{self.title} on {recipe.model.id}"

    def is_title(self, title: str) -> bool:
        """Whether a job of that title tries this."""
        return title.startswith(f"{self.title} on ")


EXPERIMENTS: dict[str, Experiment] = {
    each.name: each
    for each in (
        Experiment(
            name="classic-dynamic",
            chapter="Memory",
            title="Dynamic quantization",
            advice="Convert the linear layers with torch.quantization: qconfig, prepare, convert.",
            expectation="int8 weights and activations, one scale for all activations of a call. torchao is its "
            "successor.",
            baseline_label="fp32",
            changed_label="classic int8",
            baseline={},
            changed={"quantization.scheme": "classic-dynamic"},
            lossless=False,
        ),
        Experiment(
            name="gradient-checkpointing",
            chapter="Memory",
            title="Gradient checkpointing",
            advice="Switch it on to save memory.",
            expectation="It throws activations away that only a backward pass needs; inference has none.",
            baseline_label="off",
            changed_label="on",
            baseline={},
            changed={},
            lossless=True,
        ),
        Experiment(
            name="kv-cache-off",
            chapter="Memory",
            title="KV cache off",
            advice="Set use_cache=False to save memory.",
            expectation="Every token then computes the whole sequence again.",
            baseline_label="cache on",
            changed_label="cache off",
            baseline={},
            changed={"kv.kind": "off"},
            lossless=True,
        ),
        Experiment(
            name="efficient-attention",
            chapter="Memory",
            title="Efficient attention",
            advice="Use flash attention where it is available.",
            expectation="It never writes the scores of all pairs of tokens to memory; the longer the prompt, the "
            "more that is.",
            baseline_label="eager",
            changed_label="sdpa",
            baseline={"attention": "eager"},
            changed={"attention": "sdpa"},
            lossless=True,
            dtype=None,
            prompt_times=3,
        ),
        Experiment(
            name="tf32",
            chapter="GPU utilization",
            title="TF32",
            advice="Allow TF32 products.",
            expectation="fp32 weights stay; products keep 10 bits of mantissa on tensor cores.",
            baseline_label="fp32",
            changed_label="TF32",
            baseline={},
            changed={"switches.tf32": True},
            lossless=False,
        ),
        Experiment(
            name="autocast",
            chapter="GPU utilization",
            title="Mixed precision (autocast)",
            advice="Run the model under autocast.",
            expectation="fp32 weights stay and are converted to bf16 at each use; bf16 weights need no conversion.",
            baseline_label="fp32",
            changed_label="autocast bf16",
            baseline={},
            changed={"switches.autocast": "bf16"},
            lossless=False,
        ),
        Experiment(
            name="cudnn-benchmark",
            chapter="GPU utilization",
            title="cudnn.benchmark",
            advice="Let cuDNN try its convolution algorithms.",
            expectation="A language model of this kind has no convolution.",
            baseline_label="off",
            changed_label="on",
            baseline={},
            changed={"switches.cudnn_benchmark": True},
            lossless=True,
        ),
    )
}


def experiment(name: str) -> Experiment:
    """Raises InputError for one that there is not."""
    if name not in EXPERIMENTS:
        raise InputError(f'There is no experiment "{name}".', f"There are: {', '.join(EXPERIMENTS)}.")
    return EXPERIMENTS[name]


def why_not(name: str, recipe: Recipe, hardware: Hardware) -> str | None:
    """Why this machine cannot do it with this model; None where it can."""
    for each in experiment(name).recipes(recipe):
        for conflict in each.conflicts(hardware):
            return conflict.reason
    return None


def verdict(result: ExperimentResult) -> str:
    """What the figures say, in a sentence or two."""
    if result.name == "gradient-checkpointing":
        training, serving = result.comparisons
        return f"Training only: {_memory(training)}, {_time(training)}. Inference: {_time(serving)}."
    words = [f"{each.what}: {_time(each)}" for each in result.comparisons]
    memory = _memory(result.comparisons[0])
    return f"{'; '.join((*words, memory))}.{_quality(result)}"


def _time(comparison: Comparison) -> str:
    """As "3.1 times as fast", "22 % more time"; "no measurable difference" where the interval holds 1."""
    ratio = comparison.ratio
    if ratio.low <= 1 <= ratio.high or abs(ratio.value - 1) < _NOTHING:
        return "no measurable difference in time"
    if ratio.value >= 2:
        return f"{_significant(ratio.value)} times the time"
    if ratio.value <= 0.5:
        return f"{_significant(1 / ratio.value)} times as fast"
    return f"{abs(ratio.value - 1):.0%} {'more' if ratio.value > 1 else 'less'} time"


def _memory(comparison: Comparison) -> str:
    before, after = comparison.baseline_peak_bytes, comparison.changed_peak_bytes
    if not before or after is None:
        return "memory was not measured"
    change = after / before - 1
    if abs(change) < _NOTHING:
        return "no difference in memory"
    return f"{abs(change):.0%} {'more' if change > 0 else 'less'} memory"


def _quality(result: ExperimentResult) -> str:
    agreement = result.agreement
    if agreement is None:
        return ""
    if agreement.identical:
        return " The same tokens."
    if agreement.identical is False:
        return " Other tokens: in this type near ties fall either way."
    top1, kl = agreement.top1 or 0.0, agreement.kl_mean or 0.0
    return f" Top-1 agreement {top1:.1%}, KL {kl:.2g} nats."


def _significant(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"
