"""Pictures of Why for three Runs with different causes, of the Profiler, the Advisor and a Monitor at work.

``python tests/browser/why_pictures.py FOLDER`` measures the bundled model in MCP_HOME (else a home of its own) with
one thread: about three minutes on a CPU. Nothing in the pictures is invented; the causes found are this machine's.
``docs/pictures`` has a set.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from PIL import Image
from playwright.sync_api import Browser, Page

from tests.browser.app_process import ROOT, chromium, running_app, settled
from tests.browser.screenshots import LOAD_MS, say, visit

ONE = ("--set", "threads=1")
# Expected on a CPU: reading the weights; unpacking at every use; fifteen of sixteen requests wait.
CASES: dict[str, tuple[str, ...]] = {
    "bandwidth": ("profile", "bundled", *ONE),
    "dequantization": ("profile", "bundled", *ONE, "--set", "quantization.scheme=torchao-int8-weight-only"),
    "queue": (
        *("bench", "bundled", "short-chat", *ONE),
        *("--set", "workload.concurrency=16", "--set", "workload.requests=16"),
    ),
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as own:
        home = Path(os.environ.get("MCP_HOME", own))
        answer(home, "doctor", "--measure", "--threads", "1")
        runs = {name: measured(home, arguments) for name, arguments in CASES.items()}
        with chromium() as browser, running_app(home, folder / "app.log") as (url, _):
            explained(browser, url, runs, folder)
            at_work(browser, url, folder)


def measured(home: Path, arguments: tuple[str, ...]) -> str:
    """The new Run's id; its verdict to stdout."""
    with tempfile.TemporaryDirectory() as traces:
        made = answer(home, *arguments, *(("--out", traces) if arguments[0] == "profile" else ()))
    run = str(made["run"] if arguments[0] == "profile" else made["id"])
    print(run, answer(home, "why", run)["title"], flush=True)
    return run


def answer(home: Path, *arguments: str) -> dict[str, object]:
    command = [sys.executable, "-m", "mcp_core.cli", *arguments, "--json"]
    environment = os.environ | {"MCP_HOME": str(home)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    document: dict[str, object] = json.loads(done.stdout)
    return document


def explained(browser: Browser, url: str, runs: dict[str, str], folder: Path) -> None:
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    for name, run in runs.items():
        opened(page, f"{url}/why?run={run}")
        shoot(page, folder / f"why-{name}.png", until="Profiler")
    opened(page, f"{url}/why?run={runs['dequantization']}&against={runs['bandwidth']}")
    shoot(page, folder / "why-compared.png", until="Profiler")
    for view in ("Operators", "Timeline"):
        page.get_by_role("radio", name=view, exact=True).first.click()
        settled(page)
        page.wait_for_timeout(2500)
        shoot(page, folder / f"profiler-{view.lower()}.png", since="Profiler")
    opened(page, f"{url}/handbook")
    shoot(page, folder / "advisor.png")
    page.close()


def at_work(browser: Browser, url: str, folder: Path) -> None:
    """Monitor with a load and an answer in its charts."""
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    opened(page, url)
    page.get_by_role("button", name="Load the bundled model").click()
    page.get_by_role("button", name="Chat with it").wait_for(timeout=LOAD_MS)
    visit(page, "Playground")
    say(page, "Name three rivers of France.")
    visit(page, "Monitor")
    shoot(page, folder / "monitor.png")
    page.close()


def opened(page: Page, address: str) -> None:
    page.goto(address)
    settled(page)
    page.wait_for_timeout(2500)


def shoot(page: Page, path: Path, *, since: str = "", until: str = "") -> None:
    """From one heading to another, light; all of the page without."""
    block = page.get_by_test_id("stMainBlockContainer")
    page.set_viewport_size({"width": 1100, "height": min(4000, int(block.evaluate("e => e.scrollHeight")) + 40)})
    page.wait_for_timeout(800)
    box = block.bounding_box() or {"x": 0.0, "y": 0.0, "width": 1100.0, "height": 900.0}
    top, bottom = (_top_of(page, heading) for heading in (since, until))
    top, bottom = box["y"] if top is None else top - 16, box["y"] + box["height"] if bottom is None else bottom - 16
    page.screenshot(path=path, clip={"x": box["x"], "y": top, "width": box["width"], "height": bottom - top})
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)  # a third of the bytes


def _top_of(page: Page, heading: str) -> float | None:
    box = page.get_by_role("heading", name=heading).first.bounding_box() if heading else None
    return box["y"] if box else None


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "screenshots"))
