"""All that is measured on an NVIDIA host, in order, a lane a GPU; what is done is not done again.

``OUT=DIR python tests/bench/h100.py SECONDS --gpus N [--lane NAME ...]``: steps still to do, for so long. Results
and logs lie in ``--results`` (kept between calls) and go, packed, to OUT every 20 s: nothing is lost when a host is
taken back. A lane sees one GPU, as cuda:0, and has its share of the cores, so that what another does is no noise in
its Runs. With fewer GPUs than lanes the lanes follow one another.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ENGINE = "python3 -W ignore tests/bench/engine_gpu.py $R/engine.jsonl --seconds $LEFT"
FA3 = "--attention flash_attention_3"
TESTS = "python3 -m pytest -q -m gpu -p no:cacheprovider --tb=short --durations=6"
CLI = "python3 -m mcp_core.cli"


@dataclass(frozen=True)
class Step:
    """A shell command; ``least_s`` seconds must be left to begin it. R, LEFT and MCP_HOME are set."""

    name: str
    command: str
    least_s: int = 40


def engine(name: str, *words: str) -> Step:
    return Step(name, " ".join((ENGINE, *words)), 60)


def sweep(name: str, plan: str) -> Step:
    start = f"{CLI} sweep {plan} --out $R/{name}.json --json"
    return Step(name, f"({start} --resume || {start}) > $R/{name}.runs", 60)


INT8, INT4 = "--scheme torchao-int8-weight-only", "--scheme torchao-int4-weight-only"
EIGHT_B = "--preset llama-3.1-8b-shape"
DECODE = "--part decode --part crossover --only 'decode b1 compiled' --only batch"
LANES: dict[str, tuple[Step, ...]] = {
    "engine": (
        Step(
            "tests-engine",
            f"{TESTS} tests/gpu/test_int8_rows.py tests/gpu/test_triton_kernels.py "
            "tests/gpu/test_chunk_steps.py tests/gpu/test_graphs.py tests/gpu/test_engine.py",
        ),
        # Both devices: the other lane's is used for a few seconds.
        Step(
            "tests-second-device", f"env -u CUDA_VISIBLE_DEVICES {TESTS} tests/gpu/test_engine.py -k second_device"
        ),
        Step("kernels", "python3 tests/bench/kernels_gpu.py"),
        engine("bf16-ceilings", "--part ceilings --part prefix"),
        engine("bf16-256", "--part together"),
        engine("bf16-peers", FA3, "--part peers --only 'generate_batch level'"),
        engine("int8", INT8, DECODE),
        engine("int4", INT4, DECODE, "--only 'decode b1 autotuned'"),
        engine("bf16", "--part decode --part crossover"),
        engine("8b-256", EIGHT_B, "--part together"),
        engine("8b-peers", EIGHT_B, FA3, "--part peers --only 'generate_batch level 1'"),
        engine("8b-prefill", EIGHT_B, "--context 8320 --part prefill --part prefix"),
        engine("7b-prefill", "--context 4096 --part prefill --part prefix"),
        engine("nf4", "--scheme bnb-nf4", DECODE),
    ),
    "product": (
        Step(
            "tests-product",
            f"{TESTS} tests/gpu/test_profiling.py tests/gpu/test_why.py tests/gpu/test_monitoring.py",
        ),
        Step(
            "gpu-13b",
            "mkdir -p $R/g; python3 tests/bench/gpu.py $R/g --seconds $LEFT --preset llama-2-13b-shape "
            "--case bnb-int8 --case none",
        ),
        sweep("article", "article"),
        sweep("decide", "tests/bench/decide_7b.json"),
        Step(
            "footprint",
            "mkdir -p $R/f; python3 tests/bench/footprint.py $R/f --device cuda:0 --seconds $LEFT "
            "--case 'llama-2-7b graphs' --case 'llama-2-7b compiled' --case 'llama-2-7b many graphs' "
            "--case 'llama-2-7b static' --case 'llama-3.1-8b bf16' --case 'llama-2-7b fp8-kv'",
        ),
        Step(
            "why",
            "python3 tests/bench/why.py --out $R/why.jsonl --case 'int8 weights recorded' "
            "--case 'NF4 recorded' --case 'bf16 recorded'",
        ),
        Step(
            "tests-rest",
            f"{TESTS} tests/gpu/test_schemes.py tests/gpu/test_quantized_shapes.py "
            "tests/gpu/test_layer_swap.py tests/gpu/test_cuda.py tests/gpu/test_memory_optimizer.py",
        ),
        Step("preemption", "python3 tests/bench/preemption.py --device cuda:0"),
        Step("profiling", "python3 tests/bench/profiling.py --device cuda:0 --dtype bf16"),
    ),
}


class Host:
    """The time there is, and where results go."""

    def __init__(self, seconds: float, results: Path) -> None:
        self._ends = time.monotonic() + seconds
        self.results = results
        (results / "logs").mkdir(parents=True, exist_ok=True)

    @property
    def left_s(self) -> float:
        return self._ends - time.monotonic()

    def run_lane(self, gpu: int, cores: str, steps: tuple[Step, ...]) -> None:
        for step in steps:
            done = self.results / f"done.{step.name}"
            if not done.exists() and self.left_s > step.least_s:
                code, took_s = self._run(gpu, cores, step)
                print(f"GPU {gpu} {step.name}: {code} in {took_s:.0f} s, {self.left_s:.0f} s left", flush=True)
                if code is not None:
                    done.write_text(f"{code} {took_s:.0f}")

    def _run(self, gpu: int, cores: str, step: Step) -> tuple[int | None, float]:
        """Exit code, None where time was over before it ended; and seconds."""
        began = time.monotonic()
        where = {"CUDA_VISIBLE_DEVICES": str(gpu), "MCP_HOME": f"{self.results}-home-{gpu}", "R": str(self.results)}
        with (self.results / "logs" / f"{step.name}.log").open("a") as log:
            child = subprocess.Popen(
                ["taskset", "-c", cores, "bash", "-c", step.command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | where | {"LEFT": str(int(self.left_s - 8))},
                start_new_session=True,
            )
            try:
                return child.wait(max(1.0, self.left_s - 3)), time.monotonic() - began
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                return None, time.monotonic() - began

    def pack(self, out: Path) -> None:
        for store in self.results.parent.glob(f"{self.results.name}-home-*/runs.sqlite"):
            with (
                sqlite3.connect(store) as one,
                sqlite3.connect(self.results / f"{store.parent.name}.sqlite") as other,
            ):
                one.backup(other)
        written = out / "results.tmp"
        with tarfile.open(written, "w:gz", compresslevel=3) as archive:
            archive.add(self.results, arcname="results")
        written.replace(out / "results.tgz")


def lanes_of(names: list[str], gpus: int) -> Iterator[tuple[int, str, tuple[Step, ...]]]:
    """Each GPU, its cores and its steps."""
    count, cores = min(gpus, len(names)), sorted(os.sched_getaffinity(0))
    share = len(cores) // count
    for index in range(count):
        mine = cores[index * share : (index + 1) * share]
        steps = (step for name in names[index::count] for step in LANES[name])
        yield index, ",".join(map(str, mine)), tuple(steps)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float)
    parser.add_argument("--lane", action="append", choices=list(LANES))
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("/tmp/results"))
    options = parser.parse_args()
    host, out = Host(options.seconds, options.results), Path(os.environ["OUT"])
    threads = [
        threading.Thread(target=host.run_lane, args=lane)
        for lane in lanes_of(options.lane or list(LANES), options.gpus)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(1)
        if int(host.left_s) % 20 == 0:
            host.pack(out)
    host.pack(out)


if __name__ == "__main__":
    main()
