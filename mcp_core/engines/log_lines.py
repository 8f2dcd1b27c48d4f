"""What another engine's log says while it starts: stages, sizes, and why it ended.

The lines are those of vLLM 0.23 and SGLang 0.5.23. This file does not know where the lines come from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mcp_core.errors import LoadFailed, McpError, OutOfMemory

__all__ = ["Learned", "cause_of_end", "stage_of"]

# A piece of a line -> (stage, what people read). The first match counts.
_STAGES = (
    (
        r"Starting to load model|Loading model from scratch|Load weight begin|Loading safetensors",
        "load",
        "Reading the weights.",
    ),
    (r"Capturing CUDA graphs|[Cc]apture cuda graph|Capturing batches", "warm-up", "Recording CUDA graphs."),
    (r"torch\.compile|[Cc]ompiling", "warm-up", "Compiling the model, which takes minutes the first time."),
    (r"GPU KV cache size|KV Cache is allocated|max_total_num_tokens=", "warm-up", "Keys and values have room."),
    (r"Application startup complete|fired up and ready", "check", "The server answers."),
)
_WEIGHTS = re.compile(r"(?:Model loading took|mem usage=)\s*([\d.]+)\s*Gi?B")
_CAPACITY = re.compile(r"(?:GPU KV cache size: |max_total_num_tokens=)([\d,]+)")
_ATTENTION = re.compile(r"Using (?:AttentionBackendEnum\.)?(\w+) (?:attention )?backend", re.IGNORECASE)
_FLASH_RELEASE = re.compile(r"Using FlashAttention version (\d)")
_NO_MEMORY = re.compile(r"out of memory|No available memory for the cache|Free memory on device|Not enough memory")
_ERROR = re.compile(r"\b\w*(?:Error|Exception)\b\S*:|error: |Not enough memory")
# An error that only points at the one before it, and a warning, which may quote an error that did not end anything.
_NO_CAUSE = re.compile(r"for (?:the )?root cause|See root cause|^(?:\([^)]*\)\s*)?WARNING\b")
_PREFIX = re.compile(
    r"^\([^)]*\)\s*|^(?:INFO|WARNING|ERROR)\s+\d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s*|^\[[^\]]*\]\s*"
)
_GIB = 1024**3


def stage_of(line: str) -> tuple[str, str] | None:
    """The stage of loading that this line announces, with a message; None for any other line."""
    found = ((stage, message) for pattern, stage, message in _STAGES if re.search(pattern, line))
    return next(found, None)


@dataclass(frozen=True, slots=True)
class Learned:
    """What the log has told so far: bytes of the weights, tokens that the cache holds, the attention kernel."""

    weights_bytes: int | None = None
    kv_capacity_tokens: int = 0
    attention: str | None = None

    def after(self, line: str) -> Learned:
        """The same, with what this line adds."""
        if found := _WEIGHTS.search(line):
            return replace(self, weights_bytes=round(float(found[1]) * _GIB))
        if found := _CAPACITY.search(line):
            return replace(self, kv_capacity_tokens=int(found[1].replace(",", "")))
        if self.attention is None and (found := _ATTENTION.search(line)):  # a draft model's comes later
            return replace(self, attention=found[1].lower())
        if self.attention == "flash_attn" and (found := _FLASH_RELEASE.search(line)):
            return replace(self, attention=f"flash_attention_{found[1]}")
        return self


def cause_of_end(title: str, code_name: str, lines: Sequence[str]) -> McpError:
    """Why the engine ended before it answered, by its last lines: the last that names a cause, else the last."""
    lines = [line for line in lines if line.strip()]
    causes = [line for line in lines if _ERROR.search(line) and not _NO_CAUSE.search(line)]
    said = _plain((causes or lines or ["nothing"])[-1])
    if lacks := [line for line in lines if _NO_MEMORY.search(line)]:
        said = _plain(lacks[-1])
        return OutOfMemory(
            f"{title} found too little memory while loading. It said: {said[:300]}",
            "Choose a smaller model, scheme, kv.max_context or batching.max_requests, or unload another model.",
        )
    return LoadFailed(
        f"{title} ended while loading ({code_name}). It said: {said[:300]}", "The worker's log has the whole story."
    )


def _plain(line: str) -> str:
    """Without the process names and times in front."""
    before = ""
    while before != line:
        before, line = line, _PREFIX.sub("", line)
    return line.strip()
