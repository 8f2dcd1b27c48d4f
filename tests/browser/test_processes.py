"""No orphans: a worker ends with its app, however the app ends."""

from __future__ import annotations

import signal
import time

import psutil
import pytest
from playwright.sync_api import expect

from tests.browser.app_process import running_app, settled


def workers_of(pid: int) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(pid).children(recursive=True)
        if "mcp_core.serving.worker" in " ".join(child.cmdline())
    ]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_worker_ends_with_the_app(how, browser, shared_home, tmp_path):
    with running_app(shared_home, tmp_path / "log") as (url, process):
        page = browser.new_page()
        page.goto(url)
        settled(page)
        page.get_by_role("button", name="Load the bundled model").click()
        deadline = time.monotonic() + 30
        while not (workers := workers_of(process.pid)):
            assert time.monotonic() < deadline, "no worker was started"
            time.sleep(0.05)
        process.send_signal(how)
        gone, alive = psutil.wait_procs(workers, timeout=20)
        page.close()
        assert gone
        assert not alive


def test_a_killed_worker_becomes_a_message_and_the_app_goes_on(browser, shared_home, tmp_path):
    with running_app(shared_home, tmp_path / "log") as (url, process):
        page = browser.new_page()
        page.goto(url)
        settled(page)
        page.get_by_role("button", name="Load the bundled model").click()
        expect(page.get_by_role("button", name="Chat with it")).to_be_visible(timeout=120_000)
        page.get_by_role("button", name="Chat with it").click()
        box = page.get_by_test_id("stChatInput").locator("textarea")
        box.fill("Write a very long story about a lighthouse.")
        box.press("Enter")
        expect(page.get_by_test_id("stChatMessage").nth(1)).to_contain_text(" ", timeout=60_000)
        workers_of(process.pid)[0].send_signal(signal.SIGKILL)
        expect(page.get_by_test_id("stMain")).to_contain_text("worker", timeout=30_000)
        page.get_by_test_id("stSidebarNav").get_by_role("link", name="Home", exact=True).click()
        expect(page.get_by_role("button", name="Try again")).to_be_visible(timeout=30_000)
        page.close()
