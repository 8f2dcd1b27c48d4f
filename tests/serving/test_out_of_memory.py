"""Memory runs out while a worker quantizes: it says so, and the worker that served before serves on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mcp_core.recipe import ModelRef, Quantization, Recipe, ShapeSpec

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-this-test"
SERVE = "import os; from mcp_core.serving import worker; os._exit(worker.main())"
# The same with 300 MiB beside what its libraries take.
SERVE_IN_300_MIB = (
    "import resource, mcp_core.models.loader, mcp_core.inference.engine;"
    "status = open('/proc/self/status').read();"
    "data = int(status.partition('VmData:')[2].split()[0]) * 1024 + 300 * 2**20;"
    f"resource.setrlimit(resource.RLIMIT_DATA, (data, data)); {SERVE}"
)
SMALL = ShapeSpec(layers=2, hidden=64, intermediate=128, heads=4, kv_heads=2, vocab=300, context=256)
LARGE = ShapeSpec(layers=16, hidden=2048, intermediate=8192, heads=16, kv_heads=16, vocab=300, context=256)


@contextmanager
def worker(code: str, shape: ShapeSpec, scheme: str) -> Iterator[dict[str, Any]]:
    """What the worker says when it is ready, or why it never will be."""
    model = ModelRef(source="shape", id="custom", shape=shape)
    recipe = Recipe(model=model, device="cpu", threads=1, quantization=Quantization(scheme=scheme))
    order = {"recipe": recipe.model_dump(mode="json"), "token": TOKEN}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        said = (json.loads(line) for line in process.stdout)
        try:
            yield next(event for event in said if event["event"] in {"ready", "failed"})
        finally:
            process.stdin.close()


def complete(port: int) -> int:
    body = json.dumps({"prompt": [1, 2, 3], "max_tokens": 4, "model": "custom"}).encode()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return int(json.load(response)["usage"]["completion_tokens"])


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
@pytest.mark.parametrize("scheme", ["bnb-int8", "torchao-int8-weight-only"])
def test_the_worker_that_served_before_serves_on(scheme: str, home: Path) -> None:
    with worker(SERVE, SMALL, "none") as ready:
        assert complete(ready["port"]) == 4
        with worker(SERVE_IN_300_MIB, LARGE, scheme) as said:
            assert said["event"] == "failed"
            assert said["failure"]["kind"] == "oom"
            assert "Memory ran out while loading custom shape" in said["failure"]["message"]
            assert said["failure"]["hint"]
        assert complete(ready["port"]) == 4
