"""The engine alone on an NVIDIA device, without HTTP, beside transformers' own routes; a line of JSON a figure.

``python tests/bench/engine_gpu.py OUT.jsonl [--preset P] [--scheme S] [--seconds 540] [--only NAME ...]``: one
shape with random weights and one scheme a process; figures that are in OUT.jsonl are skipped, so a second call goes
on. Prompt 128, 128 new tokens, greedy, new prompts in every repeat. The floor is the time to read the weights once
at the bandwidth read in the same process. Try it on a CPU with ``--preset tiny --device cpu``.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from transformers import ContinuousBatchingConfig, GenerationConfig  # noqa: E402

from mcp_core.conflicts import resolve  # noqa: E402
from mcp_core.evaluation.ceilings_job import Bench  # noqa: E402
from mcp_core.generation import GenerationRequest, Sampling, TokenEvent  # noqa: E402
from mcp_core.hardware import detect  # noqa: E402
from mcp_core.inference.engine import Engine  # noqa: E402
from mcp_core.models import catalog, loader  # noqa: E402
from mcp_core.models.loaded import LoadedModel  # noqa: E402
from mcp_core.paths import home  # noqa: E402
from mcp_core.presets import recipe_preset  # noqa: E402
from mcp_core.recipe import Recipe  # noqa: E402

TINY = {
    "model": {
        "source": "shape",
        "id": "custom",
        "shape": {"layers": 2, "hidden": 64, "intermediate": 128, "heads": 4, "kv_heads": 2, "vocab": 400},
    },
    "dtype": "fp32",
}
GREEDY = Sampling(temperature=0)
PROMPT, NEW = 128, 128
KINDS = ("off", "graphs", "compiled", "autotuned")
CROSSOVER = (1, 4, 16, 64)


class Bed:
    """One loaded model; modes are built on it one after the other."""

    def __init__(self, options: argparse.Namespace) -> None:
        asked = Recipe.from_dict(TINY) if options.preset == "tiny" else recipe_preset(options.preset)
        changes = {
            "quantization.scheme": options.scheme,
            "device": options.device,
            "kv.max_context": options.context,
        }
        if options.scheme == "torchao-int4-weight-only":
            changes["quantization.group_size"] = 128
        if options.attention:
            changes["attention"] = options.attention
        self.recipe = resolve(asked.replace(changes), detect())
        self.device = torch.device(self.recipe.device)
        self.rows = Rows(options.out, f"{options.preset} {options.scheme} {options.attention or ''}".strip())
        self.ends = time.monotonic() + options.seconds
        self.only = options.only
        self.draw = random.Random(time.time_ns())
        self.few = options.preset == "tiny"
        self._loaded: LoadedModel | None = None

    @property
    def loaded(self) -> LoadedModel:
        if self._loaded is None:
            began = time.perf_counter()
            self._loaded = loader.load(catalog.resolve(self.recipe.model), self.recipe, lambda *_: None)
            self.rows.say("loaded", seconds=round(time.perf_counter() - began, 1), weights_bytes=self.weights_bytes)
        return self._loaded

    @property
    def weights_bytes(self) -> int:
        """Read once a step: all but the embedding table, which a step reads a row of."""
        assert self._loaded is not None
        table = self._loaded.model.get_input_embeddings().weight
        tied = self._loaded.model.get_output_embeddings().weight is table
        return self._loaded.weights_bytes - (0 if tied else table.numel() * table.element_size())

    def wants(self, name: str) -> bool:
        picked = not self.only or any(name.startswith(each) for each in self.only)
        return picked and not self.rows.has(name) and time.monotonic() < self.ends

    def prompt(self, length: int) -> tuple[int, ...]:
        return tuple(self.draw.randrange(5, self.loaded.vocab_size) for _ in range(length))

    def engine(self, changes: dict[str, Any]) -> Running:
        gc.unfreeze()
        gc.collect()  # an engine that failed, and its pool
        return Running(self, self.recipe.replace(changes))


class Rows:
    """OUT.jsonl: one figure a line."""

    def __init__(self, path: Path, case: str) -> None:
        self._path, self._case = path, case
        self._seen = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def has(self, name: str) -> bool:
        return any(row["case"] == self._case and row["name"] == name for row in self._seen)

    def get(self, name: str, field: str) -> Any:
        return next((row[field] for row in self._seen if row["name"] == name and field in row), None)

    def say(self, name: str, **figures: Any) -> None:
        row = {"case": self._case, "name": name} | figures
        self._seen.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


class Running:
    """An engine at work, and the times of its tokens by request."""

    def __init__(self, bed: Bed, recipe: Recipe) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self.times: dict[str, list[float]] = {}
        self.ended: set[str] = set()
        self.failed: list[TokenEvent] = []
        began = time.perf_counter()
        self.engine = Engine(bed.loaded, recipe, self._hear)
        self.engine.warm_up()
        self.engine.start()
        gc.collect()
        gc.freeze()  # as a worker does: a pass over what compiling made is a second that a round would wait
        self.made_s = time.perf_counter() - began

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        self.engine._mode.close()
        del self.engine
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _hear(self, events: list[TokenEvent]) -> None:
        with self._changed:
            for event in events:
                if event.token is not None:
                    self.times[event.request_id].append(event.at_s)
                if event.finish:
                    self.ended.add(event.request_id)
                    if event.finish != "length":
                        self.failed.append(event)
            self._changed.notify_all()

    def serve(self, prompts: list[tuple[int, ...]], new: int) -> tuple[float, list[list[float]]]:
        """Send all at once; seconds until the last has ended, and each one's token times from then on."""
        names = [f"r{self._count + index}" for index in range(len(prompts))]
        self._count += len(prompts)
        self.times |= {name: [] for name in names}
        began = time.perf_counter()
        for name, prompt in zip(names, prompts, strict=True):
            self.engine.submit(GenerationRequest(name, prompt, new, GREEDY, new, ignore_eos=True, arrived_s=began))
        with self._changed:
            assert self._changed.wait_for(lambda: self.failed or self.ended.issuperset(names), 180)
        if self.failed:
            raise RuntimeError(f"{len(self.failed)} ended otherwise: {self.failed[0].failure}")
        elapsed = time.perf_counter() - began
        return elapsed, [[at - began for at in self.times.pop(name)] for name in names]


def ceilings(bed: Bed) -> None:
    """What the device reaches: every share below is of these."""
    if not bed.wants("ceilings"):
        return
    bench, big = Bench(bed.device), bed.device.type == "cuda"
    size = 4 * 2**30 if big else 2**26
    name = torch.cuda.get_device_name(bed.device) if big else "cpu"
    copy, read = bench.copy_bytes_s(size), bench.read_bytes_s(size)
    flops = bench.matmul_flop_s("bf16") if big else bench.matmul_flop_s("fp32")
    bed.rows.say(
        "ceilings", device=name, torch=torch.__version__, copy_bytes_s=copy, read_bytes_s=read, flop_s=flops
    )


def decode(bed: Bed) -> None:
    """Batch 1: time a token, as it comes and made ahead."""
    for kind in KINDS:
        name = f"decode b1 {kind}"
        if not bed.wants(name) or (bed.device.type == "cpu" and kind in ("graphs", "autotuned")):
            continue
        paged = {"prefix_cache": True} if kind == "off" else {}
        with tried(bed, name), bed.engine({"batching.mode": "off", "compile": kind} | paged) as running:
            running.serve([bed.prompt(PROMPT)], 16)
            spans = [running.serve([bed.prompt(PROMPT)], NEW)[1][0] for _ in range(3)]
            tpot = [(times[-1] - times[0]) / (len(times) - 1) for times in spans]
            shares(bed, name, min(tpot), tpot, running)


def shares(bed: Bed, name: str, best: float, tpot: list[float], running: Running) -> None:
    copy, read = bed.rows.get("ceilings", "copy_bytes_s"), bed.rows.get("ceilings", "read_bytes_s")
    made = running.engine.preparation
    bed.rows.say(
        name,
        mode=running.engine.mode_name,
        kernel=running.engine.kernel_name,
        tpot_ms=[round(each * 1e3, 3) for each in tpot],
        tok_s=round(1 / best, 1),
        share_of_copy_floor=round(bed.weights_bytes / copy / best, 4) if copy else None,
        share_of_read_floor=round(bed.weights_bytes / read / best, 4) if read else None,
        made_s=round(running.made_s, 1),
        compile_kept=made.kept if made else None,
    )


def together(bed: Bed) -> None:
    """256 requests of 64-512 tokens, 128 new each; three rounds, new prompts."""
    count, step = (8, 64) if bed.few else (256, 8192)
    for kind in ("graphs", "compiled"):
        name = f"256 requests {kind}"
        if not bed.wants(name) or (bed.device.type == "cpu" and kind == "graphs"):
            continue
        changes = {"batching.mode": "continuous", "batching.max_requests": count, "batching.step_tokens": step}
        with tried(bed, name), bed.engine(changes | {"compile": kind}) as running:
            running.serve(mixed(bed, min(count, 32)), 16)
            before = running.engine.stats()
            rates = [count * NEW / running.serve(mixed(bed, count), NEW)[0] for _ in range(3)]
            stats = running.engine.stats()
            bed.rows.say(
                name,
                tok_s=[round(rate, 1) for rate in rates],
                prefill_s=round(stats.prefill_s_total - before.prefill_s_total, 3),
                decode_s=round(stats.decode_s_total - before.decode_s_total, 3),
                decode_steps=stats.decode_steps_total - before.decode_steps_total,
                preemptions=stats.preemptions_total,
                pages=stats.kv_pages_total,
                kernel=running.engine.kernel_name,
                made_s=round(running.made_s, 1),
            )


def mixed(bed: Bed, count: int) -> list[tuple[int, ...]]:
    return [bed.prompt(bed.draw.randint(64, 512)) for _ in range(count)]


def known_prefix(bed: Bed, *kinds: str) -> None:
    """Time to first token where all but 20 tokens of a prompt are known, against one of which nothing is."""
    changes = {"batching.mode": "continuous", "prefix_cache": True, "batching.step_tokens": 8192}
    known = [length for length in (1024, 3584, 8192) if length + 30 <= bed.loaded.max_context]
    for kind in kinds:
        wanted = [length for length in known if bed.wants(f"prefix {kind} {length}")]
        if not wanted or (bed.device.type == "cpu" and kind == "graphs"):
            continue
        with (
            tried(bed, f"prefix {kind}"),
            bed.engine(changes | {"batching.max_requests": 16, "compile": kind}) as running,
        ):
            for length in wanted:
                cold, warm = zip(*(prefix_pair(bed, running, length) for _ in range(6)), strict=True)
                first, second = statistics.median(cold[1:]), statistics.median(warm[1:])
                share = round(second / first, 4)
                bed.rows.say(f"prefix {kind} {length}", cold_ms=first * 1e3, warm_ms=second * 1e3, share=share)


def prefix_pair(bed: Bed, running: Running, length: int) -> tuple[float, float]:
    prefix = bed.prompt(length)
    cold, warm = (running.serve([prefix + bed.prompt(20)], 2)[1][0][0] for _ in range(2))
    return cold, warm


def prefill(bed: Bed, kind: str) -> None:
    """Model FLOP/s utilization of one long prompt, one step: as it comes, or its small functions compiled."""
    lengths = [
        length for length in ((256, 512) if bed.few else (2048, 4000, 8192)) if length <= bed.loaded.max_context
    ]
    changes = {"batching.mode": "continuous", "batching.step_tokens": 8192, "batching.max_requests": 4}
    title = "prefill" if kind == "off" else f"prefill {kind}"
    wanted = [length for length in lengths if bed.wants(f"{title} {length}")]
    if not wanted:
        return
    with tried(bed, title), bed.engine(changes | {"compile": kind}) as running:
        for length in wanted:
            prefilled(bed, running, f"{title} {length}", length)


def prefilled(bed: Bed, running: Running, name: str, length: int) -> None:
    times = [running.serve([bed.prompt(length - 1)], 1)[0] for _ in range(4)]
    best = min(times[1:])
    flops = prefill_flops(bed, length)
    peak = bed.rows.get("ceilings", "flop_s")
    bed.rows.say(
        name,
        ms=best * 1e3,
        flops=flops,
        mfu=round(flops / best / peak, 4) if peak else None,
        made_s=round(running.made_s, 1),
    )


def prefill_flops(bed: Bed, tokens: int) -> float:
    """2 x weights of the layers x tokens, the output layer for one of them, and causal attention."""
    sizes = bed.loaded.resolved.architecture
    model = bed.loaded.model
    output = model.get_output_embeddings().weight
    linear = sum(
        module.in_features * module.out_features
        for name, module in model.named_modules()
        if hasattr(module, "in_features") and "lm_head" not in name
    )
    attention = 2 * 2 * sizes.layers * sizes.heads * sizes.head_dim * tokens * tokens / 2
    return 2.0 * linear * tokens + 2.0 * output.shape[0] * output.shape[1] + attention


def crossover(bed: Bed) -> None:
    """Output tokens a second at 1, 4, 16 and 64 sequences at once, compiled."""
    if not any(bed.wants(f"batch {count}") for count in CROSSOVER):
        return
    most = max(CROSSOVER)
    changes = {"batching.mode": "continuous", "batching.max_requests": most, "batching.step_tokens": 8192}
    kind = "compiled"
    with tried(bed, f"batch {most}"), bed.engine(changes | {"compile": kind}) as running:
        for count in CROSSOVER:
            running.serve([bed.prompt(PROMPT) for _ in range(count)], 8)
            _, times = running.serve([bed.prompt(PROMPT) for _ in range(count)], 64)
            begun, ended = max(each[0] for each in times), min(each[-1] for each in times)
            tokens = sum(begun < at <= ended for each in times for at in each)
            bed.rows.say(f"batch {count}", decode_tok_s=round(tokens / (ended - begun), 1), kind=kind)


def peers(bed: Bed) -> None:
    """transformers' own: ``generate`` one at a time, ``generate_batch`` for many."""
    model = bed.loaded.model
    for name, more in (("generate dynamic", {}), ("generate static", {"cache_implementation": "static"})):
        if bed.wants(name):
            with tried(bed, name):
                spans = [generated(bed, more) for _ in range(3)]
                bed.rows.say(
                    name, tok_s=[round(NEW / span, 1) for span in spans], tpot_ms=min(spans[1:]) / NEW * 1e3
                )
    for level in (0, 1):
        name = f"generate_batch level {level}"
        if not bed.wants(name) or bed.few:
            continue
        with tried(bed, name):
            config = ContinuousBatchingConfig(page_size=32, default_compile_level=level, max_requests_per_batch=256)
            wanted = GenerationConfig(
                max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cuda_graph=True
            )
            rates = []
            for _ in range(4):
                prompts = [list(prompt) for prompt in mixed(bed, 256)]
                gc.collect()
                gc.freeze()  # as for ours
                began = time.perf_counter()
                answers = model.generate_batch(
                    prompts,
                    generation_config=wanted,
                    continuous_batching_config=config,
                    persistent_manager=True,
                )
                elapsed = time.perf_counter() - began
                tokens = sum(len(answer.generated_tokens) for answer in answers.values())
                rates.append(tokens / elapsed)
            bed.rows.say(name, tok_s=[round(rate, 1) for rate in rates], tokens=tokens)
        model.destroy_cached_continuous_batching_manager()


def generated(bed: Bed, more: dict[str, Any]) -> float:
    ids = torch.tensor([bed.prompt(PROMPT)], device=bed.device)
    wait(bed)
    began = time.perf_counter()
    with torch.inference_mode():
        bed.loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
            **more,
        )
    wait(bed)
    return time.perf_counter() - began


def wait(bed: Bed) -> None:
    if bed.device.type == "cuda":
        torch.cuda.synchronize(bed.device)


class tried:  # noqa: N801 - reads as a word
    """A failure is a row with its cause; the next figure is still taken."""

    def __init__(self, bed: Bed, name: str) -> None:
        self._bed, self._name = bed, name

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._bed.rows.say(self._name, error=f"{type(error).__name__}: {str(error)[:300]}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True


# In this order: an engine that compiles joins the model's projections, and they stay so.
PARTS: tuple[tuple[str, Callable[[Bed], None]], ...] = (
    ("ceilings", ceilings),
    ("peers", peers),
    ("prefix", lambda bed: known_prefix(bed, "off", "graphs")),
    ("prefill", lambda bed: prefill(bed, "off")),
    ("decode", decode),
    ("prefix", lambda bed: known_prefix(bed, "compiled")),
    ("prefill", lambda bed: prefill(bed, "compiled")),
    ("together", together),
    ("crossover", crossover),
)


def chosen(names: list[str] | None) -> Iterator[Callable[[Bed], None]]:
    for name, part in PARTS:
        if not names or name in names:
            yield part


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset", default="llama-2-7b-shape")
    parser.add_argument("--scheme", default="none")
    parser.add_argument("--attention")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--context", type=int, default=1536)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--part", action="append", choices=sorted({name for name, _ in PARTS}))
    parser.add_argument("--only", action="append", help="figures whose name begins so")
    options = parser.parse_args()
    logging.basicConfig()
    logging.getLogger("mcp_core").setLevel(logging.INFO)  # what was compiled, and for how long
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home("compiled")))
    bed = Bed(options)
    for part in chosen(options.part):
        part(bed)


if __name__ == "__main__":
    main()
