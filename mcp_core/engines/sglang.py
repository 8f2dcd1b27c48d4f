"""SGLang: a Recipe as ``sglang.launch_server``'s command line.

The flags are those of SGLang 0.5.23 (``sglang/srt/arg_groups/fields``). This file does not know how the process is
started.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from mcp_core.engines.launch import (
    DTYPE_NAMES,
    PAGE_TOKENS,
    Given,
    Launch,
    NotCarried,
    Refusal,
    common_environment,
    common_not_carried,
    common_refusals,
    running_requests,
)
from mcp_core.recipe import Recipe, SchemeName

__all__ = ["STORED_METHODS", "launch", "not_carried", "refusals"]

_TITLE = "SGLang"
_AS_CHECKPOINT = "Serve a checkpoint in compressed-tensors, GPTQ, AWQ or FP8 with scheme none, or choose none."
_SCHEMES: dict[SchemeName, tuple[str, ...]] = {
    "none": (),
    "bnb-nf4": ("--quantization", "bitsandbytes", "--load-format", "bitsandbytes"),
    "torchao-fp8-dynamic": ("--quantization", "fp8"),
}
# Methods of checkpoints that come quantized; this release has no torchao.
STORED_METHODS = frozenset({"gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8", "mxfp4"})
_ATTENTION = {
    "flash_attention_3": ("--attention-backend", "fa3"),
    "flex_attention": ("--attention-backend", "flex_attention"),
}


def refusals(recipe: Recipe) -> Iterator[Refusal]:
    """What this Recipe asks that SGLang cannot do, or would do with another meaning."""
    yield from common_refusals(recipe, _TITLE, _SCHEMES, _AS_CHECKPOINT)


def not_carried(recipe: Recipe) -> Iterator[NotCarried]:
    """What SGLang has not, or does otherwise, with the same meaning."""
    yield from common_not_carried(recipe, _TITLE)
    if recipe.attention not in _ATTENTION:
        yield NotCarried("attention", f"SGLang chooses its own kernel; it has no {recipe.attention}.")
    if recipe.batching.mode == "continuous":
        yield NotCarried("batching.step_tokens", "it bounds a chunk of a prompt; decoding tokens come on top.")
    if recipe.quantization.scheme == "torchao-fp8-dynamic":
        yield NotCarried("quantization.scheme", "SGLang's own fp8, with its own scales.")


def launch(recipe: Recipe, given: Given) -> Launch:
    """The command line after the interpreter. SGLang takes its key by no environment variable: a file holds it."""
    secrets = given.scratch / "sglang.yaml"
    arguments = (
        *("-m", "sglang.launch_server", "--config", str(secrets)),
        *("--model-path", str(given.folder)),
        *("--host", "127.0.0.1", "--port", str(given.port)),
        *("--served-model-name", recipe.model.id),
        *("--dtype", DTYPE_NAMES[recipe.dtype]),
        *("--context-length", str(given.max_context)),
        *("--max-running-requests", str(running_requests(recipe))),
        *("--sampling-defaults", "openai"),
        *("--enable-metrics", "--enable-cache-report"),
        *("--log-level-http", "warning"),
        *_SCHEMES[recipe.quantization.scheme],
        *_ATTENTION.get(recipe.attention, ()),
        *_cache(recipe),
        *_steps(recipe),
        *_speculation(recipe, given),
        *(("--load-format", "dummy") if given.random_weights else ()),
    )
    # JSON is YAML, and its quotes keep a key that looks like a number a text.
    return Launch(arguments, common_environment(recipe), ((secrets, json.dumps({"api-key": given.token})),))


def _cache(recipe: Recipe) -> Iterator[str]:
    if not recipe.prefix_cache:
        yield "--disable-radix-cache"
    if recipe.kv.kind == "quantized-fp8":
        yield from ("--kv-cache-dtype", "fp8_e4m3")
    if recipe.batching.kv_blocks is not None:
        yield from ("--max-total-tokens", str(recipe.batching.kv_blocks * PAGE_TOKENS))


def _steps(recipe: Recipe) -> Iterator[str]:
    if recipe.compile == "off":
        yield from ("--disable-decode-cuda-graph", "--disable-prefill-cuda-graph")
    if recipe.batching.mode == "continuous":
        yield from ("--chunked-prefill-size", str(recipe.batching.step_tokens))


def _speculation(recipe: Recipe, given: Given) -> Iterator[str]:
    if recipe.speculation == "prompt-lookup":
        yield from ("--speculative-algorithm", "NGRAM")
        yield from ("--speculative-num-draft-tokens", str(recipe.draft_tokens or 10))
    elif recipe.speculation == "draft":
        steps = recipe.draft_tokens or 5
        yield from ("--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", str(given.draft))
        yield from ("--speculative-num-steps", str(steps), "--speculative-eagle-topk", "1")
        yield from ("--speculative-num-draft-tokens", str(steps + 1))
