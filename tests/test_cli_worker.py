"""The command line over the real worker, with a model of a few thousand random weights."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request

import psutil
import pytest

from mcp_core.results import Run

RECIPE = {
    "model": {
        "source": "shape",
        "id": "custom",
        "shape": {
            "layers": 2,
            "hidden": 64,
            "intermediate": 128,
            "heads": 4,
            "kv_heads": 2,
            "vocab": 1000,
            "context": 512,
        },
    },
    "dtype": "fp32",
    "threads": 1,
}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(RECIPE))
    return str(path)


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mcp_core.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_bench_measures_a_real_worker(recipe, tmp_path):
    out = tmp_path / "run.json"
    with start("bench", recipe, "short-chat", "--json", "--out", str(out)) as process:
        answer, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    run = Run.model_validate_json(answer)
    assert Run.model_validate_json(out.read_text()) == run
    measured = run.measurement
    assert (measured.requests, measured.completed, measured.failed) == (16, 16, 0)
    assert (measured.prompt_tokens, measured.output_tokens) == (16 * 64, 16 * 32)
    assert measured.tpot_ms.n == measured.itl_ms.n == 16
    # What holds however busy the machine is (a starved client reads many chunks at once): no reply is there before
    # it was computed. That the two clocks agree is shown by make bench.
    assert measured.e2e_ms.p50 >= 31 * measured.engine_tpot_ms > 0
    assert measured.engine_output_tok_s > measured.output_tok_s > 0
    # 2 x 1000 x 64 embeddings, 2 layers of q o (64 x 64), k v (32 x 64), 3 x 64 x 128 and two norms, a last norm
    parameters = 2 * 64000 + 2 * (2 * 4096 + 2 * 2048 + 3 * 8192 + 128) + 64
    assert run.memory.weights_bytes == pytest.approx(4 * parameters, rel=1e-3)  # rotary buffers beside them
    assert run.memory.peak_bytes > 0
    assert run.memory.process_peak_bytes > run.memory.baseline_bytes
    assert run.effective.threads == 1
    assert run.recipe.threads == 1
    assert run.recipe.device == "cpu"
    assert run.load_s > 0
    assert any(reason.startswith("smoke test") for reason in run.comparable.reasons)


def test_serve_answers_until_it_is_stopped(recipe):
    with start("serve", recipe) as process:
        ready, _, url = process.stdout.readline().strip().partition(" ")
        try:
            assert ready == "ready"
            body = {"model": "custom", "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True}
            request = urllib.request.Request(
                f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=30) as response:
                assert json.load(response)["usage"]["completion_tokens"] == 4
            workers = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert workers
    assert psutil.wait_procs(workers, timeout=5)[1] == []


def test_a_port_in_use_is_a_cause_and_a_hint(recipe):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with start("serve", recipe, "--port", str(taken.getsockname()[1])) as process:
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "Traceback" not in err
    assert "error: " in err
    assert "hint: " in err
