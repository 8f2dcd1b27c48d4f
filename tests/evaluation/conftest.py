"""Helpers of the evaluation tests: records by hand, a worker's state document, a process to pin."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mcp_core.presets import bundled
from mcp_core.results import RequestRecord


def make_record(
    index: int = 0, *, sent_ms: float = 0.0, arrivals: tuple[float, ...] = (10.0, 20.0, 30.0), **changes: Any
) -> RequestRecord:
    """A completed request whose chunks of one token arrived at these ms after it was sent."""
    fields: dict[str, Any] = {
        "index": index,
        "status": "ok",
        "sent_ms": sent_ms,
        "ttft_ms": arrivals[0] if arrivals else None,
        "e2e_ms": arrivals[-1] if arrivals else None,
        "chunk_ms": arrivals,
        "chunk_tokens": (1,) * len(arrivals),
        "prompt_tokens": 8,
        "output_tokens": len(arrivals),
    }
    return RequestRecord(**(fields | changes))


@pytest.fixture
def record() -> Callable[..., RequestRecord]:
    return make_record


@pytest.fixture
def sleeper() -> Iterator[int]:
    """The id of a process that does nothing, standing in for a worker's."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.fixture
def worker_state(sleeper: int) -> dict[str, Any]:
    """What ``GET /control/state`` of a worker says."""
    recipe = bundled().replace({"device": "cpu", "threads": 1, "model.sha256": "ab" * 32})
    return {
        "state": "ready",
        "title": "Fake",
        "model": recipe.model.id,
        "recipe": recipe.model_dump(mode="json"),
        "effective": {
            "device": "cpu",
            "dtype": "fp32",
            "scheme": "none",
            "attention": "sdpa",
            "kv_kind": "dynamic",
            "max_context": 512,
            "threads": 1,
            "batching_mode": "off",
        },
        "memory": {"weights_bytes": 1000, "baseline_bytes": 500, "peak_bytes": 2000, "process_peak_bytes": 2500},
        "vocab_size": 1000,
        "special_ids": [0, 1, 2],
        "eos_ids": [2],
        "max_context": 512,
        "load_s": 1.5,
        "random_weights": False,
        "pid": sleeper,
        "numerics_key": recipe.numerics_key,
    }
