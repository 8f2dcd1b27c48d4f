"""Schemes on a CPU with the bundled model: weights as predicted and measured, prefill and decode against bf16.

``OMP_NUM_THREADS=1 python tests/bench/schemes.py [--rounds N] [--json FILE]``. One thread and the process's own CPU
time, all models in one process and in turns, medians of the rounds: ratios hold on a busy machine too. "bf16 again"
is the control: how far its ratios are from 1 is how far to trust the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from mcp_core.models import catalog, loader
from mcp_core.models.loaded import LoadedModel
from mcp_core.models.packing import pack
from mcp_core.recipe import Quantization, Recipe

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bf16": ("bf16", {}),
    "bf16 again": ("bf16", {}),
    "fp32": ("fp32", {}),
    "bnb-int8": ("bf16", {"scheme": "bnb-int8"}),
    "bnb-nf4": ("bf16", {"scheme": "bnb-nf4"}),
    "bnb-nf4 double": ("bf16", {"scheme": "bnb-nf4", "double_quant": True}),
    "bnb-fp4": ("bf16", {"scheme": "bnb-fp4"}),
    "int8 weight-only": ("bf16", {"scheme": "torchao-int8-weight-only"}),
    "int8 dynamic": ("bf16", {"scheme": "torchao-int8-dynamic"}),
    "int8 dynamic asymmetric": ("bf16", {"scheme": "torchao-int8-dynamic", "activations": "asymmetric"}),
    "int8 static": ("bf16", {"scheme": "torchao-int8-static"}),
    "int8 static SmoothQuant": ("bf16", {"scheme": "torchao-int8-static-smoothquant", "alpha": 0.5}),
    "int4 g32": ("bf16", {"scheme": "torchao-int4-weight-only", "group_size": 32}),
    "int4 g64": ("bf16", {"scheme": "torchao-int4-weight-only"}),
    "int4 g64 hqq": ("bf16", {"scheme": "torchao-int4-weight-only", "parameters": "hqq"}),
    "int4 g128": ("bf16", {"scheme": "torchao-int4-weight-only", "group_size": 128}),
    "fp8 weight-only": ("bf16", {"scheme": "torchao-fp8-weight-only"}),
    "classic-dynamic": ("fp32", {"scheme": "classic-dynamic"}),
}
PROMPT_TOKENS, NEW_TOKENS = 256, 4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {name: load(*case) for name, case in CASES.items()}
    print(f"loaded {len(models)} models", flush=True)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for turn in range(options.rounds + 1):
        for name, loaded in models.items():
            measured = timed(loaded)
            if turn:  # the first is a warm-up
                seconds[name].append(measured)
    rows = [row(name, models[name], seconds) for name in models]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(
        f"{'scheme':25}{'predicted MB':>14}{'measured MB':>13}{'dense layers':>14}{'prefill x':>11}{'decode x':>10}"
    )
    for each in rows:
        print(
            f"{each['name']:25}{each['predicted'] / 1e6:14.2f}{each['measured'] / 1e6:13.2f}"
            f"{each['dense']:14}{each['prefill']:11.2f}{each['decode']:10.2f}"
        )


def load(dtype: str, options: dict[str, Any]) -> LoadedModel:
    recipe = Recipe(device="cpu", threads=1, dtype=dtype, quantization=Quantization(**options))
    return loader.load(catalog.resolve(recipe.model), recipe, lambda *_: None)


@torch.inference_mode()
def timed(loaded: LoadedModel) -> tuple[float, float]:
    """CPU seconds of one prefill, and of one decode step."""
    ids = torch.arange(1000, 1000 + PROMPT_TOKENS)[None]
    began = time.process_time()
    out = loaded.model(ids, use_cache=True, logits_to_keep=1)
    prefilled = time.process_time()
    cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
    for _ in range(NEW_TOKENS):
        out = loaded.model(token, past_key_values=cache, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
    return prefilled - began, (time.process_time() - prefilled) / NEW_TOKENS


def row(name: str, loaded: LoadedModel, seconds: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    dtype, options = CASES[name]
    prefill, decode = (
        statistics.median(base[part] / own[part] for base, own in zip(seconds["bf16"], seconds[name], strict=True))
        for part in (0, 1)
    )
    return {
        "name": name,
        "predicted": pack(loaded.resolved.architecture, dtype, Quantization(**options)).total_bytes,
        "measured": loaded.weights_bytes,
        "dense": len(loaded.effective.skip_reasons),
        "prefill": prefill,
        "decode": decode,
    }


if __name__ == "__main__":
    main()
