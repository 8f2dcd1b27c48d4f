"""Predicted against measured memory: ``mcp-core bench`` of a list of Recipes, one row and one JSON file a case.

``python tests/bench/footprint.py OUT [--device cpu] [--seconds 3000] [--case NAME ...]``: cases already in OUT are
not run again, so a second call goes on where the first stopped. Each is a process of its own. Predicted is what the
planner says now for the load that was measured, without correction; the goal is 10 % on a CPU and 5 % on CUDA.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from mcp_core.models import catalog
from mcp_core.models.footprint import Predictor
from mcp_core.models.served_load import ServedLoad
from mcp_core.results import Run

SHAPE = {"layers": 24, "hidden": 1024, "intermediate": 3584, "heads": 16, "kv_heads": 8, "vocab": 64000}
HALF_BILLION = f"model={json.dumps({'source': 'shape', 'id': 'custom', 'shape': SHAPE})}"
SHORT, LONG = (384, 16), (1500, 16)  # prompt, reply
GOAL = {"cpu": 0.10, "cuda": 0.05}

# name -> preset, settings, (prompt, reply)
Case = tuple[str, tuple[str, ...], tuple[int, int]]


def scheme(name: str) -> str:
    return f"quantization.scheme={name}"


CPU: dict[str, Case] = {
    "135M bf16": ("bundled", ("dtype=bf16",), SHORT),
    "135M fp32": ("bundled", ("dtype=fp32",), SHORT),
    "135M bf16 bnb-int8": ("bundled", ("dtype=bf16", scheme("bnb-int8")), SHORT),
    "135M fp32 bnb-int8": ("bundled", ("dtype=fp32", scheme("bnb-int8")), SHORT),
    "135M bf16 bnb-nf4": ("bundled", ("dtype=bf16", scheme("bnb-nf4")), SHORT),
    "135M bf16 torchao-int8": ("bundled", ("dtype=bf16", scheme("torchao-int8-weight-only")), SHORT),
    "135M bf16 torchao-int8-dynamic": ("bundled", ("dtype=bf16", scheme("torchao-int8-dynamic")), SHORT),
    "135M bf16 torchao-int4": ("bundled", ("dtype=bf16", scheme("torchao-int4-weight-only")), SHORT),
    "135M bf16 torchao-int8-static": ("bundled", ("dtype=bf16", scheme("torchao-int8-static")), SHORT),
    "135M bf16 torchao-fp8": ("bundled", ("dtype=bf16", scheme("torchao-fp8-weight-only")), SHORT),
    "135M fp32 classic-dynamic": ("bundled", ("dtype=fp32", scheme("classic-dynamic")), SHORT),
    "135M bf16 static 2k": ("bundled", ("dtype=bf16", "kv.kind=static"), LONG),
    "135M bf16 fp8-kv 2k": ("bundled", ("dtype=bf16", "kv.kind=quantized-fp8"), LONG),
    "135M bf16 sliding 2k": ("bundled", ("dtype=bf16", "kv.kind=sliding"), LONG),
    "135M fp32 dynamic 2k": ("bundled", ("dtype=fp32",), LONG),
    "135M bf16 compiled": ("bundled", ("dtype=bf16", "compile=compiled"), SHORT),
    "135M fp32 compiled": ("bundled", ("dtype=fp32", "compile=compiled"), SHORT),
    "135M bf16 compiled, many": ("bundled", ("dtype=bf16", "compile=compiled", "batching.mode=continuous"), SHORT),
    "135M bf16 paged": ("bundled", ("dtype=bf16", "prefix_cache=true"), SHORT),
    "135M bf16 off": ("bundled", ("dtype=bf16", "kv.kind=off"), SHORT),
    "0.5B bf16": ("bundled", ("dtype=bf16", HALF_BILLION), SHORT),
    "0.5B fp32": ("bundled", ("dtype=fp32", HALF_BILLION), SHORT),
    "0.5B bf16 bnb-nf4": ("bundled", ("dtype=bf16", HALF_BILLION, scheme("bnb-nf4")), SHORT),
    "0.5B bf16 bnb-int8": ("bundled", ("dtype=bf16", HALF_BILLION, scheme("bnb-int8")), SHORT),
    "0.5B bf16 torchao-int8": ("bundled", ("dtype=bf16", HALF_BILLION, scheme("torchao-int8-weight-only")), SHORT),
}
CUDA: dict[str, Case] = {
    f"{preset.removesuffix('-shape')} {name}": (preset, settings, (128, 128))
    for preset in ("llama-2-7b-shape", "llama-2-13b-shape", "llama-3.1-8b-shape")
    for name, settings in {
        "bf16": (),
        "bnb-nf4": (scheme("bnb-nf4"),),
        "bnb-int8": (scheme("bnb-int8"),),
        "torchao-int8": (scheme("torchao-int8-weight-only"),),
        "torchao-int4": (scheme("torchao-int4-weight-only"),),
        "static": ("kv.kind=static",),
        "fp8-kv": ("kv.kind=quantized-fp8",),
        "graphs": ("compile=graphs",),
        "compiled": ("compile=compiled",),
        "many graphs": ("compile=graphs", "batching.mode=continuous"),
    }.items()
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=3000)
    parser.add_argument("--case", action="append")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + options.seconds
    kind = options.device.split(":")[0]
    errors = list(measured(options, CPU if kind == "cpu" else CUDA, ends))
    if errors:
        within = sum(abs(error) <= GOAL[kind] for error in errors)
        print(f"{within} of {len(errors)} within {GOAL[kind]:.0%}; median |error| {median(map(abs, errors)):.1%}")


def measured(options: argparse.Namespace, cases: dict[str, Case], ends: float) -> Iterator[float]:
    for name in options.case or cases:
        path = options.out / f"{options.device.replace(':', '-')}.{name.replace(' ', '_')}.json"
        if not path.exists() and time.monotonic() < ends:
            bench(cases[name], options.device, path, ends - time.monotonic())
        if path.exists():
            yield from report(name, Run.model_validate_json(path.read_text()))


def bench(case: Case, device: str, path: Path, seconds: float) -> None:
    preset, settings, (prompt, reply) = case
    context = 512 if prompt + reply <= 512 else 2048
    load = (f"prompt_tokens={prompt}", f"output_tokens={reply}", "requests=2", "warmup_requests=1")
    words = (f"device={device}", "threads=1", f"kv.max_context={context}", *settings)
    sets = [part for word in (*words, *(f"workload.{each}" for each in load)) for part in ("--set", word)]
    command = [sys.executable, "-m", "mcp_core.cli", "bench", preset, "short-chat", *sets, "--out", str(path)]
    try:
        result = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=max(30, seconds))
    except subprocess.TimeoutExpired:
        print(f"{path.stem}: no time left", flush=True)
        return
    if result.returncode:
        print(f"{path.stem}: {result.stderr.strip()[-400:]}", flush=True)


def report(name: str, run: Run) -> Iterator[float]:
    if run.memory is None or not run.memory.peak_bytes:
        print(f"{name:34} {run.status}: {run.failure.message if run.failure else 'no memory'}", flush=True)
        return
    context = run.effective.max_context if run.effective else 0
    load = ServedLoad.of_workload(run.workload, run.recipe, context)
    said = Predictor(run.recipe, catalog.resolve(run.recipe.model), run.hardware).at(load)
    peak, weights = run.memory.peak_bytes, run.memory.weights_bytes or 0
    error = said.peak_bytes / peak - 1
    mb = 1e6
    parts = ", ".join(f"{part[:12]} {size / mb:.0f}" for part, size in said.parts)
    print(
        f"{name:34} predicted {said.peak_bytes / mb:8.1f} MB  measured {peak / mb:8.1f} MB  error {error:+6.1%}"
        f"  weights {said.weights_bytes / mb:8.1f} / {weights / mb:8.1f}  [{parts}]",
        flush=True,
    )
    yield error


if __name__ == "__main__":
    main()
