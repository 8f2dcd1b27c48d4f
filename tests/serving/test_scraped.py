"""A real Prometheus scrapes a worker under load: every expression of the dashboard and of the alerts finds data.

Debian's package prometheus (``apt-get install prometheus``; .ci/run does). Skipped where it is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mcp_core.generation import EngineStats
from mcp_core.serving.fake_engine import FakeEngine, FakeModel

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
WITHIN_S = 30.0

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus is not installed: apt-get install prometheus",
)


class Planted(FakeEngine):
    """With the counters of a paged pool, a prefix cache and guesses, which grow by the clock."""

    def stats(self) -> EngineStats:
        seconds = time.monotonic() % 1e6
        return replace(
            super().stats(),
            kv_tokens=256,
            batch_size=3,
            kv_pages_used=40,
            kv_pages_kept=20,
            kv_pages_total=100,
            cached_prompt_tokens_total=int(300 * seconds),
            prompt_tokens_total=int(100 * seconds),
            drafted_tokens_total=int(40 * seconds),
            accepted_tokens_total=int(30 * seconds),
            kv_evictions_total=int(5 * seconds),
            preemptions_total=int(2 * seconds),
            prefill_s_total=0.2 * seconds,
            decode_s_total=0.6 * seconds,
        )


class Prometheus:
    """What the process at this address has scraped."""

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, expression: str) -> list[tuple[dict[str, str], float]]:
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self._url}/api/v1/query?{query}", timeout=5) as answer:
            found = json.load(answer)["data"]["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]

    def numbers(self, expression: str) -> list[float]:
        return [value for _, value in self.ask(expression)]


def _post(url: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        answer.read()


@pytest.fixture
def loaded_worker(serve: Callable[..., Any], model_id: str) -> Iterator[str]:
    """The URL of a worker that answers four requests at a time until the test is over."""
    script = tuple(FakeModel().tokenizer.encode("A scripted reply. ").ids)
    server = serve(make_engine=lambda sink: Planted(sink, script=script, token_s=0.002, prefill_s=0.01))
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            _post(server.url, {"model": model_id, "prompt": "Hi", "max_tokens": 20, "ignore_eos": True})

    clients = [threading.Thread(target=client) for _ in range(4)]
    for each in clients:
        each.start()
    yield server.url
    over.set()
    for each in clients:
        each.join()


@pytest.fixture
def prometheus(loaded_worker: str, tmp_path: Path) -> Iterator[Prometheus]:
    """Scrapes that worker every half second under the job name of deploy/prometheus/prometheus.yml."""
    target = loaded_worker.removeprefix("http://")
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 500ms, evaluation_interval: 1s}\n"
        f"rule_files: [{ALERTS}]\n"
        f'scrape_configs: [{{job_name: mcp, static_configs: [{{targets: ["{target}"]}}]}}]\n'
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield Prometheus(f"http://127.0.0.1:{port}")
        process.kill()


def expressions_of_panels() -> dict[str, str]:
    """Every query of the kept dashboard, its variables filled in as Grafana does."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    filled = {"$__rate_interval": "4s", "$job": ".*", "$model_name": ".*"}
    found = {}
    for panel in panels:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for variable, value in filled.items():
                expression = expression.replace(variable, value)
            assert "$" not in expression
            found[f"{panel['title']} {target['refId']}"] = expression
    return found


def figures_of_alerts() -> dict[str, str]:
    """What each alert compares with its limit."""
    text = ALERTS.read_text().replace("[5m]", "[4s]")
    rules = re.findall(r"- alert: (\w+)\n\s+expr: (?:>-\n)?(.*?)\n\s+for:", text, re.DOTALL)
    return {name: re.fullmatch(r"(.*) [<>] [\d.]+", " ".join(expr.split())).group(1) for name, expr in rules}


@needs_prometheus
def test_every_expression_of_the_dashboard_and_of_the_alerts_finds_data(prometheus: Prometheus) -> None:
    panels, alerts = expressions_of_panels(), figures_of_alerts()
    assert len(panels) > 30
    assert len(alerts) == 6
    missing = panels | alerts
    deadline_s = time.monotonic() + WITHIN_S
    while missing and time.monotonic() < deadline_s:
        time.sleep(0.5)
        missing = {name: each for name, each in missing.items() if not _has_numbers(prometheus, each)}
    assert missing == {}
    assert prometheus.ask("ALERTS") == []
    # Known truths of the planted worker, so that a query of the wrong thing would be seen.
    assert prometheus.numbers(panels["Workers up A"]) == [1]
    assert prometheus.numbers(panels["KV cache A"]) == [0.25]
    assert prometheus.numbers(panels["Prefix cache hits A"]) == [pytest.approx(0.75, abs=0.02)]
    assert prometheus.numbers(panels["Guesses accepted A"]) == [pytest.approx(0.75, abs=0.1)]
    assert prometheus.numbers(panels["Length of requests B"]) == [pytest.approx(20)]
    assert 0.001 < prometheus.numbers(panels["Time per output token A"])[0] < 0.025


def _has_numbers(prometheus: Prometheus, expression: str) -> bool:
    try:
        values = prometheus.numbers(expression)
    except OSError:  # it is starting
        return False
    return bool(values) and all(map(math.isfinite, values))


@needs_prometheus
@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")],
    ids=" ".join,
)
def test_promtool_finds_no_fault(arguments: tuple[str, ...]) -> None:
    """alerts_test.yml plants a healthy worker, on which nothing fires, and one on which everything does."""
    told = subprocess.run(["promtool", *arguments], cwd=ALERTS.parent, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


@needs_prometheus
def test_promtool_would_find_a_fault(tmp_path: Path) -> None:
    (tmp_path / "alerts.yml").write_text(ALERTS.read_text().replace("> 0.95", "> 0.5"))
    shutil.copy(ALERTS.with_name("alerts_test.yml"), tmp_path)
    told = subprocess.run(["promtool", "test", "rules", "alerts_test.yml"], cwd=tmp_path, capture_output=True)
    assert told.returncode != 0


def test_the_kept_dashboard_is_what_the_script_makes() -> None:
    assert _make_dashboard().make() == DASHBOARD.read_text()


def _make_dashboard() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_dashboard", DASHBOARD.with_name("make_dashboard.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_dashboard"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
