"""Launch: how another engine's server is started for a Recipe, and what of the Recipe does not carry over.

This file does not know any engine's flags (``vllm.py``, ``sglang.py``) or how a process is started.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from mcp_core.recipe import DType, Recipe, SchemeName

__all__ = [
    "DTYPE_NAMES",
    "PAGE_TOKENS",
    "Given",
    "Launch",
    "NotCarried",
    "Refusal",
    "common_environment",
    "common_not_carried",
    "common_refusals",
    "running_requests",
]

DTYPE_NAMES: dict[DType, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# batching.kv_blocks counts pages of so many tokens, on every engine.
PAGE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Given:
    """What this machine adds to a Recipe: where the model lies, how long its context is, which port is free.

    ``memory_share`` is the part of the whole device's memory that vLLM may take; SGLang finds its own, of what is
    free. ``scratch`` is a folder for files that hold a secret; ``token`` is the key that clients will send.
    ``draft`` is the draft model's folder.
    """

    folder: Path
    max_context: int
    port: int
    token: str
    scratch: Path
    memory_share: float
    random_weights: bool = False
    draft: Path | None = None


@dataclass(frozen=True, slots=True)
class NotCarried:
    """A field of the Recipe that the engine does not have, or does otherwise, without a change of meaning."""

    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A field of the Recipe that means something which the engine cannot do."""

    field: str
    reason: str
    fix: str


@dataclass(frozen=True, slots=True)
class Launch:
    """``arguments`` follow the interpreter; ``files`` (path, text) are written first, readable by their owner."""

    arguments: tuple[str, ...]
    environment: dict[str, str]
    files: tuple[tuple[Path, str], ...] = ()


def running_requests(recipe: Recipe) -> int:
    """How many requests may run at once."""
    return recipe.batching.max_requests if recipe.batching.mode == "continuous" else 1


def common_environment(recipe: Recipe) -> dict[str, str]:
    """One device, numbered as the driver does; nothing fetched or reported: the model lies in a folder."""
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": _outer_name(recipe.device.removeprefix("cuda:")),
        "OMP_NUM_THREADS": str(recipe.threads or 1),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
    }


def _outer_name(number: str) -> str:
    """What the device of that number is called where it is not hidden from this process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[int(number)].strip() if visible and number.isdecimal() else number


def common_refusals(
    recipe: Recipe, title: str, schemes: Collection[SchemeName], other_scheme: str
) -> Iterator[Refusal]:
    """What neither vLLM nor SGLang can do.

    ``schemes`` are those that the engine applies while it loads; ``other_scheme`` is what to do about another.
    """
    if recipe.model.source not in ("hub", "folder", "shape"):
        yield Refusal(
            "model.source",
            f"{title} reads checkpoints in safetensors, not a GGUF file.",
            "Choose a Hub id, a folder or a shape, or engine llama.cpp.",
        )
    if recipe.batching.mode == "static":
        yield Refusal("batching.mode", f"{title} has no padded batches.", "Choose continuous or off.")
    yield from _scheme(recipe, title, schemes, other_scheme)
    yield from _quantization(recipe, title)
    yield from _kv(recipe, title)
    yield from _switches(recipe, title)
    yield from _speculation(recipe, title)


def common_not_carried(recipe: Recipe, title: str) -> Iterator[NotCarried]:
    """What both have not, or do otherwise, with the same meaning."""
    if recipe.kv.kind == "static":
        yield NotCarried("kv.kind", "keys and values lie in pages, not in one static block.")
    if recipe.kv.kind == "quantized-fp8":
        yield NotCarried("kv.kind", "fp8 scales are the checkpoint's, else 1; ours are found for each sequence.")
    if recipe.batching.mode == "continuous":
        yield NotCarried("batching.max_requests", "one request more waits; it is not refused.")
    if recipe.switches.cudnn_benchmark:
        yield NotCarried("switches.cudnn_benchmark", f"{title} does not set it.")


def _scheme(recipe: Recipe, title: str, schemes: Collection[SchemeName], other: str) -> Iterator[Refusal]:
    options = recipe.quantization
    if options.scheme not in schemes:
        yield Refusal("quantization.scheme", f"{title} does not apply {options.scheme} while it loads.", other)
    if options.scheme == "bnb-nf4" and not options.double_quant:
        reason = f"{title} always quantizes the block scales of NF4 too."
        yield Refusal("quantization.double_quant", reason, "Set it to true.")


def _quantization(recipe: Recipe, title: str) -> Iterator[Refusal]:
    options = recipe.quantization
    if options.skip and options.scheme != "none":
        yield Refusal(
            "quantization.skip",
            f"{title} names fused layers otherwise, and quantizes them all but lm_head.",
            "Leave it empty, or write a checkpoint with mcp-core quantize and serve that folder.",
        )
    if options.scheme.startswith("bnb") and recipe.model.source == "shape":
        yield Refusal(
            "quantization.scheme",
            f"{title} quantizes with bitsandbytes while it reads files; random weights have none.",
            "Choose none or torchao-fp8-dynamic.",
        )


def _kv(recipe: Recipe, title: str) -> Iterator[Refusal]:
    reason = _OTHER_KV.get(recipe.kv.kind)
    if reason:
        yield Refusal("kv.kind", f"{title} {reason}.", "Choose dynamic or quantized-fp8.")


_OTHER_KV = {
    "sliding": "drops no token that the model itself would attend to",
    "quantized-quanto": "has no such cache",
    "quantized-hqq": "has no such cache",
    "offloaded": "keeps keys and values of running requests on the device",
    "off": "always keeps keys and values",
}


def _switches(recipe: Recipe, title: str) -> Iterator[Refusal]:
    for field in ("tf32", "autocast"):
        if getattr(recipe.switches, field):
            yield Refusal(f"switches.{field}", f"{title} decides that itself.", "Leave it at its default.")


def _speculation(recipe: Recipe, title: str) -> Iterator[Refusal]:
    kind, draft = recipe.speculation, recipe.draft
    if kind == "draft" and draft is None:
        yield Refusal("speculation", "there is no draft model.", "Name one in draft, or choose prompt-lookup.")
    if kind != "draft" and draft is not None:
        yield Refusal("draft", "only speculation draft reads it.", "Set it to null, or speculation to draft.")
    if kind == "off" and recipe.draft_tokens is not None:
        yield Refusal("draft_tokens", "only speculation reads it.", "Set it to null.")
    if draft is not None and draft.source not in ("hub", "folder"):
        yield Refusal("draft", f"{title} reads a draft model from a checkpoint.", "Choose a Hub id or a folder.")
