"""Schemes on an NVIDIA device: weights, predicted and measured peak, TPOT at batch 1 and 32; a row and file a case.

``python tests/bench/gpu.py OUT [--seconds 540] [--preset P ...] [--case C ...]``: cases already in OUT are skipped,
so a second call goes on where the first stopped. A case is one worker: first one request at a time (batching off),
then, changed live, 32 at a time (continuous). Weights are random, so text means nothing and LLM.int8 sees outliers
that a trained model has not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

from mcp_core import hardware
from mcp_core.errors import McpError
from mcp_core.evaluation.benchmark import measure
from mcp_core.presets import recipe_preset
from mcp_core.recipe import Recipe
from mcp_core.results import Run
from mcp_core.serving.client import ServerClient, open_session
from mcp_core.serving.supervisor import Supervisor, Worker
from mcp_core.workload import Lengths, Workload


def scheme(name: str, **more: Any) -> dict[str, Any]:
    return {"quantization.scheme": name} | {f"quantization.{field}": value for field, value in more.items()}


CASES: dict[str, dict[str, Any]] = {
    "none": {},
    "torchao-int8": scheme("torchao-int8-weight-only"),
    "torchao-int8-dynamic": scheme("torchao-int8-dynamic"),
    "torchao-int4 g128": scheme("torchao-int4-weight-only", group_size=128),
    "torchao-fp8": scheme("torchao-fp8-weight-only"),
    "torchao-fp8-dynamic": scheme("torchao-fp8-dynamic"),
    "bnb-nf4": scheme("bnb-nf4"),
    "bnb-int8": scheme("bnb-int8"),
    "bnb-fp4": scheme("bnb-fp4"),
}
TOKENS = Lengths(min=128, max=128)
# 32 sequences of 256 tokens and room to spare, so that the pool is no part of the comparison.
POOL = {"batching.kv_blocks": 640, "kv.max_context": 512}
ALONE = Workload(name="batch 1", requests=2, prompt_tokens=TOKENS, output_tokens=TOKENS, warmup_requests=1)
TOGETHER = Workload(
    name="batch 32",
    requests=32,
    concurrency=32,
    prompt_tokens=TOKENS,
    output_tokens=Lengths(min=64, max=64),
    warmup_requests=1,
    seed=1,
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--preset", action="append")
    parser.add_argument("--case", action="append")
    parser.add_argument("--device", default="cuda:0")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + options.seconds
    for preset in options.preset or ["llama-2-7b-shape", "llama-2-13b-shape"]:
        for name in options.case or CASES:
            path = options.out / f"{preset}.{name.replace(' ', '-')}.json"
            if not path.exists() and time.monotonic() < ends:
                recipe = recipe_preset(preset).replace({"device": options.device} | POOL | CASES[name])
                path.write_text(json.dumps(asyncio.run(measured(recipe))))
            if path.exists():
                print(row(f"{preset} {name}", json.loads(path.read_text())), flush=True)


async def measured(recipe: Recipe) -> dict[str, Any]:
    """Both Runs, or why there are none."""
    supervisor = Supervisor()
    try:
        worker = await supervisor.start(recipe)
        alone = await one(worker, ALONE)
        async with open_session() as session:
            client = ServerClient(str(worker.url), worker.token, session)
            await client.set_recipe(worker.recipe.replace({"batching.mode": "continuous"}))
        together = await one(worker, TOGETHER)
        return {"alone": alone.model_dump(mode="json"), "together": together.model_dump(mode="json")}
    except McpError as error:
        return {"failure": error.as_dict()}
    finally:
        await supervisor.close()


async def one(worker: Worker, workload: Workload) -> Run:
    return await measure(str(worker.url), worker.token, worker.recipe, workload, hardware.detect())


def row(name: str, document: dict[str, Any]) -> str:
    if "failure" in document:
        return f"{name:42} {document['failure']['message']}"
    alone, together = (Run.model_validate(document[key]) for key in ("alone", "together"))
    return f"{name:42} {memory(alone)}  {speed('b1', alone)}  {speed('b32', together)}"


def memory(run: Run) -> str:
    if run.memory is None or run.memory.peak_bytes is None or run.predicted is None:
        return "memory not measured"
    peak, said = run.memory.peak_bytes / 1e9, run.predicted.peak_bytes / 1e9
    weights, predicted = (run.memory.weights_bytes or 0) / 1e9, run.predicted.weights_bytes / 1e9
    load = f"load {run.load_s:.0f} s" if run.load_s else ""
    held = f"weights {weights:6.2f} ({predicted:6.2f}) GB"
    return f"{held}  peak {peak:6.2f} ({said:6.2f}, {said / peak - 1:+.1%}) GB  {load}"


def speed(label: str, run: Run) -> str:
    if run.measurement is None or run.status != "ok":
        return f"{label} {run.status}: {run.failure.message if run.failure else ''}"
    measured = run.measurement
    return f"{label} TPOT {measured.tpot_ms.p50 or 0:6.2f} ms {measured.output_tok_s or 0:7.1f} tok/s"


if __name__ == "__main__":
    main()
