"""The foundation's speed claims, each against a peer in the same run (``make bench``, about 6 minutes).

Ratios are of medians of alternating measurements, the worker pinned to one core with one thread and everything
else on the others, as CONTRACTS asks. Prints one row a claim and exits 1 if one does not hold.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
from playwright.sync_api import Page  # noqa: E402

from mcp_core.evaluation.benchmark import measure  # noqa: E402
from mcp_core.evaluation.cores import usable_cores  # noqa: E402
from mcp_core.hardware import detect  # noqa: E402
from mcp_core.presets import bundled  # noqa: E402
from mcp_core.recipe import Recipe  # noqa: E402
from mcp_core.serving.client import ServerClient, open_session  # noqa: E402
from mcp_core.serving.supervisor import Supervisor, Worker  # noqa: E402
from mcp_core.workload import Lengths, Workload  # noqa: E402
from tests.bench.report import Report  # noqa: E402
from tests.browser.app_process import chromium, running_app, settled  # noqa: E402

PROMPT, TOKENS, PAIRS = list(range(1000, 1064)), 96, 7
PAGES = ("home", "recipe", "playground", "measure", "monitor", "runs")


def main() -> int:
    report = Report()
    recipe = bundled().replace({"threads": 1, "device": "cpu"})
    with tempfile.TemporaryDirectory() as home:
        os.environ["MCP_HOME"] = home
        asyncio.run(worker_claims(recipe, report))
        with chromium() as browser:
            page_claims(browser.new_page(), Path(home), report)
    for scenario in ("empty", "ready"):
        rerun_claims(scenario, report)
    return report.end()


async def worker_claims(recipe: Recipe, report: Report) -> None:
    supervisor = Supervisor()
    try:
        for name in ("first time, the GGUF prepared on the way", "again"):
            started = time.monotonic()
            worker = await supervisor.start(recipe)
            took = time.monotonic() - started
            report.row(f"worker ready ({name})", "<= 30 s", f"{took:.1f} s", holds=took <= 30)
            if name != "again":
                await supervisor.stop(worker.id)
        await decode_against_generate(worker, recipe, report)
        await count_and_clock(worker, recipe, report)
    finally:
        await supervisor.close()


async def decode_against_generate(worker: Worker, recipe: Recipe, report: Report) -> None:
    """HTTP stream and direct ``generate``, in turn, on the same core; prefill is inside both."""
    cores = sorted(usable_cores())
    with direct_generate(recipe) as generate, pinned_to(cores[0], worker.pid, generate.pid):
        http, direct = [], []
        async with open_session() as session:
            client = ServerClient(worker.url, worker.token, session)
            for _ in range(PAIRS + 1):
                http.append(await stream_tok_s(client))
                direct.append(TOKENS / ask(generate, {"prompt": PROMPT, "tokens": TOKENS})["seconds"])
    ratio = statistics.median(http[1:]) / statistics.median(direct[1:])
    figure = f"{ratio:.3f} ({statistics.median(http[1:]):.2f} against {statistics.median(direct[1:]):.2f} tok/s)"
    report.row("tokens/s through the HTTP stream / direct generate", ">= 0.90", figure, holds=ratio >= 0.90)


async def stream_tok_s(client: ServerClient) -> float:
    body = {
        "model": (await client.models())[0],
        "prompt": PROMPT,
        "max_tokens": TOKENS,
        "min_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }
    started, last, tokens = time.perf_counter(), 0.0, 0
    async for chunk in client.stream("/v1/completions", body):
        if chunk.has_token:
            last, tokens = chunk.received_s, tokens + len(chunk.token_ids)
    assert tokens == TOKENS
    return tokens / (last - started)


async def count_and_clock(worker: Worker, recipe: Recipe, report: Report) -> None:
    workload = Workload(
        name="counting", requests=8, prompt_tokens=Lengths(min=16, max=64), output_tokens=Lengths(min=8, max=48)
    )
    kept = []
    run = await measure(
        worker.url,
        worker.token,
        recipe,
        workload,
        detect(),
        keep=lambda run, records, telemetry: kept.extend(records),
    )
    assert run.measurement is not None, run.failure
    streamed = sum(sum(record.chunk_tokens) for record in kept)
    reported = sum(record.output_tokens for record in kept)
    report.row(
        "tokens counted by the client = by the server",
        "exact",
        f"{streamed} = {reported}",
        holds=streamed == reported,
    )
    ratio = run.measurement.tpot_ms.p50 / run.measurement.engine_tpot_ms
    figure = f"{ratio:.3f} ({run.measurement.tpot_ms.p50:.2f} against {run.measurement.engine_tpot_ms:.2f} ms)"
    report.row("TPOT by the client / by the engine's own clock", "within 5 %", figure, holds=abs(ratio - 1) <= 0.05)


def page_claims(page: Page, home: Path, report: Report) -> None:
    page.goto("about:blank")
    starts = [first_page_s(page, home / f"start-{number}") for number in range(4)]
    first = statistics.median(starts[1:])
    report.row(
        "first page, from process start to its text in the browser",
        "<= 3 s",
        f"{first:.2f} s (the first of all {starts[0]:.2f} s)",
        holds=first <= 3,
    )
    with running_app(home, home / "app.log") as (url, process):
        page.goto(url)
        settled(page)
        page.get_by_role("button", name="Load the bundled model").click()
        page.get_by_role("button", name="Chat with it").wait_for(timeout=180_000)
        pid, worker_url = worker_of(process.pid)
        cores = sorted(usable_cores())
        with pinned_to(cores[0], pid), kept_off(cores[0], process.pid, os.getpid()):
            monitor_against_no_page(page, url, worker_url, report)


def first_page_s(page: Page, home: Path) -> float:
    home.mkdir(parents=True)
    page.goto("about:blank")
    started = time.monotonic()
    with running_app(home, home / "log") as (url, _):
        page.goto(url, wait_until="commit")
        page.get_by_role("button", name="Load the bundled model").wait_for(timeout=60_000)
        return time.monotonic() - started


def monitor_against_no_page(page: Page, url: str, worker_url: str, report: Report) -> None:
    watched, alone = [], []
    for _ in range(PAIRS + 1):
        page.goto(f"{url}/monitor")
        settled(page)
        page.wait_for_timeout(3000)
        watched.append(asyncio_run(worker_url))
        page.goto("about:blank")
        page.wait_for_timeout(3000)
        alone.append(asyncio_run(worker_url))
    ratio = statistics.median(watched[1:]) / statistics.median(alone[1:])
    figure = f"{ratio:.3f} ({statistics.median(watched[1:]):.2f} against {statistics.median(alone[1:]):.2f} tok/s)"
    report.row("tokens/s with the Monitor page open / with no page", ">= 0.95", figure, holds=ratio >= 0.95)


def asyncio_run(worker_url: str) -> float:
    """One stream, in a process of its own: playwright keeps this one's event loop."""
    code = (
        "import asyncio, sys; sys.path.insert(0, sys.argv[2]); from tests.bench import foundation as f;"
        "print(asyncio.run(f.one_stream(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, worker_url, str(ROOT)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


async def one_stream(worker_url: str) -> float:
    async with open_session() as session:
        return await stream_tok_s(ServerClient(worker_url, None, session))


def rerun_claims(scenario: str, report: Report) -> None:
    """Server time of a rerun of each page, in a fresh process with a real Workbench."""
    with tempfile.TemporaryDirectory() as home:
        result = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "bench" / "reruns.py"), scenario],
            env=os.environ | {"MCP_HOME": home},
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
    assert result.returncode == 0, result.stderr[-2000:]
    for name, ms in json.loads(result.stdout.splitlines()[-1]).items():
        report.row(f"rerun of {name} ({scenario}), server time", "<= 150 ms", f"{ms:.0f} ms", holds=ms <= 150)


@contextmanager
def direct_generate(recipe: Recipe) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(ROOT / "tests" / "bench" / "direct_generate.py")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
    ) as process:
        assert ask(process, recipe.model_dump(mode="json"))["ready"]
        yield process
        process.stdin.close()


def ask(process: subprocess.Popen[str], document: object) -> dict[str, float]:
    process.stdin.write(json.dumps(document) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


@contextmanager
def pinned_to(core: int, *pids: int) -> Iterator[None]:
    """These processes on one core, all threads of them; this process on the others."""
    for pid in pids:
        set_cores(pid, {core})
    with kept_off(core, os.getpid()):
        yield


@contextmanager
def kept_off(core: int, *pids: int) -> Iterator[None]:
    """These processes, and what they started apart from a worker, on every core but that one."""
    everywhere = set(usable_cores())
    rest = everywhere - {core} or everywhere
    families = [
        child.pid
        for pid in pids
        for child in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))
        if not is_worker(child)
    ]
    for pid in families:
        set_cores(pid, rest)
    yield
    for pid in families:
        if psutil.pid_exists(pid):
            set_cores(pid, everywhere)


def set_cores(pid: int, cores: set[int]) -> None:
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, cores)


def is_worker(process: psutil.Process) -> bool:
    command = " ".join(process.cmdline())
    return "mcp_core.serving.worker" in command or "direct_generate" in command


def worker_of(app_pid: int) -> tuple[int, str]:
    """The worker's pid and URL, found by the port it listens on."""
    (worker,) = [child for child in psutil.Process(app_pid).children(recursive=True) if is_worker(child)]
    port = next(each.laddr.port for each in worker.net_connections() if each.status == psutil.CONN_LISTEN)
    return worker.pid, f"http://127.0.0.1:{port}"


if __name__ == "__main__":
    sys.exit(main())
