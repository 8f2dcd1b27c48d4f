"""What copying preempted requests' pages to the host is worth against computing them again, on this device.

The bundled model (on a GPU its sizes with random weights) behind a pool that holds a fraction of its load, with and
without host memory, in turns in one process; every reply is compared. Prints both rates as the engine measured
them. ``--device cuda:0`` for a GPU.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from mcp_core.generation import GenerationRequest, Sampling, TokenEvent  # noqa: E402
from mcp_core.inference.engine import Engine  # noqa: E402
from mcp_core.models.catalog import resolve  # noqa: E402
from mcp_core.models.loader import load  # noqa: E402
from mcp_core.presets import bundled  # noqa: E402

# The bundled model's sizes with random weights: its file need not be brought to a GPU host.
SIZES = {"layers": 30, "hidden": 576, "intermediate": 1536, "heads": 9, "kv_heads": 3, "vocab": 49152}


class Replies:
    """A sink that waits for all of them."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self._open: set[str] = set()
        self._changed = threading.Condition()

    def __call__(self, events: list[TokenEvent]) -> None:
        with self._changed:
            for event in events:
                if event.token is not None:
                    self.tokens.setdefault(event.request_id, []).append(event.token)
                if event.finish is not None:
                    self._open.discard(event.request_id)
            self._changed.notify_all()

    def expect(self, names: list[str]) -> None:
        self._open |= set(names)

    def wait(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: not self._open, 600)


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("MCP_HOME", home)
        return compare(options.device, options.rounds)


def compare(device: str, rounds: int) -> int:
    changes: dict[str, Any] = {
        "device": device,
        "dtype": "fp32",
        "threads": 1,
        "batching.mode": "continuous",
        "batching.max_requests": 16,
        "batching.kv_blocks": 96,
    }
    if device != "cpu":
        changes["model"] = {"source": "shape", "id": "custom", "shape": SIZES}
    recipe = bundled().replace(changes)
    torch.set_num_threads(1)
    loaded = load(resolve(recipe.model), recipe, lambda _stage, _part, _text: None)
    replies = Replies()
    engine = Engine(loaded, recipe, replies)
    engine.warm_up()
    engine.start()
    host = engine._mode._host  # type: ignore[attr-defined]
    limit = host.limit_bytes
    took: dict[str, list[float]] = {"kept": [], "computed again": []}
    for number in range(rounds):
        for name, bytes_allowed in (("kept", limit), ("computed again", 0)):
            host.limit_bytes = bytes_allowed
            before = engine.stats()
            took[name].append(run(engine, replies, f"{name} {number}", number, loaded.vocab_size))
            after = engine.stats()
            preempted = after.preemptions_total - before.preemptions_total
            returned = after.kv_host_returned_total - before.kv_host_returned_total
            print(f"{name}: {took[name][-1]:.2f} CPU-s, {preempted} preempted, {returned} came back")
    engine.close()
    same = all(
        replies.tokens[f"kept {number} {index}"] == replies.tokens[f"computed again {number} {index}"]
        for number in range(rounds)
        for index in range(16)
    )
    copying, computing = host._copying.of_one, host._computing.of_one
    token_bytes = host.cache.page_bytes / host.pool.page_size
    print(f"replies are the same: {same}")
    if copying and computing:
        print(f"a token: copied both ways {2e6 * copying * token_bytes:.1f} us, computed {1e6 * computing:.1f} us")
    ratio = statistics.median(took["computed again"]) / statistics.median(took["kept"])
    print(f"computed again / kept: {ratio:.2f} of the time, median of {rounds}")
    return 0 if same else 1


def run(engine: Engine, replies: Replies, name: str, seed: int, vocab: int) -> float:
    """CPU seconds of this process (wall seconds on a GPU) for 16 requests of 100-300 tokens and 64 new ones."""
    draw = random.Random(seed)
    names = [f"{name} {index}" for index in range(16)]
    replies.expect(names)
    clock = time.process_time if not torch.cuda.is_available() else time.perf_counter
    began_s = clock()
    for each in names:
        prompt = tuple(draw.randrange(20, vocab) for _ in range(draw.randrange(100, 300)))
        engine.submit(GenerationRequest(each, prompt, 64, Sampling(temperature=0), ignore_eos=True))
    replies.wait()
    return clock() - began_s


if __name__ == "__main__":
    sys.exit(main())
