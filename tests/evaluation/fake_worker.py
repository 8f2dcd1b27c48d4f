"""A worker process without a model: the protocol of mcp_core.serving.worker over the fake server.

``python fake_worker.py [--ttft-ms N] [--die-after S] [--fail] [--never-ready]``
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time

from mcp_core.evaluation.fake_server import FakeServer, LatencyLaw
from mcp_core.recipe import Recipe


def say(**event: object) -> None:
    print(json.dumps(event), flush=True)


def state_of(recipe: Recipe) -> dict[str, object]:
    return {
        "state": "ready",
        "title": "Fake",
        "model": recipe.model.id,
        "recipe": recipe.model_dump(mode="json"),
        "effective": {
            "device": "cpu",
            "dtype": recipe.dtype,
            "scheme": recipe.quantization.scheme,
            "attention": "sdpa",
            "kv_kind": "dynamic",
            "max_context": 512,
            "threads": 1,
            "batching_mode": "off",
        },
        "memory": {"weights_bytes": 1000, "peak_bytes": 2000, "process_peak_bytes": 2500},
        "vocab_size": 300,
        "special_ids": [],
        "max_context": 512,
        "load_s": 0.1,
        "pid": os.getpid(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ttft-ms", type=float, default=5.0)
    parser.add_argument("--die-after", type=float)
    parser.add_argument("--fail", action="store_true")
    parser.add_argument("--never-ready", action="store_true")
    options = parser.parse_args()
    order = json.loads(sys.stdin.readline())
    say(event="progress", stage="load", fraction=0.5, message="half of it")
    if options.fail:
        failure = {"kind": "load", "message": "A planted failure.", "hint": "Plant none."}
        say(event="failed", failure=failure)
        return
    if options.die_after is not None:
        threading.Thread(target=lambda: (time.sleep(options.die_after), os._exit(7)), daemon=True).start()
    with FakeServer(LatencyLaw(options.ttft_ms, 2), state=state_of(Recipe.from_dict(order["recipe"]))) as server:
        if not options.never_ready:
            say(event="ready", port=int(server.url.rsplit(":", 1)[1]), pid=os.getpid())
        sys.stdin.read()


main()
