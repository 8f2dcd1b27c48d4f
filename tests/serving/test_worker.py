"""The worker as a real process, around a tiny random Llama."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcp_core.recipe import ModelRef, Recipe

TOKEN = "a-token-of-this-test"


class WorkerProcess:
    """Speaks the worker's protocol: the order in, lines out."""

    def __init__(self, order: dict[str, Any] | str, home: Path, roots: Path) -> None:
        env = os.environ | {"MCP_HOME": str(home), "MCP_MODEL_ROOTS": str(roots), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mcp_core.serving.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.events: list[dict[str, Any]] = []
        self.log = ""
        self._log_reader = threading.Thread(target=self._read_log, daemon=True)
        self._log_reader.start()
        assert self.process.stdin is not None
        self.process.stdin.write((order if isinstance(order, str) else json.dumps(order)) + "\n")
        self.process.stdin.flush()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line

    def wait_event(self, *kinds: str) -> dict[str, Any]:
        """Read lines until one of these events; every line of stdout is JSON."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            if self.events[-1]["event"] in kinds:
                return self.events[-1]
        pytest.fail(f"ended without {kinds}: {self.events} {self.log}")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.wait_event('ready')['port']}"

    def end(self) -> int:
        """Close stdin; the exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(30)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._log_reader.join(10)
        self.process.stdout.close()
        self.process.stderr.close()
        return code


def ask(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return json.load(error)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_llama import build_tiny_llama

    folder = tmp_path_factory.mktemp("roots")
    build_tiny_llama(folder / "tiny", context=4096)
    return folder


class Reference:
    """The same model in this process, by transformers alone."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def continuation(self, chat: str, tokens: int) -> list[int]:
        ids = self._tokenizer(chat + "<|im_start|>assistant\n", return_tensors="pt", add_special_tokens=False)
        output = self._model.generate(
            **ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0, eos_token_id=[]
        )
        return output[0, ids.input_ids.shape[1] :].tolist()

    def scores(self, prompt: list[int]) -> list[float]:
        import torch

        with torch.inference_mode():
            logits = self._model(torch.tensor([prompt])).logits[0, :-1]
        return logits.log_softmax(-1).gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()


@pytest.fixture(scope="module")
def reference(roots: Path) -> Reference:
    return Reference(roots / "tiny")


@pytest.fixture
def order(roots: Path) -> dict[str, Any]:
    recipe = Recipe(model=ModelRef(source="folder", id=str(roots / "tiny")), dtype="fp32", device="cpu", threads=1)
    return {"recipe": recipe.model_dump(mode="json"), "token": TOKEN, "port": 0, "hub_token": None, "force": False}


@pytest.fixture
def start(roots: Path, home: Path) -> Iterator[Any]:
    workers: list[WorkerProcess] = []

    def make(order: dict[str, Any] | str) -> WorkerProcess:
        workers.append(WorkerProcess(order, home, roots))
        return workers[-1]

    yield make
    for worker in workers:
        if worker.process.returncode is None:
            worker.process.kill()
        worker.end()


def assert_scores_as(reference: Reference, url: str, model: str) -> None:
    """The log-probabilities that lm-eval reads are the model's own."""
    prompt = [5, 80, 33, 200, 7, 64]
    body = {"model": model, "prompt": [prompt], "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    logprobs = ask(url + "/v1/completions", body)["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:-1] == pytest.approx(reference.scores(prompt), abs=1e-4)


def assert_memory_is_told_by_phase_and_module(url: str, weights_bytes: int) -> None:
    analysis = ask(url + "/control/memory")
    phases = {phase["name"]: phase for phase in analysis["timeline"]["phases"]}
    assert list(phases)[:4] == ["imports", "load", "warm-up", "check"]
    assert {"idle", "prefill", "decode"} >= set(list(phases)[4:]) >= {"prefill", "decode"}
    assert all(phase["resident_bytes"] > 100 * 2**20 for name, phase in phases.items() if name != "imports")
    modules = {module["name"]: module for module in analysis["modules"]}
    assert sum(module["bytes"] for module in modules.values()) == weights_bytes
    assert modules["model.layers.1.mlp.up_proj"]["bytes"] == 64 * 128 * 4  # hidden x intermediate, fp32
    assert "CPU" in ask(url + "/control/snapshot", {})["error"]["message"]
    said = ask(url + "/control/prediction", {"prompt_tokens": 40, "output_tokens": 8})
    assert (said["weights_bytes"], said["context_tokens"]) == (pytest.approx(weights_bytes, rel=0.01), 48)


def assert_a_profile_is_recorded_while_requests_come(url: str, body: dict[str, Any]) -> None:
    """Text is tokenized and made in the event loop's thread: its sections are in the trace, too."""
    answers: list[dict[str, Any]] = []
    plan = {"steps": 6, "warmup": 1, "timeout_s": 30}
    profiling = threading.Thread(target=lambda: answers.append(ask(url + "/control/profile", plan)))
    profiling.start()
    while profiling.is_alive():
        ask(url + "/v1/chat/completions", body)
    events = json.loads(Path(answers[0]["trace"]).read_text())["traceEvents"]
    assert {"engine step", "tokenization", "detokenization", "queue"} <= {event.get("name") for event in events}
    assert len(answers[0]["traces"][0]["steps"]) == 6


def assert_a_gone_client_is_not_served_on(url: str, model: str) -> None:
    assert ask(url + "/control/stats")["output_tokens_total"] == 5 + 1
    body = {"model": model, "prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    data = json.dumps(body).encode()
    request = urllib.request.Request(url + "/v1/completions", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as stream:
        assert b"token_ids" in stream.readline()
        assert ask(url + "/control/stats")["running"] == 1
    deadline = time.monotonic() + 10
    while (stats := ask(url + "/control/stats"))["running"]:
        assert time.monotonic() < deadline
    assert stats["cancelled_total"] == 1


def test_a_worker_loads_serves_and_ends_when_asked(start: Any, order: dict[str, Any], reference: Reference) -> None:
    worker = start(order)
    url = worker.url
    assert [event["event"] for event in worker.events[:-1]] == ["progress"] * (len(worker.events) - 1)
    stages = list(dict.fromkeys(event.get("stage") for event in worker.events[:-1]))
    assert stages == ["load", "warm-up", "check"]
    assert worker.events[-1]["pid"] == worker.process.pid

    state = ask(url + "/control/state")
    assert state["model"] == order["recipe"]["model"]["id"]
    assert state["effective"]["dtype"] == "fp32"
    assert 0 < state["load_s"] < 300
    memory = state["memory"]
    assert memory["weights_bytes"] > 100_000
    assert memory["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4  # K and V, layers, kv heads, head width, fp32
    assert 100 * 2**20 < memory["baseline_bytes"] < memory["load_peak_bytes"]
    assert memory["peak_bytes"] == memory["process_peak_bytes"] - memory["baseline_bytes"]
    assert Path(f"/proc/{worker.process.pid}/oom_score_adj").read_text() == "1000\n"

    body = {"model": state["model"], "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    answer = ask(url + "/v1/chat/completions", body | {"temperature": 0, "ignore_eos": True})
    assert answer["choices"][0]["token_ids"] == reference.continuation("<|im_start|>user\nHi<|im_end|>\n", 5)
    assert_scores_as(reference, url, state["model"])
    assert_a_gone_client_is_not_served_on(url, state["model"])
    assert_memory_is_told_by_phase_and_module(url, memory["weights_bytes"])
    assert_a_profile_is_recorded_while_requests_come(url, body)

    assert ask(url + "/control/shutdown", {}) == {"state": "ending"}
    assert worker.process.wait(30) == 0
    assert "Hi" not in worker.log  # prompts are never logged


def test_sigterm_ends_open_streams_with_an_error_and_the_worker_with_0(start: Any, order: dict[str, Any]) -> None:
    worker = start(order)
    body = {
        "model": order["recipe"]["model"]["id"],
        "prompt": "x",
        "max_tokens": 4000,
        "ignore_eos": True,
        "stream": True,
    }
    request = urllib.request.Request(
        worker.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as stream:
        assert b"token_ids" in stream.readline()
        worker.process.send_signal(signal.SIGTERM)
        lines = [line for line in stream.read().split(b"\n") if line]
    assert json.loads(lines[-1].removeprefix(b"data: "))["error"]["kind"] == "cancelled"
    assert worker.process.wait(30) == 0


def test_a_taken_port_is_said_before_anything_is_loaded(start: Any, order: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failed = start(order | {"port": port})
        failure = failed.wait_event("failed")["failure"]
    assert (failure["kind"], failure["message"]) == ("port", f"Port {port} is in use.")
    assert len(failed.events) == 1
    assert failed.process.wait(30) == 1


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"recipe": {"dtype": "fp64"}}, "recipe", "dtype"),
        ({"recipe": {"batching": {"mode": "static"}, "prefix_cache": True}}, "recipe", "prefix_cache"),
        ({"token": ""}, "input", "token"),
        ({"port": 70_000}, "port", "70000"),
        ({"recipe": {"model": {"source": "folder", "id": "/nowhere/at/all"}}}, None, "nowhere"),
    ],
)
def test_a_bad_order_fails_with_one_line(
    start: Any, order: dict[str, Any], change: dict[str, Any], kind: str | None, words: str
) -> None:
    worker = start(order | change)
    failure = worker.wait_event("failed")["failure"]
    assert kind in (None, failure["kind"])
    assert words in failure["message"]
    assert "\n" not in failure["message"]
    assert worker.process.wait(30) == 1
    assert worker.end() == 1
    assert "Traceback" not in worker.log


def test_an_order_that_is_not_json_fails(start: Any) -> None:
    assert start("{nonsense").wait_event("failed")["failure"]["kind"] == "input"


def test_stdin_that_ends_while_loading_ends_the_worker(start: Any, order: dict[str, Any]) -> None:
    worker = start(order)
    time.sleep(0.3)
    assert worker.end() == 0


def test_what_libraries_print_goes_to_stderr() -> None:
    code = (
        "import os\n"
        "from mcp_core.serving.worker_channel import Channel\n"
        "channel = Channel.take_stdout()\n"
        "print('from python', flush=True); os.write(1, b'from C\\n')\n"
        "channel.progress('load', 0.5, 'x')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=60)
    assert json.loads(done.stdout) == {"event": "progress", "stage": "load", "fraction": 0.5, "message": "x"}
    assert done.stderr == "from python\nfrom C\n"


def test_a_surprise_while_loading_is_one_line_and_the_traceback_goes_to_the_log(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from mcp_core.serving import worker\n"
        "def surprise(self, resolved): raise ZeroDivisionError('first\\nsecond')\n"
        "worker._Worker._load = surprise\n"
        "worker._import_heavy = lambda *_: None\n"
        "sys.exit(worker.main())\n"
    )
    order = {"recipe": {"device": "cpu", "threads": 1, "dtype": "fp32"}, "token": TOKEN}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        failure = json.loads(process.stdout.readline())["failure"]
        assert process.wait(30) == 1
        log = process.stderr.read()
    assert (failure["kind"], failure["message"]) == ("load", "The worker failed: ZeroDivisionError: first")
    assert "Traceback" in log
