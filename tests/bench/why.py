"""Why: ceilings of this device, then verdicts on several configurations of one model, a row each.

``python tests/bench/why.py [PRESET] [--case NAME ...] [--out FILE]``: without PRESET the 7B shape where there is an
NVIDIA device, else the bundled model. Cases in FILE are not run again. On an H100 the expected verdicts are
launch-bound for eager bf16 and LLM.int8, bandwidth-bound for recorded steps (facts/gpu.md). Each case is ``mcp-core
profile``: a short Run, then a trace.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mcp_core import hardware

CASES: dict[str, dict[str, list[str]]] = {
    "cuda": {
        "bf16 eager": [],
        "bf16 recorded": ["compile=graphs"],
        "bf16 compiled": ["compile=compiled"],
        "LLM.int8": ["quantization.scheme=bnb-int8"],
        "NF4 eager": ["quantization.scheme=bnb-nf4"],
        "NF4 recorded": ["quantization.scheme=bnb-nf4", "compile=graphs"],
        "int8 weights recorded": ["quantization.scheme=torchao-int8-weight-only", "compile=graphs"],
    },
    "cpu": {
        "fp32": ["dtype=fp32"],
        "bf16": ["dtype=bf16"],
        "bf16 NF4": ["dtype=bf16", "quantization.scheme=bnb-nf4"],
        "bf16 int8 weights": ["dtype=bf16", "quantization.scheme=torchao-int8-weight-only"],
        "fp32 int8 dynamic": ["dtype=fp32", "quantization.scheme=torchao-int8-dynamic"],
    },
}


def main() -> None:
    machine = hardware.detect()
    kind = "cuda" if machine.cuda_devices and machine.torch_cuda else "cpu"
    parser = argparse.ArgumentParser()
    parser.add_argument("preset", nargs="?", default="llama-2-7b-shape" if kind == "cuda" else "bundled")
    parser.add_argument("--case", action="append", choices=CASES[kind], help="repeatable; all of them by default")
    parser.add_argument("--out", type=Path, help="every answer as JSON lines, with the trace's longest rows")
    options = parser.parse_args()
    there = options.out.read_text().splitlines() if options.out and options.out.exists() else []
    done = {json.loads(line)["case"] for line in there}
    _ceilings()
    print("case\tverdict\tconfidence\tstep ms\tat least\tMBU\tshare explained\tothers")
    for name in [name for name in options.case or CASES[kind] if name not in done]:
        answer = _profile(options.preset, CASES[kind][name])
        print(_row(name, answer), flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps({"case": name} | answer) + "\n")


def _ceilings() -> None:
    for each in _answer("doctor", "--measure")["ceilings"]:
        rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in each["matmul_flop_s"].items())
        bandwidth = f"read {each['read_bytes_s'] / 1e9:,.1f} GB/s, copy {each['copy_bytes_s'] / 1e9:,.1f} GB/s"
        print(f"{each['device_name']}, threads {each['threads']}: {bandwidth}; {rates}; {each['op_us']:.1f} us")


def _profile(preset: str, settings: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        changes = [word for setting in settings for word in ("--set", setting)]
        answer = _answer("profile", preset, *changes, "--prompt-tokens", "128", "--out", folder)
        read = json.loads(Path(answer["summary"]).read_text())  # it goes with the folder
    rows = {kind: [row for row in read["operators"] if row["kind"] == kind] for kind in ("kernel", "operator")}
    longest = {kind: some[:30] for kind, some in rows.items()}
    return answer | {"phases": {name: read[name] for name in ("prefill", "decode")}, "longest": longest}


def _answer(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "mcp_core.cli", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} exited with {done.returncode}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _row(name: str, answer: dict[str, Any]) -> str:
    decode = (answer["roofline"] or {}).get("decode") or {}
    others = ", ".join(f"{each['cause']} {each['share']:.0%}" for each in answer["others"])
    mbu = f"{decode['mbu']:.0%}" if decode.get("mbu") is not None else "-"
    least = f"{decode['floor_ms']:.2f}" if decode.get("floor_ms") is not None else "-"
    return "\t".join(
        (
            name,
            answer["verdict"],
            answer["confidence"],
            f"{decode.get('ms') or 0:.2f}",
            least,
            mbu,
            f"{answer['share']:.0%}",
            others,
        )
    )


if __name__ == "__main__":
    main()
