"""frame: every page is there, alone and framed; deep links; the sidebar; how an error looks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core.errors import McpError
from pages._ui import frame, workbench

ROOT = Path(__file__).resolve().parents[2]
OpenPage = Callable[[str], AppTest]


def test_every_page_has_a_file_and_every_file_is_a_page() -> None:
    assert {f"{page.name}.py" for page in frame.PAGES} == {path.name for path in (ROOT / "pages").glob("*.py")}
    assert frame.PAGES[0].name == "home"


@pytest.mark.parametrize("name", [page.name for page in frame.PAGES])
@pytest.mark.parametrize("state", ["empty", "ready"])
def test_every_page_runs_alone(page: OpenPage, wb: fakes.FakeWorkbench, name: str, state: str) -> None:
    if state == "ready":
        wb.add(fakes.ready_worker(), fakes.ok_run())
        wb.samples = fakes.samples(5, worker=fakes.ready_worker())
    at = page(name).run()
    assert not at.exception
    assert len(at.title) == 1


@pytest.mark.parametrize("name", [page.name for page in frame.PAGES])
def test_every_page_runs_framed(app: AppTest, name: str) -> None:
    at = app.run().switch_page(frame.path_of(name)).run()
    assert not at.exception
    assert len(at.title) == 1
    assert "no model loaded" in at.sidebar.markdown[0].value


def test_a_page_that_runs_before_the_app_remembers_its_link(
    page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where app.py exists, switch_page ends the run; alone, it is refused and the page is drawn."""
    monkeypatch.setattr(frame, "_framed", False)
    at = page("runs")
    at.query_params["run"] = "x"
    at.run()
    assert not at.exception
    assert at.title[0].value == "Runs"
    assert "mcp_goto" not in at.session_state


def test_the_app_goes_to_the_remembered_link(app: AppTest, wb: fakes.FakeWorkbench) -> None:
    wb.add(fakes.ok_run())
    app.session_state["mcp_goto"] = ("runs", {"run": fakes.ok_run().id})
    at = app.run()
    assert not at.exception
    assert at.title[0].value == "Runs"
    assert at.header[0].value == "SmolLM2-135M-Instruct · fp32 · unquantized"


def test_without_a_workbench_the_page_says_why_and_tries_again(
    app: AppTest, wb: fakes.FakeWorkbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> fakes.FakeWorkbench:
        raise McpError("The folder /nowhere cannot be made.", "Set MCP_HOME to a folder you can write.")

    with monkeypatch.context() as broken:
        broken.setattr(workbench, "get_workbench", refuse)
        at = app.run()
    assert not at.exception
    assert at.title[0].value == "MCP cannot start"
    assert "Set MCP\\_HOME to a folder" in at.error[0].value
    at.button[0].click().run()
    assert at.title[0].value == "No model is loaded yet"


def test_the_sidebar_without_a_model_names_the_device(app: AppTest, wb: fakes.FakeWorkbench) -> None:
    wb.samples = fakes.samples(5)
    sidebar = app.run().sidebar
    assert "no model loaded" in sidebar.markdown[0].value
    assert sidebar.caption[0].value == "CPU · Example CPU"
    assert len(sidebar.button) == 0


def test_the_sidebar_shows_worker_recipe_memory_and_job(app: AppTest, wb: fakes.FakeWorkbench) -> None:
    worker = fakes.ready_worker()
    wb.add(worker, fakes.running_job()).samples = fakes.samples(5, worker=worker)
    at = app.run()
    words = "\n".join(element.value for element in (*at.sidebar.markdown, *at.sidebar.caption))
    assert "ready" in words
    assert "SmolLM2-135M-Instruct" in words
    assert "fp32 · unquantized" in words
    bars = [element.proto.text for element in at.sidebar.get("progress")]
    assert any("System memory" in bar and "of 16.0 GB used" in bar and "by this model" in bar for bar in bars)
    assert any("8 of 16 requests · about 8 s left" in bar for bar in bars)
    at.sidebar.button(key="sidebar-cancel-j1").click().run()
    assert ("cancel_job", "j1") in wb.calls


def test_unload_is_one_click_for_one_user(app: AppTest, wb: fakes.FakeWorkbench) -> None:
    wb.add(fakes.ready_worker())
    app.run().sidebar.button(key="sidebar-unload").click().run()
    assert ("unload", "w1") in wb.calls
    assert app.title[0].value == "No model is loaded yet"


def test_unload_asks_when_the_one_who_chats_is_somebody_else(app: AppTest, wb: fakes.FakeWorkbench) -> None:
    """Two browsers, one conversation: the other one's."""
    wb.add(fakes.ready_worker(users=1), fakes.conversation())
    at = app.run()
    assert at.sidebar.button(key="sidebar-unload").label == "Unload anyway"
    at.session_state["mcp_conversation_id"] = "c1"
    assert at.run().sidebar.button(key="sidebar-unload").label == "Unload"


def test_unload_asks_while_a_measurement_runs(app: AppTest, wb: fakes.FakeWorkbench) -> None:
    wb.add(fakes.ready_worker(users=0), fakes.running_job())
    assert app.run().sidebar.button(key="sidebar-unload").label == "Unload anyway"


def test_unload_asks_when_others_use_the_model(app: AppTest, wb: fakes.FakeWorkbench) -> None:
    wb.add(fakes.ready_worker(users=3))
    sidebar = app.run().sidebar
    assert sidebar.button(key="sidebar-unload").label == "Unload anyway"
    assert any("3 other conversations" in element.value for element in sidebar.markdown)


def test_of_two_models_one_is_chosen(app: AppTest, wb: fakes.FakeWorkbench) -> None:
    wb.add(fakes.ready_worker("w1", title="First"), fakes.ready_worker("w2", title="Second"))
    at = app.run()
    assert at.title[0].value == "Second is ready"  # the newest
    at.sidebar.selectbox[0].set_value("w1").run()
    assert at.title[0].value == "First is ready"


def test_while_one_model_loads_another_can_be_used(app: AppTest, wb: fakes.FakeWorkbench) -> None:
    wb.add(fakes.ready_worker("w1", title="First"), fakes.loading_worker("w2"))
    app.session_state["mcp_worker_id"] = "w2"
    choice = app.run().sidebar.selectbox[0]
    assert choice.options == [
        "First · fp32 · unquantized",
        "SmolLM2-135M-Instruct · fp32 · unquantized · loading",
    ]
    choice.set_value("w1").run()
    assert app.title[0].value == "First is ready"


def test_an_error_cannot_draw_markdown() -> None:
    script = """
from mcp_core.errors import McpError
from pages._ui import frame
with frame.errors_shown():
    raise McpError("no [link](http://x) or $maths$", "Try *again*.")
"""
    at = AppTest.from_string(script).run()
    assert not at.exception
    assert at.error[0].value == "no \\[link\\](http\\://x) or \\$maths\\$\n\nTry \\*again\\*."


@pytest.fixture(scope="module")
def cold_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real app on a free port, which nobody has opened yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MCP_HOME": str(tmp_path_factory.mktemp("home"))}
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as server:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"
        server.terminate()


def _wait_for(port: int) -> None:
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the server did not start")


@pytest.mark.browser
def test_a_deep_link_on_a_cold_server_keeps_page_and_query(cold_server: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
        tab = browser.new_page()
        outside: list[str] = []
        tab.on("request", lambda request: outside.append(request.url))
        tab.goto(f"{cold_server}/monitor?range=15+min")
        tab.get_by_role("heading", name="Monitor", level=1).wait_for(timeout=30_000)
        links = tab.locator('[data-testid="stSidebarNavLink"]').all_inner_texts()
        assert [link.strip() for link in links] == [page.title for page in frame.PAGES]
        assert tab.url == f"{cold_server}/monitor?range=15+min"
        tab.wait_for_function("document.title.startsWith('Monitor')")
        assert [url for url in outside if not url.startswith((cold_server, "ws://127.0.0.1", "data:"))] == []
        browser.close()
