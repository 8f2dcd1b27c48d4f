"""All that is measured on an NVIDIA host, in order, a lane a GPU; what is done is not done again.

``OUT=DIR python tests/bench/h100.py SECONDS --gpus N [--lane NAME ...] [--resume FILE]``: steps still to do, for so
long. Results and logs lie in ``--results`` (kept between calls) and go, packed, to OUT/results.tgz every 20 s:
nothing is lost when a host is taken back, and a fresh host goes on from such a FILE, but for sweeps, which begin
again. A lane sees one GPU, as cuda:0, and has its share of the cores, so that what another does is no noise in its
Runs. With fewer GPUs than lanes the lanes follow one another. A step that hangs is ended and counts as done.
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
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

ENGINE = "python3 -W ignore tests/bench/engine_gpu.py $R/engine.jsonl --seconds $LEFT"
FA3 = "--attention flash_attention_3"
TESTS = "python3 -m pytest -q -m gpu -p no:cacheprovider --tb=short --durations=6 --log-level=WARNING"
CLI = "python3 -m mcp_core.cli"


@dataclass(frozen=True)
class Step:
    """A shell command; ``least_s`` must be left to begin it, it may take ``most_s``. R, LEFT, MCP_HOME are set."""

    name: str
    command: str
    least_s: int = 40
    most_s: int = 300


def engine(name: str, *words: str) -> Step:
    return Step(name, " ".join((ENGINE, *words)), 60)


def chat(name: str, users: int, requests: int, *settings: str) -> Step:
    """The 7B shape under a closed load of chats, through the API."""
    fixed = (f"workload.name=chat-{users}", f"workload.concurrency={users}", f"workload.requests={requests}")
    more = ("device=cuda:0", "kv.max_context=2048", "batching.mode=continuous", *fixed, *settings)
    changes = " ".join(f"--set {each}" for each in more)
    return Step(name, f"{CLI} bench llama-2-7b-shape chat {changes} --out $R/{name}.json", 60, 200)


def sweep(name: str, plan: str) -> Step:
    start = f"{CLI} sweep {plan} --out $R/{name}.json --json"
    return Step(name, f"({start} --resume || {start}) > $R/{name}.runs", 60, 900)


INT8, INT4 = "--scheme torchao-int8-weight-only", "--scheme torchao-int4-weight-only"
EIGHT_B = "--preset llama-3.1-8b-shape"
MANY = ("batching.max_requests=64", "batching.step_tokens=8192")
DECODE = "--part decode --part crossover --only 'decode b1 compiled' --only batch"
# What is still unknown first, what was seen before last.
LANES: dict[str, tuple[Step, ...]] = {
    "engine": (
        engine("bf16-ceilings", "--part ceilings"),
        engine("bf16-256", "--part together"),
        engine("bf16-peers", FA3, "--part peers --only 'generate_batch level'"),
        engine("8b-256", EIGHT_B, "--part together"),
        engine("8b-peers", EIGHT_B, FA3, "--part peers --only 'generate_batch level 1'"),
        engine("8b-prefill", EIGHT_B, "--context 8320 --part prefill --part prefix"),
        engine("7b-prefill", "--context 4096 --part prefill --part prefix"),
        Step("kernels", "python3 tests/bench/kernels_gpu.py"),
        engine("nf4", "--scheme bnb-nf4", DECODE),
        engine("bf16", "--part decode --part crossover"),
        engine("int8", INT8, DECODE, "--only 'decode b1 graphs'"),
        engine("int4", INT4, DECODE),
        Step(
            "tests-engine",
            f"{TESTS} tests/gpu/test_int8_rows.py tests/gpu/test_triton_kernels.py "
            "tests/gpu/test_prompt_steps.py tests/gpu/test_graphs.py tests/gpu/test_engine.py",
            most_s=400,
        ),
        # Both devices: the other lane's is used for a few seconds.
        Step(
            "tests-second-device", f"env -u CUDA_VISIBLE_DEVICES {TESTS} tests/gpu/test_engine.py -k second_device"
        ),
    ),
    "product": (
        Step(
            "footprint",
            "mkdir -p $R/f; python3 tests/bench/footprint.py $R/f --device cuda:0 --seconds $LEFT "
            "--case 'llama-2-7b compiled' --case 'llama-2-7b torchao-int8' --case 'llama-2-7b static' "
            "--case 'llama-2-7b graphs' --case 'llama-2-7b many graphs' --case 'llama-3.1-8b bf16' "
            "--case 'llama-2-7b fp8-kv'",
        ),
        Step(
            "gpu-13b",
            "mkdir -p $R/g; python3 tests/bench/gpu.py $R/g --seconds $LEFT --preset llama-2-13b-shape "
            "--case bnb-int8 --case none",
        ),
        Step(
            "tests-rest",
            f"{TESTS} tests/gpu/test_schemes.py tests/gpu/test_quantized_shapes.py tests/gpu/test_layer_swap.py "
            "tests/gpu/test_cuda.py tests/gpu/test_memory_optimizer.py tests/gpu/test_monitoring.py",
            most_s=450,
        ),
        Step("preemption", "python3 tests/bench/preemption.py --device cuda:0"),
        Step("profiling", "python3 tests/bench/profiling.py --device cuda:0 --dtype bf16"),
        Step("tests-product", f"{TESTS} tests/gpu/test_profiling.py tests/gpu/test_why.py"),
        Step("why", "python3 tests/bench/why.py --out $R/why.jsonl", most_s=400),
        sweep("decide", "tests/bench/decide_7b.json"),
        sweep("article", "article"),
    ),
    # Beside vLLM, where MCP_VLLM_PYTHON names its interpreter (vllm_gpu.md).
    "vllm": (
        Step("ship", "python3 tests/bench/ship_gpu.py $R/ship", 60, 600),
        chat("vllm-64", 64, 400, *MANY, "engine=vllm", "compile=graphs"),
        chat("own-64", 64, 400, *MANY, "compile=compiled"),
        chat("own-16", 16, 200, "batching.step_tokens=2048", "compile=compiled"),
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

    def run_lane(self, gpu: int, cores: set[int], steps: tuple[Step, ...]) -> None:
        os.sched_setaffinity(0, cores)  # of this thread, and of what it starts
        for step in steps:
            done = self.results / f"done.{step.name}"
            if not done.exists() and self.left_s > step.least_s:
                code, took_s = self._run(gpu, step)
                print(f"GPU {gpu} {step.name}: {code} in {took_s:.0f} s, {self.left_s:.0f} s left", flush=True)
                if code is not None:
                    done.write_text(f"{code} {took_s:.0f}")

    def _run(self, gpu: int, step: Step) -> tuple[int | str | None, float]:
        """Exit code, "late" where it hung, None where time was over before it ended; and seconds."""
        began, may_s = time.monotonic(), min(self.left_s - 3, step.most_s)
        where = {"CUDA_VISIBLE_DEVICES": str(gpu), "MCP_HOME": f"{self.results}-home-{gpu}", "R": str(self.results)}
        with (self.results / "logs" / f"{step.name}.log").open("a") as log:
            child = subprocess.Popen(
                ["bash", "-c", step.command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | where | {"LEFT": str(int(may_s - 5))},
                start_new_session=True,
            )
            try:
                return child.wait(max(1.0, may_s)), time.monotonic() - began
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                return "late" if may_s == step.most_s else None, time.monotonic() - began

    def pack(self, out: Path) -> None:
        """What there is now; where a file is just written or replaced, the last pack stays until the next."""
        try:
            self._pack(out)
        except (OSError, sqlite3.Error, tarfile.TarError) as error:
            print(f"not packed: {error}", flush=True)

    def _pack(self, out: Path) -> None:
        for store in self.results.parent.glob(f"{self.results.name}-home-*/runs.sqlite"):
            with (
                closing(sqlite3.connect(store)) as one,
                closing(sqlite3.connect(self.results / f"{store.parent.name}.sqlite")) as other,
            ):
                one.backup(other)
        written = out / "results.tmp"
        with tarfile.open(written, "w:gz", compresslevel=3) as archive:
            archive.add(self.results, arcname="results")
        written.replace(out / "results.tgz")


def lanes_of(names: list[str], gpus: int) -> Iterator[tuple[int, set[int], tuple[Step, ...]]]:
    """Each GPU, its cores and its steps."""
    count, cores = min(gpus, len(names)), sorted(os.sched_getaffinity(0))
    share = len(cores) // count
    for index in range(count):
        mine = cores[index * share : (index + 1) * share]
        steps = (step for name in names[index::count] for step in LANES[name])
        yield index, set(mine), tuple(steps)


def resume(packed: Path, results: Path) -> None:
    """Unpack an earlier call's results, unless there are some."""
    if not results.exists():
        results.mkdir(parents=True)
        with tarfile.open(packed) as archive:
            for member in archive.getmembers():
                member.name = member.name.removeprefix("results").lstrip("/") or "."
                archive.extract(member, results, filter="data")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float)
    parser.add_argument("--lane", action="append", choices=list(LANES))
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("/tmp/results"))
    parser.add_argument("--resume", type=Path, metavar="FILE", help="an earlier results.tgz")
    options = parser.parse_args()
    if options.resume is not None:
        resume(options.resume, options.results)
    host, out = Host(options.seconds, options.results), Path(os.environ["OUT"])
    threads = [
        threading.Thread(target=host.run_lane, args=lane)
        for lane in lanes_of(options.lane or list(LANES), options.gpus)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for thread in threads:
            thread.join(20 / len(threads))
        host.pack(out)


if __name__ == "__main__":
    main()
