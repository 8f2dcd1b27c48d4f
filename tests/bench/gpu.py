"""Speed, memory and the footprint's error of the shapes on an NVIDIA device; one JSON line and one row a case.

``python tests/bench/gpu.py OUT [--seconds 540] [--preset P ...]``: cases already in OUT are skipped, so a second
call goes on where the first stopped. Every case is ``mcp-core bench`` in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

INT8, NF4 = "quantization.scheme=torchao-int8-weight-only", "quantization.scheme=bnb-nf4"
CASES: dict[str, tuple[str, ...]] = {
    "none": (),
    "torchao-int8": (INT8,),
    "bnb-int8": ("quantization.scheme=bnb-int8",),
    "bnb-nf4": (NF4,),
    "bnb-nf4-dq": (NF4, "quantization.double_quant=true"),
    "bnb-fp4": ("quantization.scheme=bnb-fp4",),
    "none-static-kv": ("kv.kind=static",),
    "none-fp8-kv": ("kv.kind=quantized-fp8",),
    "none-offloaded-kv": ("kv.kind=offloaded",),
}
WORKLOAD = (
    "workload.requests=3",
    "workload.warmup_requests=1",
    "workload.prompt_tokens.min=128",
    "workload.prompt_tokens.max=128",
    "workload.output_tokens.min=128",
    "workload.output_tokens.max=128",
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--preset", action="append", default=None)
    parser.add_argument("--device", default="cuda:0")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + options.seconds
    for preset in options.preset or ["llama-2-7b-shape"]:
        for name, overrides in CASES.items():
            path = options.out / f"{preset}.{name}.json"
            if not path.exists() and time.monotonic() < ends:
                run_case(preset, (f"device={options.device}", *overrides), path, ends - time.monotonic())
            if path.exists():
                print(row(f"{preset} {name}", path), flush=True)


def run_case(preset: str, overrides: tuple[str, ...], path: Path, seconds: float) -> None:
    sets = [word for override in overrides for word in ("--set", override)]
    footprint = mcp("footprint", preset, *sets, "--json", seconds=60)
    load = [word for override in WORKLOAD for word in ("--set", override)]
    result = mcp("bench", preset, "short-chat", *sets, *load, "--out", f"{path}.part", "--json", seconds=seconds)
    run = Path(f"{path}.part")
    if run.exists():
        path.write_text(json.dumps({"footprint": json.loads(footprint.stdout), "run": json.loads(run.read_text())}))
        run.unlink()
    else:
        print(f"{path.stem}: rc {result.returncode} {result.stderr[-800:]}", flush=True)


def mcp(*words: str, seconds: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mcp_core.cli", *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(command, 124, "{}", f"timed out after {error.timeout:.0f} s")


def row(name: str, path: Path) -> str:
    document = json.loads(path.read_text())
    run, predicted = document["run"], document["footprint"]
    if run["status"] != "ok":
        return f"{name:34} {run['status']}: {run['failure']['message']}"
    memory, speed = run["memory"], run["measurement"]
    peak, guess = memory["peak_bytes"], predicted["peak_bytes"]
    return (
        f"{name:34} weights {memory['weights_bytes'] / 1e9:6.2f} GB"
        f" (predicted {predicted['weights_bytes'] / 1e9:6.2f})  peak {peak / 1e9:6.2f} GB"
        f" (predicted at full context {guess / 1e9:6.2f})"
        f"  load {run['load_s']:5.1f} s  TTFT {speed['ttft_ms']['p50']:6.1f} ms"
        f"  TPOT {speed['tpot_ms']['p50']:6.2f} ms"
        f"  engine {speed['engine_tpot_ms']:6.2f} ms  {speed['output_tok_s']:6.1f} tok/s"
    )


if __name__ == "__main__":
    main()
