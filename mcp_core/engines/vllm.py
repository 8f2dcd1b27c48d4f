"""vLLM: a Recipe as ``vllm serve``'s command line.

The flags are those of vLLM 0.23 (``vllm/engine/arg_utils.py``, ``vllm/entrypoints/openai/cli_args.py``). This file
does not know how the process is started.
"""

from __future__ import annotations

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

_TITLE = "vLLM"
_AS_CHECKPOINT = "Write a checkpoint with mcp-core quantize, and serve that folder with scheme none."
# Schemes that vLLM applies to a dense checkpoint while it loads; "none" leaves what the checkpoint came with.
_SCHEMES: dict[SchemeName, tuple[str, ...]] = {
    "none": (),
    "bnb-nf4": ("--quantization", "bitsandbytes"),
    "torchao-fp8-dynamic": ("--quantization", "fp8"),
}
# Methods of checkpoints that come quantized, as models/stored_quantization.py names them.
STORED_METHODS = frozenset({"gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8", "mxfp4", "torchao"})
_ATTENTION = {
    "flash_attention_2": ("--attention-backend", "FLASH_ATTN"),
    "flash_attention_3": ("--attention-backend", "FLASH_ATTN"),
    "flex_attention": ("--attention-backend", "FLEX_ATTENTION"),
}


def refusals(recipe: Recipe) -> Iterator[Refusal]:
    """What this Recipe asks that vLLM cannot do, or would do with another meaning."""
    yield from common_refusals(recipe, _TITLE, _SCHEMES, _AS_CHECKPOINT)
    batching = recipe.batching
    if batching.mode == "continuous" and batching.step_tokens < batching.max_requests:
        yield Refusal(
            "batching.step_tokens",
            "vLLM wants at least one token of a step for each running request.",
            f"Set it to {batching.max_requests} or more.",
        )


def not_carried(recipe: Recipe) -> Iterator[NotCarried]:
    """What vLLM has not, or does otherwise, with the same meaning."""
    yield from common_not_carried(recipe, _TITLE)
    if recipe.attention in ("sdpa", "eager"):
        yield NotCarried("attention", f"vLLM chooses its own kernel; it has no {recipe.attention}.")
    if recipe.attention in ("flash_attention_2", "flash_attention_3"):
        yield NotCarried("attention", "which release of FlashAttention runs is vLLM's choice by the device.")
    if recipe.quantization.scheme == "torchao-fp8-dynamic":
        yield NotCarried("quantization.scheme", "vLLM's own fp8: one weight scale a matrix, not one a row.")
    if recipe.compile == "graphs":
        yield NotCarried("compile", "besides recording CUDA graphs, vLLM compiles the model.")
    if recipe.compile == "autotuned":
        yield NotCarried("compile", "vLLM compiles and tunes by its own rules.")


def launch(recipe: Recipe, given: Given) -> Launch:
    """The command line after the interpreter. The key goes by the environment, which other users cannot read."""
    arguments = (
        *("-m", "vllm.entrypoints.cli.main", "serve", str(given.folder)),
        *("--host", "127.0.0.1", "--port", str(given.port)),
        *("--served-model-name", recipe.model.id),
        *("--dtype", DTYPE_NAMES[recipe.dtype]),
        *("--max-model-len", str(given.max_context)),
        *("--gpu-memory-utilization", f"{given.memory_share:.2f}"),
        *("--max-num-seqs", str(running_requests(recipe))),
        *("--generation-config", "vllm"),  # sampling defaults of the API, not of the checkpoint
        "--enable-prompt-tokens-details",
        *("--disable-uvicorn-access-log", "--disable-fastapi-docs"),
        *("--allowed-origins", "[]"),  # by default any page in a browser may call it
        *_SCHEMES[recipe.quantization.scheme],
        *_ATTENTION.get(recipe.attention, ()),
        *_cache(recipe),
        *_steps(recipe),
        *_speculation(recipe, given),
        *(("--load-format", "dummy") if given.random_weights else ()),
    )
    environment = common_environment(recipe) | {"VLLM_API_KEY": given.token, "VLLM_NO_USAGE_STATS": "1"}
    return Launch(arguments, environment)


def _cache(recipe: Recipe) -> Iterator[str]:
    yield "--enable-prefix-caching" if recipe.prefix_cache else "--no-enable-prefix-caching"
    if recipe.kv.kind == "quantized-fp8":
        yield from ("--kv-cache-dtype", "fp8")
    if recipe.batching.kv_blocks is not None:
        yield from ("--block-size", str(PAGE_TOKENS))
        yield from ("--num-gpu-blocks-override", str(recipe.batching.kv_blocks))


def _steps(recipe: Recipe) -> Iterator[str]:
    if recipe.compile == "off":
        yield "--enforce-eager"
    if recipe.batching.mode == "continuous":
        yield from ("--max-num-batched-tokens", str(recipe.batching.step_tokens))


def _speculation(recipe: Recipe, given: Given) -> Iterator[str]:
    if recipe.speculation == "prompt-lookup":
        yield from ("--spec-method", "ngram", "--spec-tokens", str(recipe.draft_tokens or 10))
    elif recipe.speculation == "draft":
        yield from ("--spec-method", "draft_model", "--spec-model", str(given.draft))
        yield from ("--spec-tokens", str(recipe.draft_tokens or 5))
